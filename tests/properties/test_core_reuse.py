"""Expected reuse: exact counts, shares that add up, and weights that follow the workload."""

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from adex_scheduler.core.reuse import TIME_CONSTANTS_S, ReuseRates

NAMES = "abcd"
ARRIVALS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.floats(0.0, 30.0)), min_size=1, max_size=60
)


def counted(history: list[tuple[str, float]], now: float, constant: float) -> dict[str, float]:
    """Decayed counts, each summed from the whole history."""
    counts = dict.fromkeys((name for name, _ in history), 0.0)
    for name, at in history:
        counts[name] += math.exp(-(now - at) / constant)
    return counts


@given(ARRIVALS)
def test_the_counts_equal_those_of_the_whole_history(arrivals: list[tuple[str, float]]) -> None:
    rates = ReuseRates(known_max=100)
    now, history = 0.0, list[tuple[str, float]]()
    for name, gap in arrivals:
        now += gap
        rates.note(name, now)
        history.append((name, now))
    known = {name for name, _ in history}
    tables = [counted(history, now, constant) for constant in (*TIME_CONSTANTS_S, 1e30)]
    for name in NAMES:
        expected = rates.weights[-1] / len(known)
        for weight, table in zip(rates.weights, tables, strict=False):
            expected += weight * table.get(name, 0.0) / sum(table.values())
        assert math.isclose(rates.share(name), expected, rel_tol=1e-6)
    assert math.isclose(sum(map(rates.share, known)), 1.0, rel_tol=1e-6)
    assert math.isclose(sum(rates.weights), 1.0, rel_tol=1e-9)


@given(ARRIVALS)
def test_between_two_requests_for_it_an_adapter_s_counts_only_lose_share(
    arrivals: list[tuple[str, float]],
) -> None:
    rates = ReuseRates(known_max=100)
    now = 0.0
    for name, gap in arrivals:
        now += gap
        others = {other: rates.share(other) for other in NAMES if other != name}
        weights = rates.weights
        rates.note(name, now)
        rates.weights, learned = weights, rates.weights
        for other, before in others.items():
            assert rates.share(other) <= before * (1 + 1e-9)
        rates.weights = learned


def test_the_rate_is_that_of_the_requests() -> None:
    rates = ReuseRates(known_max=1000)
    chance = Random(1)
    now = 0.0
    for _ in range(4000):
        now += chance.expovariate(20.0)
        rates.note("hot" if chance.random() < 0.25 else f"cold-{chance.randrange(500)}", now)
    assert 18 < rates.total(now) < 22
    assert 3.5 < rates.rate("hot", now) < 6.5
    assert rates.rate("unheard of", now) < rates.rate("cold-1", now) + 0.01
    assert rates.total(now + 400.0) < 1.0


def test_sessions_move_the_weights_to_short_memory_and_fixed_popularity_to_long() -> None:
    chance = Random(2)
    popular = ReuseRates(known_max=1000)
    now = 0.0
    for _ in range(6000):
        now += 0.05
        popular.note(f"a{int(400 ** chance.random())}", now)
    bursts = ReuseRates(known_max=1000)
    for index in range(6000):
        # Each adapter is asked for forty times within two seconds and then hardly ever again.
        bursts.note(f"a{index // 40 * 7 % 400}", index * 0.05)
    assert bursts.weights[0] > 0.8
    assert popular.weights[0] < 0.1
    assert sum(popular.weights[3:5]) > 0.6


def test_no_more_adapters_are_remembered_than_may_be() -> None:
    rates = ReuseRates(known_max=3)
    for index in range(50):
        rates.note(f"a{index}", index * 0.1)
    assert len(rates) == 3
    assert math.isclose(sum(rates.share(f"a{index}") for index in (47, 48, 49)), 1.0, rel_tol=1e-6)


@given(quiet_s=st.floats(0.0, 1e8))
def test_however_long_nobody_asked_the_next_request_is_counted(quiet_s: float) -> None:
    rates = ReuseRates(known_max=10)
    rates.note("a", 0.0)
    rates.note("b", 1.0)
    rates.note("a", 1.0 + quiet_s)
    assert rates.share("a") > rates.share("b") > 0.0
    assert math.isclose(rates.share("a") + rates.share("b"), 1.0, rel_tol=1e-6)
    assert math.isclose(sum(rates.weights), 1.0, rel_tol=1e-9)
