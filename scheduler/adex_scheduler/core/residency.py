"""What sequences want of adapters: names resolved, versions bound, device copies pinned.

A name is an alias: a request binds to the version it means at that moment and keeps it. A name
resolved longer ago than `alias_ttl_s` is resolved again beside the request, not before it, unless
it is a credentialed one: then only the source can say whether the request may still have it.
`failed` collects the sequences that an event has doomed; they stand nowhere any more.
"""

from collections import Counter, OrderedDict
from typing import assert_never

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import (
    AdapterTooLarge,
    AdexError,
    CacheFull,
    CallerError,
    SourceUnavailable,
)
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Held,
    Moved,
    MoveFailed,
)
from adex_proto.plan import Fetch
from adex_scheduler.core.adapters import Adapter, Alias, Names, Residence
from adex_scheduler.core.disk_room import DiskRoom
from adex_scheduler.core.fairness import Line, owe
from adex_scheduler.core.instructions import Outbox, Send
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.sequence import Sequence
from adex_scheduler.core.tiers import Tiers


class Residency:
    """Names and bindings of the sequences, over the tiers of one worker."""

    def __init__(self, limits: Limits, tiers: Tiers, out: Outbox) -> None:
        self.names = Names(limits.aliases_max)
        self.stale: OrderedDict[AdapterKey, Alias] = OrderedDict()
        self.failed: list[tuple[Sequence, AdexError]] = []
        self.fetching = 0
        self.fetching_by_line: Counter[Line] = Counter()
        self.disk_room = DiskRoom()
        self._limits = limits
        self._tiers = tiers
        self._out = out

    # What sequences ask for.

    def want(self, sequence: Sequence, now: float) -> AdexError | None:
        """Let a sequence that stands nowhere wait for what it needs, or say why it never can."""
        if sequence.key is None:
            self._tiers.stand(sequence, self._tiers.ready)
            return None
        alias, forgotten = self.names.use(sequence.key)
        for other in forgotten:
            self._drop_meaning(other)
            self.stale.pop(other.key, None)
        if sequence.errand is not None and sequence.errand.anew:
            self._await_meaning(sequence, alias)
            return None
        old = now - alias.resolved_at >= self._limits.alias_ttl_s
        if old and alias.key.credentialed:
            self._drop_meaning(alias)
        if alias.digest is not None:
            if old and not alias.fetching:
                self.stale[alias.key] = alias
            return self._bind(sequence, self._tiers.adapters[alias.digest], now)
        if alias.error is not None and now < alias.failed_until:
            return alias.error
        self._await_meaning(sequence, alias)
        return None

    def forget(self, key: AdapterKey) -> bool:
        """Let the name mean nothing, its failure included; whether anything was known of it."""
        alias = self.names.get(key)
        if alias is None:
            return False
        self._drop_meaning(alias)
        self.stale.pop(key, None)
        alias.error = None
        if not alias.fetching and not alias.waiting:
            self.names.forget(alias)
        return True

    def let_go(self, alias: Alias) -> None:
        """The name keeps its version in no tier any more."""
        adapter = self._tiers.adapters.get(alias.digest or "")
        if adapter is not None and alias.key in adapter.keepers:
            adapter.keep(alias.key, Tier.ABSENT)
            self._tiers.settle(adapter)

    def rejoin(self, sequence: Sequence) -> None:
        """Let a preempted sequence wait again, for the version it began with."""
        if sequence.digest:
            self._tiers.wait(sequence, self._tiers.adapters[sequence.digest])
        else:
            self._tiers.stand(sequence, self._tiers.ready)

    def withdraw(self, sequence: Sequence) -> None:
        """Take a waiting sequence out of everything it stands in."""
        self._tiers.leave(sequence)
        if sequence.digest:
            adapter = self._tiers.adapters[sequence.digest]
            del adapter.waiting[sequence.number]
            self._tiers.settle(adapter)
        elif sequence.key is not None:
            alias = self.names.get(sequence.key)
            assert alias is not None
            del alias.waiting[sequence.number]

    def pin(self, sequence: Sequence, now: float) -> None:
        """A ready sequence begins to run: its adapter may not leave the device."""
        self._tiers.ready.remove(sequence)
        if sequence.digest:
            adapter = self._tiers.adapters[sequence.digest]
            assert adapter.residence is Residence.DEVICE
            del adapter.waiting[sequence.number]
            adapter.pins += 1
            adapter.used_at = now
            sequence.slot = adapter.slot
            if adapter.pins == 1:
                self._tiers.settle(adapter)

    def unpin(self, sequence: Sequence, now: float) -> None:
        """No step touches the sequence any more."""
        if sequence.digest:
            adapter = self._tiers.adapters[sequence.digest]
            adapter.used_at = now
            self._tiers.unpin(adapter)

    def _bind(self, sequence: Sequence, adapter: Adapter, now: float) -> AdexError | None:
        error = self._too_large(sequence, adapter)
        if error is None:
            adapter.used_at = now
            if sequence.errand is None:
                self._tiers.eviction.note_use(adapter, now)
            self._tiers.wait(sequence, adapter)
        return error

    def _too_large(self, sequence: Sequence, adapter: Adapter) -> AdexError | None:
        info = self._tiers.info
        size = adapter.version.bundle_bytes
        if size > info.host_bytes:
            return AdapterTooLarge(
                f"The adapter takes {size} bytes, host memory for adapters has {info.host_bytes}",
                field="adapter_id",
                remedy="Use an adapter of lower rank, or give the worker more host memory",
            )
        blocks = self._tiers.blocks.blocks_for(sequence.positions_max)
        if adapter.pages + blocks > info.pages:
            return AdapterTooLarge(
                f"The adapter takes {adapter.pages} pages and the request up to {blocks}, the "
                f"device has {info.pages}",
                field="adapter_id",
                remedy="Send a shorter prompt or fewer max_new_tokens, or use a smaller adapter",
            )
        return None

    def _await_meaning(self, sequence: Sequence, alias: Alias) -> None:
        alias.waiting[sequence.number] = sequence
        self._tiers.stand(sequence, None if alias.fetching else self._tiers.fetch_line(alias.key))

    # What the worker answers.

    def on_answer(self, event: AdapterEvent, now: float) -> None:
        """Take in what became of a command."""
        match event:
            case Fetched():
                self.on_fetched(event, now)
            case FetchFailed():
                self.on_fetch_failed(event, now)
            case Moved():
                self._tiers.on_moved(event)
            case MoveFailed():
                self.on_move_failed(event, now)
            case Evicted():
                self.on_evicted(event, now)
            case _:
                assert_never(event)

    # Resolving names.

    def begin_fetch(self, alias: Alias, asked_by: Sequence | None = None) -> None:
        """Have the name resolved; those who wait for it leave the line."""
        alias.fetching = True
        alias.asked_by = asked_by
        self.fetching += 1
        self.fetching_by_line[self._tiers.fetch_line(alias.key)] += 1
        self.stale.pop(alias.key, None)
        for number in sorted(alias.waiting):
            sequence = alias.waiting[number]
            self._tiers.leave(sequence)
            if sequence.errand is not None:
                sequence.errand.asked = True
        self._out.commands.append(Send(Fetch(alias.key)))

    def may_fetch(self, line: Line) -> bool:
        """Whether one more name of this line's source may be resolved beside those under way.

        No source may take them all: one that hangs would keep the others from being asked.
        """
        most = self._limits.fetches_max
        return self.fetching_by_line[line] < max(1, most - most // 4)

    def on_fetched(self, event: Fetched, now: float) -> None:
        """The name has a version now; whoever waited for the name waits for the version."""
        alias = self._fetching_alias(event.key)
        if alias is None:
            return
        self._tiers.counters.fetches += 1
        is_new = event.version.digest not in self._tiers.adapters
        adapter = self._tiers.register(event.version)
        if is_new and alias.asked_by is not None:
            owe(alias.asked_by, Tier.DISK, adapter.pages * self._tiers.blocks.block_tokens)
        alias.asked_by = None
        if alias.digest != adapter.digest:
            self._drop_meaning(alias)
            alias.digest = adapter.digest
            adapter.names[alias.key] = None
        alias.resolved_at = now
        alias.error = None
        alias.found_full = 0
        for sequence in self._answered(alias):
            error = self._bind(sequence, adapter, now)
            if error is not None:
                self.failed.append((sequence, error))

    def on_fetch_failed(self, event: FetchFailed, now: float) -> None:
        """Fail exactly those who waited for the name; remember the error for a short while."""
        alias = self._fetching_alias(event.key)
        if alias is None:
            return
        self._tiers.counters.fetch_failures += 1
        alias.asked_by = None
        if isinstance(event.error, CacheFull) and self._makes_room_for(alias, now):
            for sequence in self._answered(alias):
                self._await_meaning(sequence, alias)
            return
        alias.found_full = 0
        if alias.digest is not None and not isinstance(event.error, CallerError):
            # Its source does not answer: the version known so far serves until it does.
            alias.resolved_at = now
        else:
            self._drop_meaning(alias)
            self._remember_failure(alias, event.error, now)
        self.failed.extend((sequence, event.error) for sequence in self._answered(alias))

    def _makes_room_for(self, alias: Alias, now: float) -> bool:
        """Whether copies leave a full disk, so that the name is worth another try.

        Those that nobody uses leave at once, others when they are used no more. Who found the disk
        full before they have left waits for the same room.
        """
        tiers = self._tiers
        if not alias.waiting or tiers.disk_leaving:
            return bool(alias.waiting)
        loose = (a for a in tiers.adapters.values() if a.kept is Tier.ABSENT)
        leaving = sum(adapter.version.bundle_bytes for adapter in loose)
        lowered = self.disk_room.lower(tiers.disk_bytes, leaving, alias.found_full, now)
        alias.found_full += lowered
        return lowered

    def _answered(self, alias: Alias) -> list[Sequence]:
        """Those who waited for the resolution that has ended; who asked since waits for the next.

        Such a one asked for the name to be resolved anew while it was being resolved already.
        """
        waiting = _take_all(alias.waiting)
        for sequence in waiting:
            if _waits_for_next(sequence):
                self._await_meaning(sequence, alias)
        return [sequence for sequence in waiting if not _waits_for_next(sequence)]

    def _fetching_alias(self, key: AdapterKey) -> Alias | None:
        alias = self.names.get(key)
        if alias is None or not alias.fetching:
            self._tiers.counters.strays += 1
            return None
        alias.fetching = False
        self.fetching -= 1
        self.fetching_by_line[self._tiers.fetch_line(key)] -= 1
        return alias

    def _remember_failure(self, alias: Alias, error: AdexError, now: float) -> None:
        alias.error = error
        alias.failed_until = now + self._limits.failure_ttl_s

    def _drop_meaning(self, alias: Alias) -> None:
        if alias.digest is not None:
            self.let_go(alias)
            adapter = self._tiers.adapters.get(alias.digest)
            if adapter is not None:
                # While there is no worker, nobody knows what is held.
                adapter.names.pop(alias.key, None)
            alias.digest = None
            if alias.pinned:
                self._tiers.unsettled[alias.key] = None

    # Versions that go wrong or go away.

    def on_move_failed(self, event: MoveFailed, now: float) -> None:
        """A failed move is tried again a few times; then it fails those who wait for it."""
        adapter = self._tiers.on_move_failed(event)
        if adapter is None:
            return
        if adapter.waiting and adapter.retries <= self._limits.move_retries_max:
            return
        adapter.retries = 0
        waiting = _take_all(adapter.waiting)
        for sequence in waiting:
            self._tiers.leave(sequence)
            self.failed.append((sequence, event.error))
        self._tiers.settle(adapter)
        if event.tier is Tier.HOST and not adapter.users:
            # The copy on disk may be what is broken, or gone: the next request fetches it anew.
            for alias in self._unname(adapter):
                if waiting:
                    self._remember_failure(alias, event.error, now)
            self._tiers.evict_disk(adapter)

    def evict_disk(self, adapter: Adapter) -> None:
        """Send an unused version away for good; its names mean nothing until resolved again."""
        self._unname(adapter)
        self._tiers.evict_disk(adapter)

    def on_evicted(self, event: Evicted, now: float) -> None:
        """After the last copy: whoever was bound to it meanwhile waits for the name again."""
        adapter = self._tiers.on_evicted(event)
        if adapter is None:
            return
        self._unname(adapter)
        self._tiers.remove(adapter)
        for sequence in _take_all(adapter.waiting):
            self._tiers.leave(sequence)
            sequence.digest = ""
            error: AdexError | None = SourceUnavailable("The adapter's version is gone")
            if not sequence.began:
                error = self.want(sequence, now)
            if error is not None:
                self.failed.append((sequence, error))

    def _unname(self, adapter: Adapter) -> list[Alias]:
        aliases = [alias for key in adapter.names if (alias := self.names.get(key)) is not None]
        for alias in aliases:
            self._drop_meaning(alias)
            self.stale.pop(alias.key, None)
        return aliases

    # The worker comes and goes.

    def take_over(self, held: tuple[Held, ...]) -> None:
        """Know what a worker holds when its stream opens. No sequence stands anywhere yet."""
        self.fetching = 0
        self.fetching_by_line.clear()
        self.stale.clear()
        self.disk_room.forget()
        for copy in held:
            self._tiers.register(copy.version, on_host=copy.tier is Tier.HOST)
        for alias in self.names.all():
            alias.fetching = False
            alias.asked_by = None
            alias.waiting.clear()
            adapter = self._tiers.adapters.get(alias.digest or "")
            alias.digest = adapter.digest if adapter else None
            if adapter:
                adapter.names[alias.key] = None


def _waits_for_next(sequence: Sequence) -> bool:
    errand = sequence.errand
    return errand is not None and errand.anew and not errand.asked


def _take_all(waiting: dict[int, Sequence]) -> list[Sequence]:
    """The sequences by number; the dictionary is empty afterwards."""
    taken = [waiting[number] for number in sorted(waiting)]
    waiting.clear()
    return taken
