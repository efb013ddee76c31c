"""Which adapter moves when: the least recently used leaves, the longest waiting comes.

An adapter that someone waits for is displaced only for running sequences that need its pages, or
for a sequence that has been bypassed too often. Each call looks at a bounded window of the lines,
so its cost depends on the window and not on how many adapters or sequences there are.
"""

from collections.abc import Iterator
from itertools import islice

from adex_scheduler.core.adapters import Adapter, Residence
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.room import find_room
from adex_scheduler.core.sequence import Sequence
from adex_scheduler.core.tiers import Tiers

# Sequences looked at for each link in one call, and idle adapters considered for one run of pages.
WINDOW = 8
CANDIDATES = 32
# How many names are looked through for one whose source is not busy.
NAMES = 256


class Paging:
    """Decides moves; the books are kept by residency and tiers.

    `keep_pages` is what page-ins must leave available: promised to admitted prompts, or awaited by
    the head of the queue.
    """

    def __init__(self, limits: Limits, residency: Residency, tiers: Tiers) -> None:
        self._limits = limits
        self._residency = residency
        self._tiers = tiers
        self._blocked: Sequence | None = None
        self._bypassed = 0
        self.keep_pages = 0

    @property
    def held_for(self) -> Sequence | None:
        """The sequence that has been bypassed so often that no other may be admitted before it."""
        return self._blocked if self._bypassed >= self._limits.bypass_max else None

    @property
    def blocked(self) -> Sequence | None:
        """The sequence whose adapter found no room, and whose bypassing is counted."""
        return self._blocked

    def note_admission(self, sequence: Sequence, *, unfair: bool) -> None:
        """Count a younger sequence that went first although its tenant was served no less."""
        blocked = self._blocked
        if blocked is sequence:
            self._blocked = None
        elif blocked is not None and unfair and sequence.number > blocked.number:
            self._bypassed += 1

    def note_gone(self, sequence: Sequence) -> None:
        """The sequence waits no more."""
        if self._blocked is sequence:
            self._blocked = None

    def advance(self) -> None:
        """Begin every move that is wanted, allowed and has room."""
        self._trim_disk()
        self._fetch()
        if self._tiers.to_stage:
            self._stage()
        if self._tiers.to_page_in:
            self._page_in()

    def relinquish(self, pages: int, *, wanted: bool, spare: Adapter | None = None) -> None:
        """Evict idle adapters until `pages` pages are leaving, or no candidate is left.

        `wanted`: those that someone waits for too, the latest needed first, except `spare`.
        """
        tiers = self._tiers
        while tiers.pages_leaving < pages and tiers.device_idle:
            tiers.evict_device(next(iter(tiers.device_idle.values())))
        if not wanted or tiers.pages_leaving >= pages:
            return
        for adapter in self._wanted_latest_first(spare):
            if tiers.pages_leaving >= pages:
                return
            tiers.evict_device(adapter)

    def adapter_of(self, sequence: Sequence | None) -> Adapter | None:
        """The version a sequence is bound to, if any."""
        return self._tiers.adapters[sequence.digest] if sequence and sequence.digest else None

    # Each link.

    def _trim_disk(self) -> None:
        """Bring the disk back into its budget: unused versions leave, tier by tier."""
        tiers = self._tiers
        while tiers.disk_bytes - tiers.disk_leaving_bytes > tiers.info.disk_bytes:
            if tiers.disk_idle:
                self._residency.evict_disk(next(iter(tiers.disk_idle.values())))
                continue
            if not tiers.host_leaving_bytes and not tiers.slots_leaving:
                # Only what is nowhere else can leave the disk, so one leaves a nearer tier first.
                spare = islice(tiers.host_idle.values(), CANDIDATES)
                unused = [a for a in spare if a.residence is Residence.HOST]
                if unused:
                    tiers.evict_host(unused[0])
                elif tiers.device_idle:
                    tiers.evict_device(next(iter(tiers.device_idle.values())))
            return

    def _fetch(self) -> None:
        residency, tiers = self._residency, self._tiers
        # While the disk is over its budget and nothing can go, nothing more is brought.
        full = tiers.disk_bytes - tiers.disk_leaving_bytes > tiers.info.disk_bytes
        while not full and residency.fetching < self._limits.fetches_max:
            keys = (sequence.key for sequence in tiers.to_fetch.window(NAMES))
            key = next((key for key in keys if key and residency.may_fetch(key)), None)
            if key is None:
                break
            alias = residency.names.get(key)
            assert alias is not None
            residency.begin_fetch(alias)
        while residency.fetching < self._limits.fetches_max:
            stale = islice(residency.stale.values(), NAMES)
            old = next((alias for alias in stale if residency.may_fetch(alias.key)), None)
            if old is None:
                break
            residency.begin_fetch(old)

    def _stage(self) -> None:
        """Bring bundles into host memory, strictly in order: a large one is never overtaken."""
        tiers = self._tiers
        while tiers.staging < self._limits.stages_max:
            held = self.held_for
            sequence = (
                held if held is not None and held in tiers.to_stage else tiers.to_stage.first()
            )
            if sequence is None:
                return
            adapter = tiers.adapters[sequence.digest]
            if not self._find_host_room(adapter.version.bundle_bytes, wanted=sequence is held):
                return
            tiers.stage(adapter)

    def _find_host_room(self, size: int, *, wanted: bool) -> bool:
        """Whether `size` bytes of host memory are free; if not, idle copies are sent away.

        `wanted`: those that someone waits for too, the latest needed first.
        """
        tiers = self._tiers

        def short() -> bool:
            return tiers.host_bytes - tiers.host_leaving_bytes + size > tiers.info.host_bytes

        while tiers.host_idle and short():
            tiers.evict_host(next(iter(tiers.host_idle.values())))
        if wanted and short():
            waiting = {s.digest for s in tiers.to_page_in.members()}
            copies = [tiers.adapters[digest] for digest in sorted(waiting)]
            for adapter in sorted(copies, key=lambda adapter: -adapter.first_waiting()):
                if short():
                    tiers.evict_host(adapter)
        return tiers.host_bytes + size <= tiers.info.host_bytes

    def _page_in(self) -> None:
        """Bring bundles onto the device as they find room, but a held one before all others."""
        tiers = self._tiers
        while tiers.paging_in < self._limits.page_ins_max:
            held = self.held_for
            exclusive = held is not None and held in tiers.to_page_in
            window = [held] if held and exclusive else tiers.to_page_in.window(WINDOW)
            too_large = tiers.info.pages + 1
            for sequence in window:
                adapter = tiers.adapters[sequence.digest]
                # What could not place one adapter will not place one at least as large.
                if adapter.pages < too_large and self._place(adapter, sequence):
                    break
                too_large = min(too_large, adapter.pages)
                if self._blocked is None:
                    self._blocked, self._bypassed = sequence, 0
            else:
                return

    def _place(self, adapter: Adapter, sequence: Sequence) -> bool:
        tiers = self._tiers
        held = sequence is self.held_for
        if not tiers.slots_free:
            if not tiers.slots_leaving:
                self.relinquish(1, wanted=held, spare=adapter)
            return False
        candidates: Iterator[Adapter] = islice(tiers.device_idle.values(), CANDIDATES)
        if held:
            candidates = self._idle_then_wanted(adapter)
        room = find_room(adapter.pages, tiers.pool, candidates)
        if room is None:
            return False
        stop = room.first + adapter.pages
        displaced = sum(
            min(victim.stop_page, stop) - max(victim.first_page, room.first)
            for victim in room.victims
        )
        short = self.keep_pages + adapter.pages - displaced - tiers.blocks.available
        if short > 0:
            self.relinquish(short, wanted=held, spare=adapter)
            return False
        tiers.place(adapter, room.first, room.victims)
        return True

    def _idle_then_wanted(self, spare: Adapter) -> Iterator[Adapter]:
        yield from list(self._tiers.device_idle.values())
        yield from self._wanted_latest_first(spare)

    def _wanted_latest_first(self, spare: Adapter | None) -> list[Adapter]:
        wanted = [a for a in self._tiers.device_wanted.values() if a is not spare]
        return sorted(wanted, key=lambda adapter: -adapter.first_waiting())
