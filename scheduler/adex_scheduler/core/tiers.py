"""Adapter versions and the books of their bytes: tiers, slots, pages, pins, and moves under way.

Every sequence that waits for a version stands in the line of the move it needs next, so nothing
ever has to search for work. What moves when is decided in paging; names are resolved in residency.
An answer to a move that is not under way is counted and otherwise ignored.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.outcome import Evicted, Moved, MoveFailed, WorkerInfo
from adex_proto.plan import Evict, PageIn
from adex_proto.plan import Stage as StageCommand
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.eviction import Eviction
from adex_scheduler.core.fairness import Line, Tenants
from adex_scheduler.core.groups import AdapterGroup, groups_of
from adex_scheduler.core.instructions import Disconnect, Outbox, Send
from adex_scheduler.core.links import OTHER, SOURCES
from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.sequence import Sequence, Stage


@dataclass(slots=True)
class AdapterCounters:
    """What has happened to adapters since the start."""

    fetches: int = 0
    fetch_failures: int = 0
    stages: int = 0
    page_ins: int = 0
    staged_bytes: int = 0
    paged_in_bytes: int = 0
    move_failures: int = 0
    device_evictions: int = 0
    host_evictions: int = 0
    disk_evictions: int = 0
    strays: int = 0


class Tiers:
    """All versions one worker holds. Bytes count from the command that may make them exist."""

    def __init__(self, tenants: Tenants, eviction: Eviction, out: Outbox) -> None:
        self.counters = AdapterCounters()
        self.eviction = eviction
        self._tenants = tenants
        self._out = out

    def open(self, info: WorkerInfo, pool: PagePool, blocks: Blocks) -> None:
        """Begin anew with a worker that holds nothing."""
        self.info, self.pool, self.blocks = info, pool, blocks
        self.eviction.clear()
        self.adapters: dict[str, Adapter] = {}
        self.ready = Line(self._tenants)
        # Names wait by source, so that one which hangs keeps nobody else waiting.
        self.to_fetch = {source: Line(self._tenants) for source in SOURCES}
        self.to_stage = Line(self._tenants)
        self.to_page_in = Line(self._tenants)
        self.lines = (self.ready, self.to_page_in, self.to_stage, *self.to_fetch.values())
        # Each group is in the order in which its members fell idle.
        self.device_idle: OrderedDict[str, Adapter] = OrderedDict()
        self.device_wanted: OrderedDict[str, Adapter] = OrderedDict()
        self.device_pinned: OrderedDict[str, Adapter] = OrderedDict()
        self.device_kept: OrderedDict[str, Adapter] = OrderedDict()
        self.draining: OrderedDict[str, Adapter] = OrderedDict()
        self.host_idle: OrderedDict[str, Adapter] = OrderedDict()
        self.host_kept: OrderedDict[str, Adapter] = OrderedDict()
        self.disk_idle: OrderedDict[str, Adapter] = OrderedDict()
        # For those who watch: whoever has a slot, and with it pages, and whoever is in host memory.
        self.in_slots: OrderedDict[str, Adapter] = OrderedDict()
        self.in_host: OrderedDict[str, Adapter] = OrderedDict()
        # By bit: the group, and the tier whose copies fall idle with it.
        self._groups: Mapping[int, tuple[OrderedDict[str, Adapter], Tier | None]] = {
            AdapterGroup.DEVICE_IDLE: (self.device_idle, Tier.DEVICE),
            AdapterGroup.DEVICE_WANTED: (self.device_wanted, None),
            AdapterGroup.DEVICE_PINNED: (self.device_pinned, None),
            AdapterGroup.DEVICE_KEPT: (self.device_kept, None),
            AdapterGroup.DRAINING: (self.draining, None),
            AdapterGroup.HOST_IDLE: (self.host_idle, Tier.HOST),
            AdapterGroup.HOST_KEPT: (self.host_kept, None),
            AdapterGroup.DISK_IDLE: (self.disk_idle, Tier.DISK),
            AdapterGroup.IN_SLOTS: (self.in_slots, None),
            AdapterGroup.IN_HOST: (self.in_host, None),
        }
        self.slots_free = list(range(1, info.slots_max + 1))
        heapify(self.slots_free)
        self.slots_leaving = self.pages_leaving = 0
        self.host_bytes = self.host_leaving_bytes = 0
        self.disk_bytes = self.disk_leaving_bytes = self.disk_leaving = 0
        self.staging = self.paging_in = 0
        # Errands by number whose adapter has moved or come, and pinned names that lost their place.
        self.stirred: dict[int, Sequence] = {}
        self.unsettled: dict[AdapterKey, None] = {}

    def register(self, version: AdapterVersion, *, on_host: bool = False) -> Adapter:
        """The version's record; a new one is on disk, and in host memory where the worker says."""
        adapter = self.adapters.get(version.digest)
        if adapter is None:
            pages = max(-(-version.bundle_bytes // self.info.page_bytes), 1)
            adapter = self.adapters[version.digest] = Adapter(version, pages)
            self.disk_bytes += version.bundle_bytes
            if on_host:
                self.host_bytes += version.bundle_bytes
                adapter.residence, adapter.host = Residence.HOST, HostCopy.HELD
            self.settle(adapter)
        return adapter

    def remove(self, adapter: Adapter) -> None:
        """Forget a version of which no copy is left."""
        del self.adapters[adapter.digest]
        self.settle(adapter)
        self.eviction.forget(adapter)

    # Where sequences stand.

    def wait(self, sequence: Sequence, adapter: Adapter) -> None:
        """Bind the sequence to the version and let it wait for what it needs next."""
        sequence.digest = adapter.digest
        adapter.waiting[sequence.number] = sequence
        self.settle(adapter)
        self.stand(sequence, self._line_of(adapter))

    def fetch_line(self, key: AdapterKey) -> Line:
        """Where sequences wait for a name of this source to be resolved."""
        return self.to_fetch[key.source if key.source in SOURCES else OTHER]

    def stand(self, sequence: Sequence, line: Line | None) -> None:
        """Put a sequence that stands nowhere into a line; None: what it needs is under way.

        An errand whose adapter is where it shall be stands nowhere, and is ended soon.
        """
        errand = sequence.errand
        if errand is not None and sequence.digest:
            self.stirred[sequence.number] = sequence
            if self.adapters[sequence.digest].at_hand >= errand.tier:
                line = None
        stage = Stage.WAITING if line is self.ready else Stage.WAITING_ADAPTER
        if sequence.stage is not stage:
            sequence.move(stage)
        if line is not None:
            line.add(sequence)

    def leave(self, sequence: Sequence) -> None:
        """Take the sequence out of the line it stands in, if it does."""
        for line in self.lines:
            if sequence in line:
                line.remove(sequence)

    def _relocate(self, adapter: Adapter) -> None:
        """Let everyone who waits for the adapter stand where it now is."""
        line = self._line_of(adapter)
        for number in sorted(adapter.waiting):
            self.leave(adapter.waiting[number])
            self.stand(adapter.waiting[number], line)

    def _line_of(self, adapter: Adapter) -> Line | None:
        match adapter.residence:
            case Residence.DEVICE:
                return self.ready
            case Residence.HOST:
                return self.to_page_in
            case Residence.DISK:
                return self.to_stage
            case _:
                return None

    # Moves begin.

    def stage(self, adapter: Adapter) -> None:
        """Copy the bundle from disk to host memory."""
        adapter.move(Residence.STAGING)
        self.staging += 1
        self.host_bytes += adapter.version.bundle_bytes
        self._out.commands.append(Send(StageCommand(adapter.digest)))
        self._changed(adapter)

    def place(self, adapter: Adapter, first_page: int, victims: tuple[Adapter, ...]) -> None:
        """Give the adapter a slot and the run at `first_page`, which it owns as victims leave."""
        adapter.move(Residence.PLACING)
        adapter.first_page = first_page
        adapter.slot = heappop(self.slots_free)
        adapter.missing = len(victims)
        self.paging_in += 1
        start = first_page
        for victim in sorted(victims, key=lambda victim: victim.first_page):
            if start < victim.first_page:
                self.blocks.reclaim(start, victim.first_page)
            start = max(start, victim.stop_page)
        if start < adapter.stop_page:
            self.blocks.reclaim(start, adapter.stop_page)
        for victim in victims:
            self.evict_device(victim, claimed_by=adapter)
        self._changed(adapter)
        if not victims:
            self._start_page_in(adapter)

    def _start_page_in(self, adapter: Adapter) -> None:
        adapter.move(Residence.PAGING_IN)
        command = PageIn(adapter.digest, adapter.slot, adapter.first_page, adapter.pages)
        self._out.commands.append(Send(command))

    def evict_device(self, adapter: Adapter, *, claimed_by: Adapter | None = None) -> None:
        """Send an unpinned device copy away; its pages come when that is answered."""
        assert adapter.pins == 0, f"{adapter.digest} is pinned"
        adapter.move(Residence.LEAVING_DEVICE)
        adapter.claimed_by = claimed_by
        self.slots_leaving += 1
        self.pages_leaving += adapter.pages - _overlap(adapter, claimed_by)
        self.counters.device_evictions += 1
        self._out.commands.append(Send(Evict(adapter.digest, Tier.DEVICE)))
        self._changed(adapter)

    def drain(self, adapter: Adapter, number: int) -> None:
        """Let nobody else begin with the adapter, and send it away after those who have."""
        adapter.drained_for = number
        if adapter.pins == 0:
            self.evict_device(adapter)
        else:
            adapter.move(Residence.DRAINING)
            self._changed(adapter)

    def unpin(self, adapter: Adapter) -> None:
        """One sequence fewer may use the device copy."""
        assert adapter.pins > 0
        adapter.pins -= 1
        if not adapter.pins:
            self.settle(adapter)
            if adapter.residence is Residence.DRAINING:
                self.evict_device(adapter)

    def evict_host(self, adapter: Adapter) -> None:
        """Send the host copy away; a device copy stays."""
        adapter.host = HostCopy.LEAVING
        if adapter.residence is Residence.HOST:
            adapter.move(Residence.LEAVING_HOST)
        self.host_leaving_bytes += adapter.version.bundle_bytes
        self.counters.host_evictions += 1
        self._out.commands.append(Send(Evict(adapter.digest, Tier.HOST)))
        self._changed(adapter)

    def evict_disk(self, adapter: Adapter) -> None:
        """Send the last copy of an unused version away."""
        assert adapter.users == 0, f"{adapter.digest} is used"
        adapter.move(Residence.LEAVING_DISK)
        self.disk_leaving += 1
        self.disk_leaving_bytes += adapter.version.bundle_bytes
        self.counters.disk_evictions += 1
        self._out.commands.append(Send(Evict(adapter.digest, Tier.DISK)))
        self._changed(adapter)

    # Moves end.

    def on_moved(self, event: Moved) -> None:
        """A bundle has come one tier nearer."""
        adapter = self.adapters.get(event.digest)
        residence = adapter.residence if adapter else None
        if adapter and event.tier is Tier.HOST and residence is Residence.STAGING:
            self.staging -= 1
            self.counters.stages += 1
            self.counters.staged_bytes += adapter.version.bundle_bytes
            adapter.host = HostCopy.HELD
            adapter.move(Residence.HOST)
        elif adapter and event.tier is Tier.DEVICE and residence is Residence.PAGING_IN:
            self.paging_in -= 1
            self.counters.page_ins += 1
            self.counters.paged_in_bytes += adapter.version.bundle_bytes
            adapter.move(Residence.DEVICE)
        else:
            self.counters.strays += 1
            return
        adapter.retries = 0
        self._changed(adapter)

    def on_move_failed(self, event: MoveFailed) -> Adapter | None:
        """Put the bundle back where it was; the adapter whose move it was, if any."""
        adapter = self.adapters.get(event.digest)
        residence = adapter.residence if adapter else None
        if adapter and event.tier is Tier.HOST and residence is Residence.STAGING:
            self.staging -= 1
            self.host_bytes -= adapter.version.bundle_bytes
            adapter.move(Residence.DISK)
        elif adapter and event.tier is Tier.DEVICE and residence is Residence.PAGING_IN:
            self.paging_in -= 1
            self._vacate(adapter)
            adapter.move(Residence.HOST)
        elif adapter and self._is_leaving(adapter, event.tier):
            reason = f"{event.digest} could not be evicted from {event.tier.name}: {event.error}"
            self._out.answers.append(Disconnect(reason))
            return None
        else:
            self.counters.strays += 1
            return None
        self.counters.move_failures += 1
        adapter.retries += 1
        self._changed(adapter)
        return adapter

    def on_evicted(self, event: Evicted) -> Adapter | None:
        """A copy is gone and its bytes are free; the adapter, if that was its last copy."""
        adapter = self.adapters.get(event.digest)
        if adapter is None or not self._is_leaving(adapter, event.tier):
            self.counters.strays += 1
            return None
        size = adapter.version.bundle_bytes
        match event.tier:
            case Tier.DEVICE:
                self._leave_device(adapter)
            case Tier.HOST:
                self.host_leaving_bytes -= size
                self.host_bytes -= size
                adapter.host = HostCopy.NONE
                if adapter.residence is Residence.LEAVING_HOST:
                    adapter.move(Residence.DISK)
                self._changed(adapter)
            case _:
                self.disk_leaving -= 1
                self.disk_leaving_bytes -= size
                self.disk_bytes -= size
                return adapter
        return None

    def _leave_device(self, adapter: Adapter) -> None:
        claimant, adapter.claimed_by = adapter.claimed_by, None
        self.slots_leaving -= 1
        self.pages_leaving -= adapter.pages - _overlap(adapter, claimant)
        first, stop = adapter.first_page, adapter.stop_page
        adapter.drained_for = -1
        self._vacate(adapter)
        if claimant is not None:
            self.pool.take_exact(max(first, claimant.first_page), min(stop, claimant.stop_page))
            claimant.missing -= 1
            if claimant.missing == 0:
                self._start_page_in(claimant)
        adapter.move(_BELOW_DEVICE[adapter.host])
        self._changed(adapter)

    def _is_leaving(self, adapter: Adapter, tier: Tier) -> bool:
        match tier:
            case Tier.DEVICE:
                return adapter.residence is Residence.LEAVING_DEVICE
            case Tier.HOST:
                return adapter.host is HostCopy.LEAVING
            case Tier.DISK:
                return adapter.residence is Residence.LEAVING_DISK
            case Tier.ABSENT:
                return False

    def _vacate(self, adapter: Adapter) -> None:
        self.pool.give_run(adapter.first_page, adapter.stop_page)
        heappush(self.slots_free, adapter.slot)
        adapter.first_page, adapter.slot = -1, 0

    def _changed(self, adapter: Adapter) -> None:
        self.settle(adapter)
        if adapter.kept > adapter.at_hand:
            self.unsettled.update(dict.fromkeys(adapter.keepers))
        self._relocate(adapter)

    def settle(self, adapter: Adapter) -> None:
        """Let the groups say what the adapter's state says."""
        belongs = groups_of(adapter) if adapter.digest in self.adapters else 0
        changed = belongs ^ adapter.groups
        if not changed:
            return
        adapter.groups = belongs
        left = changed
        while left:
            bit = left & -left
            left ^= bit
            group, idle_in = self._groups[bit]
            if belongs & bit:
                group[adapter.digest] = adapter
                if idle_in is not None:
                    self.eviction.enter(idle_in, adapter)
            else:
                del group[adapter.digest]
        if changed & AdapterGroup.DEVICE_IDLE:
            offered = belongs & AdapterGroup.DEVICE_IDLE
            change = self.pool.offer if offered else self.pool.withdraw
            change(adapter.first_page, adapter.stop_page)


_BELOW_DEVICE: Mapping[HostCopy, Residence] = {
    HostCopy.HELD: Residence.HOST,
    HostCopy.LEAVING: Residence.LEAVING_HOST,
    HostCopy.NONE: Residence.DISK,
}


def _overlap(victim: Adapter, claimant: Adapter | None) -> int:
    """Pages of the victim that its claimant takes over."""
    if claimant is None:
        return 0
    start = max(victim.first_page, claimant.first_page)
    return min(victim.stop_page, claimant.stop_page) - start
