"""Turns on the device: nobody's adapter stays so long that another's never comes.

An adapter in use, or with sequences waiting to use it, keeps its place for a turn. A sequence whose
adapter has found no room for as long is due: for it, adapters whose turn is over and whose own
waiting sequences are served later in fair order are drained. A sequence that fair order puts before
all others, and that is due several times over, holds admissions back until it runs: by then
whatever is in its way has ended.
"""

from math import isfinite

from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.fairness import Rank, rank
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.sequence import Sequence
from adex_scheduler.core.tiers import Tiers

# Turns after which the first in fair order holds admissions back.
HOLD_TURNS = 4
# The parts of a turn after which adapters are looked through again for one that may be drained.
_LOOKS_PER_TURN = 16


class Turns:
    """Who has been blocked for how long, and which adapters have had their turn."""

    def __init__(self, limits: Limits, tiers: Tiers) -> None:
        self._limits = limits
        self._tiers = tiers
        self._admissions = 0
        self._held_for: Sequence | None = None
        self._looked_at = 0.0
        self._looked_after = 0

    @property
    def held_for(self) -> Sequence | None:
        """The one sequence that may be admitted next, if it has come to that."""
        return self._held_for

    def begin(self, adapter: Adapter, now: float) -> None:
        """The adapter comes to the device."""
        adapter.placed_at, adapter.placed_after = now, self._admissions

    def note_admission(self, sequence: Sequence) -> None:
        """One more sequence runs."""
        self._admissions += 1
        self.note_gone(sequence)

    def note_gone(self, sequence: Sequence) -> None:
        """The sequence waits no more."""
        if self._held_for is sequence:
            self._held_for = None

    def note_blocked(self, sequence: Sequence, now: float) -> None:
        """The sequence's adapter has found no room in host memory, or none on the device."""
        if sequence.blocked_at is None:
            sequence.blocked_at, sequence.blocked_after = now, self._admissions
        elif self._held_for is None and self._is_due(sequence, now, turns=HOLD_TURNS):
            tiers = self._tiers
            lines = (tiers.ready, tiers.to_page_in, tiers.to_stage)
            firsts = [first for line in lines if (first := line.first()) is not None]
            # Hints, which are behind everyone, hold nobody back.
            if sequence is min(firsts, key=rank) and isfinite(sequence.payer.served):
                self._held_for = sequence

    def displaceable(self, sequence: Sequence, now: float) -> list[Adapter]:
        """Adapters that must make way for the sequence's, the least deserving first.

        Empty while the sequence is not due, while room is being made for it, and between looks.
        """
        if not self._is_due(sequence, now) or self._tiers.slots_leaving:
            return []
        if any(a.drained_for == sequence.number for a in self._tiers.draining.values()):
            return []
        limits = self._limits
        if (
            now - self._looked_at < limits.turn_s / _LOOKS_PER_TURN
            and self._admissions - self._looked_after < limits.turn_admissions / _LOOKS_PER_TURN
        ):
            return []
        self._looked_at, self._looked_after = now, self._admissions
        own_rank = rank(sequence)
        tiers = self._tiers
        behind = [
            (adapter_rank, adapter)
            for group in (tiers.device_wanted, tiers.device_pinned)
            for adapter in group.values()
            if (adapter_rank := _rank_of(adapter)) > own_rank
            and self._is_over(adapter.placed_at, adapter.placed_after, now, turns=1)
        ]
        behind.sort(key=lambda pair: pair[0], reverse=True)
        return [adapter for _, adapter in behind]

    def _is_due(self, sequence: Sequence, now: float, turns: int = 1) -> bool:
        at = sequence.blocked_at
        return at is not None and self._is_over(at, sequence.blocked_after, now, turns)

    def _is_over(self, since: float, after: int, now: float, turns: int) -> bool:
        limits = self._limits
        return (
            now - since >= turns * limits.turn_s
            or self._admissions - after >= turns * limits.turn_admissions
        )


def _rank_of(adapter: Adapter) -> Rank:
    """The rank of the oldest that waits for it; behind everyone, those nobody waits for, the one
    that has been there longest last of all."""
    if not adapter.waiting:
        return float("inf"), -adapter.placed_after
    return rank(adapter.waiting[adapter.first_waiting()])
