"""The device pool by page number: KV blocks from its high end, adapter runs from its low end.

A page is free, or owned, or *loose*: free pages are loose, and an owner may declare pages loose
that it would give up at any moment. Runs for adapters are looked for among the loose ones, and then
among the *clearable* ones: those that are loose, and whole runs on offer, whose owner would leave.

Each page is one byte of a map, so that taking and giving cost nothing and a search is one scan by
the interpreter's own substring search, which skips as many pages as the run is long. Sorted lists
of intervals were slower by far: a busy pool is all splinters. A run is placed at the lowest address
that fits, which keeps the low end dense.
"""

from collections.abc import Iterable

_YES = b"\x01"
_NO = b"\x00"


class PagePool:
    """Pages [0, pages) of one worker's device, free or owned; owners are known elsewhere."""

    __slots__ = ("_clearable", "_free", "_high", "_loose", "loosened", "pages", "pages_free")

    def __init__(self, pages: int) -> None:
        self.pages = self.pages_free = pages
        # How often pages have become clearable: while it stands still, no wider run can have come.
        self.loosened = 0
        self._free = bytearray(_YES * pages)
        self._loose = bytearray(_YES * pages)
        self._clearable = bytearray(_YES * pages)
        # No free page is above this one.
        self._high = pages - 1

    @property
    def largest_run(self) -> int:
        """Length of the longest run of free pages. Looks at every page."""
        return max(map(len, self._free.split(_NO)))

    def is_free(self, page: int) -> bool:
        return self._free[page] == 1

    def is_loose(self, page: int) -> bool:
        """Whether the page is free, or its owner would give it up."""
        return self._loose[page] == 1

    def is_clearable(self, page: int) -> bool:
        """Whether the page is loose or on offer."""
        return self._clearable[page] == 1

    def find_free(self, count: int) -> int | None:
        """First page of the lowest run of `count` free pages."""
        start = self._free.find(_YES * count)
        return start if start >= 0 else None

    def find_loose(self, count: int) -> int | None:
        """First page of the lowest run of `count` loose pages."""
        start = self._loose.find(_YES * count)
        return start if start >= 0 else None

    def find_clearable(self, count: int) -> int | None:
        """First page of the lowest run of `count` pages that are loose or on offer."""
        start = self._clearable.find(_YES * count)
        return start if start >= 0 else None

    def gaps(self, at_least: int) -> list[tuple[int, int]]:
        """Runs [start, stop) of at least so many free pages, lowest first."""
        found: list[tuple[int, int]] = []
        wanted, stop = _YES * at_least, 0
        while (start := self._free.find(wanted, stop)) >= 0:
            above = self._free.find(_NO, start)
            stop = above if above >= 0 else self.pages
            found.append((start, stop))
        return found

    def count(self, start: int, stop: int) -> tuple[int, int]:
        """How many of the pages [start, stop) are free, and how many merely loose."""
        free = self._free.count(_YES, start, stop)
        return free, self._loose.count(_YES, start, stop) - free

    def free_pages(self) -> bytearray:
        """A copy of the map: one byte for each page, 1 where it is free."""
        return bytearray(self._free)

    def loose_pages(self) -> bytearray:
        """A copy of the map: one byte for each page, 1 where it is loose."""
        return bytearray(self._loose)

    def take_pages(self, count: int) -> list[int] | None:
        """Take the `count` highest free pages, or None and no change when fewer are free."""
        if count > self.pages_free:
            return None
        taken: list[int] = []
        free, loose, clearable, page = self._free, self._loose, self._clearable, self._high + 1
        highest = free.rfind
        for _ in range(count):
            page = highest(_YES, 0, page)
            free[page] = loose[page] = clearable[page] = 0
            taken.append(page)
        self._high = page - 1 if count else self._high
        self.pages_free -= count
        return taken

    def take_exact(self, start: int, stop: int) -> None:
        """Take the pages [start, stop), all of which are free."""
        assert self._free.find(_NO, start, stop) < 0, f"[{start}, {stop}) is not free"
        self._own(start, stop)
        self.pages_free -= stop - start

    def loose_among(self, start: int, stop: int) -> list[int]:
        """Those of the pages [start, stop), all of which are loose, that are not free."""
        assert self._loose.find(_NO, start, stop) < 0, f"[{start}, {stop}) is not loose"
        return [page for page in range(start, stop) if not self._free[page]]

    def give(self, pages: list[int]) -> None:
        """Give back owned pages that are not loose, in any order."""
        self.loosened += 1
        free, loose, clearable = self._free, self._loose, self._clearable
        for page in pages:
            assert not clearable[page], f"page {page} is free, loose or on offer already"
            free[page] = loose[page] = clearable[page] = 1
        self.pages_free += len(pages)
        self._high = max(self._high, *pages) if pages else self._high

    def give_run(self, start: int, stop: int) -> None:
        """Give back the owned pages [start, stop), none of which is loose or on offer."""
        assert self._clearable.find(_YES, start, stop) < 0, f"[{start}, {stop}) is clearable"
        self.loosened += 1
        free = _YES * (stop - start)
        self._free[start:stop] = self._loose[start:stop] = self._clearable[start:stop] = free
        self.pages_free += stop - start
        self._high = max(self._high, stop - 1)

    def loosen(self, pages: Iterable[int]) -> None:
        """The owner of these pages would give them up from now on."""
        self.loosened += 1
        loose, clearable = self._loose, self._clearable
        for page in pages:
            assert not clearable[page], f"page {page} is free, loose or on offer already"
            loose[page] = clearable[page] = 1

    def tighten(self, pages: Iterable[int]) -> None:
        """The owner of these loose pages needs them again."""
        free, loose, clearable = self._free, self._loose, self._clearable
        for page in pages:
            assert loose[page] > free[page], f"page {page} is not merely loose"
            loose[page] = clearable[page] = 0

    def free_loose(self, pages: list[int]) -> None:
        """Give back owned pages that are loose."""
        free, loose = self._free, self._loose
        for page in pages:
            assert loose[page] > free[page], f"page {page} is not merely loose"
            free[page] = 1
        self.pages_free += len(pages)
        self._high = max(self._high, *pages) if pages else self._high

    def offer(self, start: int, stop: int) -> None:
        """The owner of the pages [start, stop) would leave for another from now on."""
        assert self._clearable.find(_YES, start, stop) < 0, f"[{start}, {stop}) is clearable"
        self.loosened += 1
        self._clearable[start:stop] = _YES * (stop - start)

    def withdraw(self, start: int, stop: int) -> None:
        """It would leave no longer, or is about to."""
        assert self._loose.find(_YES, start, stop) < 0, f"[{start}, {stop}) is not on offer"
        self._clearable[start:stop] = _NO * (stop - start)

    def _own(self, start: int, stop: int) -> None:
        held = _NO * (stop - start)
        self._free[start:stop] = self._loose[start:stop] = self._clearable[start:stop] = held
