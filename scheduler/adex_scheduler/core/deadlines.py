"""When waiting sequences have waited too long: each once, the earliest first."""

from collections.abc import Iterator
from heapq import heappop, heappush

from adex_scheduler.core.sequence import Sequence


class Deadlines:
    """Points in time by which sequences must have begun. One that has begun is not looked at."""

    def __init__(self, wait_s_max: float) -> None:
        self._wait_s_max = wait_s_max
        self._heap: list[tuple[float, int]] = []

    def begin(self, sequence: Sequence, now: float) -> None:
        """The sequence waits from now on: as long as any may, or until its own `begin_by`."""
        latest = now + self._wait_s_max
        begin_by = latest if sequence.begin_by is None else min(sequence.begin_by, latest)
        sequence.give_up_at = begin_by
        heappush(self._heap, (begin_by, sequence.number))

    def passed(self, sequences: dict[int, Sequence], now: float) -> Iterator[Sequence]:
        """Those that have not begun in time; each is told of once."""
        while self._heap and self._heap[0][0] <= now:
            at, number = heappop(self._heap)
            sequence = sequences.get(number)
            # One that lost its worker waits anew; what was meant for its first wait is void.
            if sequence is not None and not sequence.began and sequence.give_up_at == at:
                yield sequence
