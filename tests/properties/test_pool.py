"""The page pool against a set of numbers."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from adex_scheduler.core.pool import PagePool

PAGES = 40


def runs_of(pages: set[int]) -> list[tuple[int, int]]:
    """The pages as half-open runs, ascending."""
    starts = sorted(page for page in pages if page - 1 not in pages)
    stops = sorted(page + 1 for page in pages if page + 1 not in pages)
    return list(zip(starts, stops, strict=True))


def longest_run(pages: set[int]) -> int:
    return max((stop - start for start, stop in runs_of(pages)), default=0)


def lowest_run(pages: set[int], count: int) -> int | None:
    return next((start for start, stop in runs_of(pages) if stop - start >= count), None)


class PoolAgainstSet(RuleBasedStateMachine):
    """Takes and gives in any order; every unit is free or owned once."""

    owned = Bundle("owned")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.free = set(range(PAGES))
        self.given_up: set[int] = set()
        self.offered: set[int] = set()
        # What each bundle's value still owns; loose pages are let go for another.
        self.holdings: list[set[int]] = []

    def hold(self, pages: set[int]) -> set[int]:
        for holding in self.holdings:
            holding -= pages
        self.holdings.append(pages)
        return pages

    @rule(target=owned, count=st.integers(1, 12))
    def take_pages(self, count: int) -> object:
        taken = self.pool.take_pages(count)
        if count > len(self.free):
            assert taken is None
            return multiple()
        assert taken is not None
        assert taken == sorted(self.free, reverse=True)[:count]
        self.free -= set(taken)
        return self.hold(set(taken))

    @rule(target=owned, count=st.integers(1, 12))
    def take_run(self, count: int) -> object:
        start = self.pool.find_free(count)
        assert start == lowest_run(self.free, count)
        if start is None:
            return multiple()
        self.pool.take_exact(start, start + count)
        run = set(range(start, start + count))
        self.free -= run
        return self.hold(run)

    @rule(target=owned, pages=consumes(owned))
    def offer_the_longest_run_or_withdraw_it(self, pages: set[int]) -> object:
        runs = runs_of(pages - self.given_up - self.free)
        start, stop = max(runs, key=lambda run: run[1] - run[0], default=(0, 0))
        run = set(range(start, stop))
        if run and run <= self.offered:
            self.pool.withdraw(start, stop)
            self.offered -= run
        elif not run & self.offered:
            self.pool.offer(start, stop)
            self.offered |= run
        return pages

    @rule(count=st.integers(1, 12))
    def find_clearable(self, count: int) -> None:
        clearable = self.free | self.given_up | self.offered
        assert self.pool.find_clearable(count) == lowest_run(clearable, count)

    @rule(pages=consumes(owned))
    def give(self, pages: set[int]) -> None:
        self.pool.tighten(pages & self.given_up)
        self.given_up -= pages
        for start, stop in runs_of(pages & self.offered):
            self.pool.withdraw(start, stop)
        self.offered -= pages
        runs = runs_of(pages)
        if len(runs) == 1:
            self.pool.give_run(*runs[0])
        else:
            self.pool.give(sorted(pages))
        self.free |= pages

    @rule(pages=owned, count=st.integers(1, 4))
    def loosen(self, pages: set[int], count: int) -> None:
        chosen = sorted(pages - self.given_up - self.free - self.offered)[:count]
        self.pool.loosen(chosen)
        self.given_up |= set(chosen)

    @rule(target=owned, count=st.integers(1, 12))
    def take_loose(self, count: int) -> object:
        """The owners of pages given up let them go, and then all of the run is one's own."""
        start = lowest_run(self.free | self.given_up, count)
        if start is None:
            return multiple()
        run = set(range(start, start + count))
        let_go = self.pool.loose_among(start, start + count)
        assert let_go == sorted(run - self.free)
        self.pool.free_loose(let_go)
        self.pool.take_exact(start, start + count)
        self.free -= run
        self.given_up -= run
        return self.hold(run)

    @invariant()
    def the_pool_says_what_the_set_says(self) -> None:
        assert self.pool.pages_free == len(self.free)
        assert self.pool.largest_run == longest_run(self.free)
        for page in range(PAGES):
            assert self.pool.is_free(page) == (page in self.free)
            assert self.pool.is_loose(page) == (page in self.free | self.given_up)
            clearable = self.free | self.given_up | self.offered
            assert self.pool.is_clearable(page) == (page in clearable)

    @rule(count=st.integers(1, 12))
    def find_loose(self, count: int) -> None:
        assert self.pool.find_loose(count) == lowest_run(self.free | self.given_up, count)

    @rule()
    def copy_the_map(self) -> None:
        loose = {page for page, is_loose in enumerate(self.pool.loose_pages()) if is_loose}
        assert loose == self.free | self.given_up


TestPoolAgainstSet = PoolAgainstSet.TestCase
