"""The page pool against a set of numbers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from adex_scheduler.core.pool import Intervals, PagePool, runs_of

PAGES = 40


def longest_run(pages: set[int]) -> int:
    return max((stop - start for start, stop in runs_of(pages)), default=0)


@given(st.sets(st.integers(0, 60)))
def test_runs_of_pages_join_neighbours_and_lose_nothing(pages: set[int]) -> None:
    runs = runs_of(pages)
    assert {page for start, stop in runs for page in range(start, stop)} == pages
    assert all(left[1] < right[0] for left, right in pairwise(runs))


class PoolAgainstSet(RuleBasedStateMachine):
    """Takes and gives in any order; every unit is free or owned once."""

    owned = Bundle("owned")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.free = set(range(PAGES))
        self.given_up: set[int] = set()

    @rule(target=owned, count=st.integers(1, 12))
    def take_pages(self, count: int) -> object:
        taken = self.pool.take_pages(count)
        if count > len(self.free):
            assert taken is None
            return multiple()
        assert taken is not None
        assert taken == sorted(self.free, reverse=True)[:count]
        self.free -= set(taken)
        return frozenset(taken)

    @rule(target=owned, count=st.integers(1, 12))
    def take_run(self, count: int) -> object:
        start = self.pool.take_run(count)
        if longest_run(self.free) < count:
            assert start is None
            return multiple()
        assert start is not None
        fits = [run for run in runs_of(self.free) if run[1] - run[0] >= count]
        assert start == min(fits, key=lambda run: (run[1] - run[0], run[0]))[0]
        run = frozenset(range(start, start + count))
        assert run <= self.free
        self.free -= run
        return run

    @rule(pages=consumes(owned))
    def give(self, pages: frozenset[int]) -> None:
        for page in sorted(pages & self.given_up):
            self.pool.tighten(page)
        self.given_up -= pages
        self.pool.give(pages)
        self.free |= pages

    @rule(pages=owned, count=st.integers(1, 4))
    def loosen(self, pages: frozenset[int], count: int) -> None:
        chosen = sorted(pages - self.given_up - self.free)[:count]
        self.pool.loosen(chosen)
        self.given_up |= set(chosen)

    @invariant()
    def the_pool_says_what_the_set_says(self) -> None:
        assert self.pool.pages_free == len(self.free)
        assert self.pool.largest_run == longest_run(self.free)
        assert list(self.pool.free) == runs_of(self.free)
        assert list(self.pool.loose) == runs_of(self.free | self.given_up)


TestPoolAgainstSet = PoolAgainstSet.TestCase


@given(st.sets(st.integers(0, 40)), st.integers(0, 40), st.integers(1, 10))
def test_intervals_answer_questions_as_a_set_does(
    members: set[int], start: int, length: int
) -> None:
    intervals = Intervals()
    for low, high in runs_of(members):
        intervals.add(low, high)
    asked = set(range(start, start + length))
    inside = {n for low, high in intervals.within(start, start + length) for n in range(low, high)}
    assert inside == members & asked
    assert intervals.holds(start, start + length) == (asked <= members)
    if not asked & members:
        low, high = intervals.around(start, start + length)
        assert set(range(low, high)) - asked <= members
        assert low - 1 not in members
        assert high not in members
