"""The device pool by page number: KV blocks from its high end, adapter runs from its low end.

A page is free, or owned, or *loose*: free pages are loose, and an owner may declare pages loose
that it would give up at any moment. Runs for adapters are looked for among the loose ones.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator

# A size and a start in one integer sort faster than a tuple; no pool has 2**40 pages.
_START_BITS = 40
_START_MASK = (1 << _START_BITS) - 1


class Intervals:
    """Disjoint half-open intervals of integers, merged where they touch.

    Every operation costs O(log n) comparisons for n intervals.
    """

    __slots__ = ("_by_size", "_by_start", "_start_of", "_stop_of", "total")

    def __init__(self) -> None:
        self.total = 0
        self._stop_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_start: list[int] = []
        self._by_size: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((start, self._stop_of[start]) for start in self._by_start)

    @property
    def largest(self) -> int:
        """Length of the longest interval, 0 where there is none."""
        return self._by_size[-1] >> _START_BITS if self._by_size else 0

    def holds(self, start: int, stop: int) -> bool:
        """Whether [start, stop) lies within one interval."""
        index = bisect_right(self._by_start, start) - 1
        return index >= 0 and self._stop_of[self._by_start[index]] >= stop

    def around(self, start: int, stop: int) -> tuple[int, int]:
        """[start, stop), which is not held, widened by the intervals that touch it."""
        return self._start_of.get(start, start), self._stop_of.get(stop, stop)

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that are held, in order."""
        index = max(bisect_right(self._by_start, start) - 1, 0)
        parts: list[tuple[int, int]] = []
        while index < len(self._by_start) and self._by_start[index] < stop:
            left = self._by_start[index]
            low, high = max(left, start), min(self._stop_of[left], stop)
            if low < high:
                parts.append((low, high))
            index += 1
        return parts

    def best_fit(self, count: int) -> int | None:
        """Start of the shortest interval of at least `count`, the lowest of equals."""
        index = bisect_left(self._by_size, count << _START_BITS)
        return self._by_size[index] & _START_MASK if index < len(self._by_size) else None

    def last(self) -> tuple[int, int] | None:
        """The highest interval."""
        if not self._by_start:
            return None
        return self._by_start[-1], self._stop_of[self._by_start[-1]]

    def add(self, start: int, stop: int) -> None:
        """Hold [start, stop) too; none of it may be held yet."""
        starts = self._by_start
        index = bisect_right(starts, start)
        assert index == 0 or self._stop_of[starts[index - 1]] <= start, f"{start} is held already"
        assert index == len(starts) or stop <= starts[index], f"{stop - 1} is held already"
        self.total += stop - start
        joins_left = index > 0 and self._stop_of[starts[index - 1]] == start
        joins_right = index < len(starts) and starts[index] == stop
        if joins_right:
            right_stop = self._stop_of.pop(stop)
            self._drop_size(right_stop - stop, stop)
            stop = right_stop
            if joins_left:
                del starts[index]
            else:
                starts[index] = start
        elif not joins_left:
            starts.insert(index, start)
        if joins_left:
            left = starts[index - 1]
            self._drop_size(start - left, left)
            del self._start_of[start]
            start = left
        self._stop_of[start] = stop
        self._start_of[stop] = start
        insort(self._by_size, (stop - start) << _START_BITS | start)

    def remove(self, start: int, stop: int) -> None:
        """No longer hold [start, stop), which lies within one interval."""
        index = bisect_right(self._by_start, start) - 1
        assert index >= 0, f"{start} is not held"
        left = self._by_start[index]
        right = self._stop_of[left]
        assert stop <= right, f"[{start}, {stop}) is not held: [{left}, {right}) is"
        self.total -= stop - start
        self._drop_size(right - left, left)
        if left < start:
            self._stop_of[left] = start
            self._start_of[start] = left
            insort(self._by_size, (start - left) << _START_BITS | left)
            index += 1
        else:
            del self._stop_of[left]
            del self._by_start[index]
        if stop < right:
            self._stop_of[stop] = right
            self._start_of[right] = stop
            self._by_start.insert(index, stop)
            insort(self._by_size, (right - stop) << _START_BITS | stop)
        else:
            if self._start_of.get(right) == left:
                del self._start_of[right]

    def _drop_size(self, size: int, start: int) -> None:
        key = size << _START_BITS | start
        index = bisect_left(self._by_size, key)
        assert self._by_size[index] == key
        del self._by_size[index]


class PagePool:
    """Pages [0, pages) of one worker's device, free or owned; owners are known elsewhere."""

    __slots__ = ("_free", "_loose", "pages")

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self._free = Intervals()
        self._loose = Intervals()
        if pages:
            self._free.add(0, pages)
            self._loose.add(0, pages)

    @property
    def pages_free(self) -> int:
        return self._free.total

    @property
    def largest_run(self) -> int:
        """Length of the longest run of free pages."""
        return self._free.largest

    @property
    def free(self) -> Intervals:
        """The free pages, to look at."""
        return self._free

    @property
    def loose(self) -> Intervals:
        """The free pages and those whose owners would give them up, to look at."""
        return self._loose

    def take_pages(self, count: int) -> list[int] | None:
        """Take the `count` highest free pages, or None and no change when fewer are free."""
        if count > self._free.total:
            return None
        taken: list[int] = []
        while count:
            last = self._free.last()
            assert last is not None
            start, stop = last
            start = max(start, stop - count)
            self.take_exact(start, stop)
            taken.extend(range(stop - 1, start - 1, -1))
            count -= stop - start
        return taken

    def take_run(self, count: int) -> int | None:
        """Take `count` pages in a row from the best fitting hole; its first page, or None."""
        start = self._free.best_fit(count)
        if start is not None:
            self.take_exact(start, start + count)
        return start

    def take_exact(self, start: int, stop: int) -> None:
        """Take the pages [start, stop), all of which are free."""
        self._free.remove(start, stop)
        self._loose.remove(start, stop)

    def give(self, pages: Iterable[int]) -> None:
        """Give back owned pages that are not loose, in any order."""
        for start, stop in runs_of(pages):
            self._free.add(start, stop)
            self._loose.add(start, stop)

    def loosen(self, pages: Iterable[int]) -> None:
        """The owner of these pages would give them up from now on."""
        for start, stop in runs_of(pages):
            self._loose.add(start, stop)

    def tighten(self, page: int) -> None:
        """The owner of this loose page needs it again."""
        self._loose.remove(page, page + 1)


def runs_of(pages: Iterable[int]) -> list[tuple[int, int]]:
    """The pages as half-open runs, ascending."""
    runs: list[tuple[int, int]] = []
    start = stop = -1
    for page in sorted(pages):
        if page != stop:
            if stop > start:
                runs.append((start, stop))
            start = page
        stop = page + 1
    if stop > start:
        runs.append((start, stop))
    return runs
