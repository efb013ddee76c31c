"""Who leaves first: near enough the copy worth least, at a cost that does not follow the number."""

import gc
from collections import OrderedDict
from random import Random
from types import FunctionType, ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.adapter import AdapterVersion, Tier
from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.eviction import CANDIDATES, Eviction, LeastRecent, LeastValued, _Order
from adex_scheduler.core.links import Links
from adex_scheduler.core.reuse import ReuseRates

TIER = Tier.HOST
SIZES = (20, 40, 80, 160)


def adapter(index: int) -> Adapter:
    return Adapter(AdapterVersion(f"a{index}", SIZES[index % len(SIZES)] * 10**6, 8, 4), pages=1)


class Cache:
    """Requests for adapters against a cache of `room` copies, all idle."""

    def __init__(self, eviction: Eviction, count: int, room: int) -> None:
        self.eviction = eviction
        self.adapters = [adapter(index) for index in range(count)]
        self.idle: OrderedDict[str, Adapter] = OrderedDict()
        self.room = room
        self.misses = 0

    def ask(self, index: int, now: float) -> Adapter | None:
        """Returns: who has left for it."""
        asked = self.adapters[index]
        self.eviction.note_use(asked, now)
        if self.idle.pop(asked.digest, None) is None:
            self.misses += 1
        victim = None
        if len(self.idle) >= self.room:
            victim = next(self.eviction.first_to_leave(TIER, self.idle, now))
            del self.idle[victim.digest]
        self.idle[asked.digest] = asked
        self.eviction.enter(TIER, asked)
        return victim


class Counting(LeastValued):
    """Counts how often a value is asked for."""

    asked = 0

    def value(self, tier: Tier, adapter: Adapter) -> float:
        self.asked += 1
        return super().value(tier, adapter)


def skewed(chance: Random, count: int) -> int:
    """Zipf's law, as near as matters here."""
    return int(count ** chance.random()) - 1


def regret(count: int, room: int, gap: float) -> float:
    """What the victims were worth, over what the least worth at each moment was."""
    chance = Random(1)
    eviction = LeastValued(ReuseRates(10**6), Links())
    cache = Cache(eviction, count, room)
    lost = least = 0.0
    for number in range(3000):
        idle = dict(cache.idle)
        # Between the others a session: one adapter again and again for a while.
        index = number // 200 * 13 % count if number % 7 == 0 else skewed(chance, count)
        victim = cache.ask(index, number * gap)
        if victim is not None and number > 1000:
            idle.pop(cache.adapters[index].digest, None)
            lost += eviction.value(TIER, victim)
            least += min(eviction.value(TIER, one) for one in idle.values())
    assert least > 0
    return lost / least


@pytest.mark.parametrize(
    ("count", "room", "gap"), [(400, 20, 0.5), (400, 100, 0.05), (2000, 400, 0.05)]
)
def test_who_leaves_is_worth_hardly_more_than_the_least(count: int, room: int, gap: float) -> None:
    assert regret(count, room, gap) < 1.15


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.floats(0, 0.2)), max_size=200))
def test_those_offered_are_idle_and_nobody_is_offered_twice(
    happenings: list[tuple[int, int, float]],
) -> None:
    eviction = LeastValued(ReuseRates(100), Links())
    cache = Cache(eviction, 61, 61)
    now = 0.0
    for index, happening, gap in happenings:
        now += gap
        one = cache.adapters[index]
        match happening:
            case 0:
                cache.ask(index, now)
            case 1:
                cache.idle.pop(one.digest, None)
            case _:
                offered = list(eviction.first_to_leave(TIER, cache.idle, now))
                assert len(offered) == len({id(other) for other in offered})
                assert all(cache.idle[other.digest] is other for other in offered)
                assert len(offered) == min(len(cache.idle), CANDIDATES)


def misses(eviction: Eviction, popularity: str) -> int:
    chance = Random(3)
    cache = Cache(eviction, 500, 50)
    for number in range(12_000):
        index = skewed(chance, 500)
        if popularity == "drift":
            index = (index + number // 100) % 500
        elif popularity == "sessions":
            index = (number // 600 * 20 + chance.randrange(20)) * 7 % 500
        cache.ask(index, number * 0.05)
    return cache.misses


@pytest.mark.parametrize(
    ("popularity", "most"), [("fixed", 0.9), ("drift", 1.0), ("sessions", 1.05)]
)
def test_it_misses_less_than_the_longest_idle_rule_or_hardly_more(
    popularity: str, most: float
) -> None:
    valued = misses(LeastValued(ReuseRates(1000), Links()), popularity)
    assert valued <= most * misses(LeastRecent(), popularity)


def test_an_eviction_costs_the_same_however_many_copies_there_are() -> None:
    def most_asked(count: int) -> int:
        eviction = Counting(ReuseRates(10**6), Links())
        cache = Cache(eviction, count + 200, count)
        for index in range(count):
            cache.ask(index, 0.1 * index)
        most = 0
        for index in range(count, count + 200):
            before = eviction.asked
            cache.ask(index, 0.1 * (count + index))
            most = max(most, eviction.asked - before)
        return most

    assert most_asked(5000) <= most_asked(200) + CANDIDATES


def test_nothing_is_remembered_of_adapters_that_come_and_go_where_nothing_must_leave() -> None:
    eviction = LeastValued(ReuseRates(10), Links())
    sizes: list[int] = []
    for index in range(2000):
        passing = adapter(index)
        eviction.note_use(passing, 0.1 * index)
        eviction.enter(TIER, passing)
        eviction.forget(passing)
        if index in (500, 1999):
            sizes.append(footprint(eviction))
    # Fifteen hundred more have come and gone; what is left of the last few may differ.
    assert sizes[1] < sizes[0] + 300


def footprint(value: object) -> int:
    """How many objects are reached from here."""
    seen: dict[int, object] = {}
    found = [value]
    while found:
        one = found.pop()
        if id(one) not in seen and not isinstance(one, type | ModuleType | FunctionType):
            seen[id(one)] = one
            found += gc.get_referents(one)
    return len(seen)


def test_where_nothing_has_to_leave_the_order_does_not_grow() -> None:
    eviction = LeastValued(ReuseRates(100), Links())
    cache = Cache(eviction, count=8, room=8)
    # One is asked for ever less among the others, so its value falls each time.
    for turn in range(1, 120):
        cache.ask(0, now=float(turn))
        for again in range(turn):
            cache.ask(1 + again % 7, now=turn + 0.001 * again)
    assert len(eviction._orders[TIER]._heap) <= 2 * 8 + 2 * CANDIDATES


@pytest.mark.parametrize("gone", [0, 1, 3, 10])
def test_a_look_that_finds_much_that_is_void_offers_nobody_twice(gone: int) -> None:
    for void in range(60, 120):
        worth: dict[str, float] = {}
        order = _Order(lambda one, worth=worth: worth[one.digest])  # type: ignore[misc]
        copies = [adapter(index) for index in range(50 + gone)]
        for index, copy in enumerate(copies):
            worth[copy.digest] = 1000.0 + index
            order.enter(copy)
        for _ in range(void):
            worth[copies[-1].digest] -= 0.001
            order.enter(copies[-1])
        idle = OrderedDict((copy.digest, copy) for copy in copies[gone:])
        for copy in idle.values():
            worth[copy.digest] -= 0.0001
        for risen in (copies[gone + 1], copies[gone + 3]):
            worth[risen.digest] = 5000.0
        found = list(order.least(idle, 1.0))
        assert len({one.digest for one in found}) == len(found) == CANDIDATES
