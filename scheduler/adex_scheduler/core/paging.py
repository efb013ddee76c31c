"""Which adapter moves when: the idle copy worth least leaves, the longest waiting comes.

An adapter that someone waits for is displaced only for running sequences that need its pages, or
when it has had its turn and another is due. Each call looks at a bounded window of the lines,
so its cost depends on the window and not on how many adapters or sequences there are.
"""

from collections.abc import Iterator
from itertools import chain, islice

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, Residence
from adex_scheduler.core.fairness import owe, rank
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.room import Room, find_among_idle, find_room
from adex_scheduler.core.sequence import Sequence
from adex_scheduler.core.tiers import Tiers
from adex_scheduler.core.turns import Turns

# Sequences looked at for each link in one call.
WINDOW = 8


class Paging:
    """Decides moves; the books are kept by residency and tiers.

    `keep_pages` is what page-ins must leave available: promised to admitted prompts, or awaited by
    the head of the queue.
    """

    def __init__(self, limits: Limits, residency: Residency, tiers: Tiers, turns: Turns) -> None:
        self._limits = limits
        self._residency = residency
        self._tiers = tiers
        self._turns = turns
        self.keep_pages = 0
        self._cleared_for: Sequence | None = None
        # Runs as long as this were not to be had when so much had come loose.
        self._too_long = tiers.pool.pages + 1
        self._loosened = -1

    def advance(self, now: float) -> None:
        """Begin every move that is wanted, allowed and has room."""
        self._trim_disk(now)
        if any(self._tiers.to_fetch.values()) or self._residency.stale:
            self._fetch(now)
        if self._tiers.to_stage:
            self._stage(now)
        if self._tiers.to_page_in:
            self._page_in(now)

    def relinquish(
        self,
        pages: int,
        now: float,
        *,
        wanted: bool,
        kept: bool = False,
        spare: Adapter | None = None,
    ) -> None:
        """Evict idle adapters until `pages` pages are leaving, or no candidate is left.

        `wanted`: those that someone waits for too, the latest needed first, except `spare`.
        `kept`: at last those an operator has pinned, which come back when there is room.
        """
        tiers = self._tiers
        while tiers.pages_leaving < pages and tiers.device_idle:
            tiers.evict_device(self._first_on_device(now))
        if not wanted or tiers.pages_leaving >= pages:
            return
        for adapter in [*self._wanted_latest_first(spare), *(self._kept(spare) if kept else ())]:
            if tiers.pages_leaving >= pages:
                return
            tiers.evict_device(adapter)

    def adapter_of(self, sequence: Sequence | None) -> Adapter | None:
        """The version a sequence is bound to, if any."""
        return self._tiers.adapters[sequence.digest] if sequence and sequence.digest else None

    def _first_on_device(self, now: float) -> Adapter:
        return next(self._idle_on_device(now))

    def _idle_on_device(self, now: float) -> Iterator[Adapter]:
        tiers = self._tiers
        return tiers.eviction.first_to_leave(Tier.DEVICE, tiers.device_idle, now)

    # Each link.

    def _trim_disk(self, now: float) -> None:
        """Bring the disk back into its budget: unused versions leave, tier by tier."""
        tiers, most = self._tiers, self._disk_bytes_max(now)
        while tiers.disk_bytes - tiers.disk_leaving_bytes > most:
            if tiers.disk_leaving >= self._limits.disk_evictions_max:
                return
            if tiers.disk_idle:
                first = tiers.eviction.first_to_leave(Tier.DISK, tiers.disk_idle, now)
                self._residency.evict_disk(next(first))
                continue
            if not tiers.host_leaving_bytes and not tiers.slots_leaving:
                # Only what is nowhere else can leave the disk, so one leaves a nearer tier first.
                spare = tiers.eviction.first_to_leave(Tier.HOST, tiers.host_idle, now)
                unused = next((a for a in spare if a.residence is Residence.HOST), None)
                if unused is not None:
                    tiers.evict_host(unused)
                elif tiers.device_idle:
                    tiers.evict_device(self._first_on_device(now))
            return

    def _disk_bytes_max(self, now: float) -> int:
        return self._residency.disk_room.bytes_max(self._tiers.info.disk_bytes, now)

    def _fetch(self, now: float) -> None:
        residency, tiers = self._residency, self._tiers
        most = self._disk_bytes_max(now)
        # A disk that took no more takes the next only when what had to leave has gone.
        leaving = 0 if most < tiers.info.disk_bytes else tiers.disk_leaving_bytes
        # While the disk is over its budget and nothing can go, nothing more is brought.
        full = tiers.disk_bytes - leaving > most
        while not full and residency.fetching < self._limits.fetches_max:
            lines = [line for line in tiers.to_fetch.values() if line and residency.may_fetch(line)]
            heads = [head for line in lines if (head := line.first()) is not None]
            if not heads:
                break
            # Each source's line is in fair order, and so is one among their firsts.
            sequence = min(heads, key=rank)
            assert sequence.key is not None
            alias = residency.names.get(sequence.key)
            assert alias is not None
            residency.begin_fetch(alias, sequence)
        while residency.fetching < self._limits.fetches_max:
            some = islice(residency.stale.values(), WINDOW)
            may = (alias for alias in some if residency.may_fetch(tiers.fetch_line(alias.key)))
            old = next(may, None)
            if old is None:
                break
            residency.begin_fetch(old)

    def _stage(self, now: float) -> None:
        """Bring bundles into host memory, strictly in order: a large one is never overtaken."""
        tiers = self._tiers
        while tiers.staging < self._limits.stages_max:
            held = self._turns.held_for
            urgent = [s for s in (held, self._cleared_for) if s is not None and s in tiers.to_stage]
            sequence = urgent[0] if urgent else tiers.to_stage.first()
            if sequence is None:
                return
            adapter = tiers.adapters[sequence.digest]
            size = adapter.version.bundle_bytes
            kept_bytes = sum(a.version.bundle_bytes for a in tiers.host_kept.values())
            if kept_bytes + size > tiers.info.host_bytes:
                # It would never fit beside what operators have pinned, which comes back after it.
                self._cleared_for = sequence
            cleared = sequence is self._cleared_for
            if not self._find_host_room(size, now, wanted=sequence is held, kept=cleared):
                self._turns.note_blocked(sequence, now)
                return
            self._cleared_for = None
            self._owe(sequence, Tier.HOST, adapter)
            tiers.stage(adapter)

    def _find_host_room(self, size: int, now: float, *, wanted: bool, kept: bool) -> bool:
        """Whether `size` bytes of host memory are free; if not, idle copies are sent away.

        `wanted`: those that someone waits for too, the latest needed first. `kept`: at last those
        an operator has pinned.
        """
        tiers = self._tiers

        def short() -> bool:
            return tiers.host_bytes - tiers.host_leaving_bytes + size > tiers.info.host_bytes

        while tiers.host_idle and short():
            first = tiers.eviction.first_to_leave(Tier.HOST, tiers.host_idle, now)
            tiers.evict_host(next(first))
        if wanted and short():
            waiting = {s.digest for s in tiers.to_page_in.members()}
            copies = [tiers.adapters[digest] for digest in sorted(waiting)]
            for adapter in sorted(copies, key=lambda adapter: -adapter.first_waiting()):
                if short():
                    tiers.evict_host(adapter)
        for adapter in list(tiers.host_kept.values()) if kept else ():
            if short():
                tiers.evict_host(adapter)
        return tiers.host_bytes + size <= tiers.info.host_bytes

    def _page_in(self, now: float) -> None:
        """Bring bundles onto the device as they find room, but a held one before all others."""
        tiers = self._tiers
        while tiers.paging_in < self._limits.page_ins_max:
            held = self._turns.held_for
            exclusive = held is not None and held in tiers.to_page_in
            window = [held] if held and exclusive else tiers.to_page_in.window(WINDOW)
            if not any(self._place(tiers.adapters[one.digest], one, now) for one in window):
                return

    def _place(self, adapter: Adapter, sequence: Sequence, now: float) -> bool:
        """Begin to bring the adapter in, or what must happen before. Whether it has begun."""
        tiers = self._tiers
        held = sequence is self._turns.held_for
        room = None
        if tiers.slots_free:
            room = self._find_device_room(adapter, now, held=held)
        elif not tiers.slots_leaving:
            self.relinquish(1, now, wanted=held, kept=held, spare=adapter)
        if room is None:
            self._turns.note_blocked(sequence, now)
            self._make_way(adapter, sequence, now)
            return False
        stop = room.first + adapter.pages
        displaced = sum(
            min(victim.stop_page, stop) - max(victim.first_page, room.first)
            for victim in room.victims
        )
        short = self.keep_pages + adapter.pages - displaced - tiers.blocks.available
        if short > 0:
            self._turns.note_blocked(sequence, now)
            self.relinquish(short, now, wanted=held, kept=held, spare=adapter)
            return False
        self._turns.begin(adapter, now)
        self._owe(sequence, Tier.DEVICE, adapter)
        tiers.place(adapter, room.first, room.victims)
        return True

    def _owe(self, sequence: Sequence, tier: Tier, adapter: Adapter) -> None:
        owe(sequence, tier, adapter.pages * self._tiers.blocks.block_tokens)

    def _find_device_room(self, adapter: Adapter, now: float, *, held: bool) -> Room | None:
        """A run of pages for the adapter, of those of idle ones where it takes that.

        Where none was found for one as small, none is looked for again before anything has come
        loose: of those that wait for room, each would be told the same at every step.
        """
        tiers, pages = self._tiers, adapter.pages
        pool, idle = tiers.pool, tiers.device_idle.values()
        room = None
        if pool.loosened != self._loosened:
            self._loosened, self._too_long = pool.loosened, pool.pages + 1
        if pages < self._too_long and pool.find_clearable(pages) is None:
            # Not even if all that is idle went.
            self._too_long = pages
        if pages < self._too_long:
            first = self._first_for(pages, now)
            room = find_room(pages, pool, first, self._before_prefixes(now))
            room = room or find_among_idle(pages, pool, idle)
        if room is None and held:
            others = (self._wanted_latest_first(adapter), self._kept(adapter))
            room = find_room(pages, pool, chain(idle, *others))
        return room

    def _make_way(self, adapter: Adapter, sequence: Sequence, now: float) -> None:
        """Drain adapters that have had their turn, if the sequence is due and that is enough."""
        tiers = self._tiers
        victims = tuple(self._turns.displaceable(sequence, now))
        if victims and tiers.slots_free:
            candidates = chain(tiers.device_idle.values(), victims)
            room = find_room(adapter.pages, tiers.pool, candidates)
            victims = room.victims if room else ()
        elif victims:
            victims = victims[:1]
        for victim in victims:
            tiers.drain(victim, sequence.number)

    def _before_prefixes(self, now: float) -> Iterator[Adapter]:
        """Of the adapters that should leave, those unused for longer than every idle prefix is.

        An adapter that took the lowest loose pages would do away with prefixes of any age, of which
        most come again sooner than an adapter that has to leave.
        """
        since = self._tiers.blocks.idle_since
        if since is not None:
            yield from (one for one in self._idle_on_device(now) if one.used_at < since)

    def _first_for(self, pages: int, now: float) -> Iterator[Adapter]:
        """The idle adapters that should leave before all others, then one that will do alone.

        A long run is seldom found among a few, which do not lie side by side. So the longest idle
        of those that take as many `pages` comes next.
        """
        yield from self._idle_on_device(now)
        idle = self._tiers.device_idle.values()
        yield from islice((one for one in idle if one.pages >= pages), 1)

    def _kept(self, spare: Adapter | None) -> list[Adapter]:
        return [a for a in self._tiers.device_kept.values() if a is not spare]

    def _wanted_latest_first(self, spare: Adapter | None) -> list[Adapter]:
        wanted = [a for a in self._tiers.device_wanted.values() if a is not spare]
        return sorted(wanted, key=lambda adapter: -adapter.first_waiting())
