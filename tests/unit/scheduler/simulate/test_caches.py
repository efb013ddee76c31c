"""Cache-only replay: hand-made traces with known answers, and the order no policy can break."""

import numpy as np
import pytest

from adex_scheduler.simulate.cache_policies import (
    CachePolicy,
    ChameleonScore,
    FarthestUse,
    FastLibra,
    GreedyDualSize,
    LastUse,
    UseCount,
)
from adex_scheduler.simulate.caches import (
    CacheTrace,
    cache_trace,
    pfoo_cost,
    replay,
    replay_s3fifo,
    replay_tinylfu,
)
from adex_scheduler.simulate.workloads import WORKLOADS, Load


def by_hand(uses: str, sizes: dict[str, int] | None = None) -> CacheTrace:
    """One letter per use; sizes are 1 and each load costs 1 s."""
    letters = sorted(set(uses))
    size = np.array([float((sizes or {}).get(letter, 1)) for letter in letters])
    index = np.array([letters.index(letter) for letter in uses])
    return CacheTrace(np.arange(len(uses), dtype=float), index, size, np.ones(len(letters)))


def misses(trace: CacheTrace, capacity: float, policy: type[CachePolicy]) -> int:
    return replay(trace, capacity, policy(trace.sizes, trace.costs)).misses


def test_lru_forgets_what_a_scan_passes_over() -> None:
    assert misses(by_hand("abcabcabc"), 2, LastUse) == 9


def test_belady_keeps_what_comes_next() -> None:
    trace = by_hand("abcabcabc")
    policy = FarthestUse(trace.sizes, trace.costs, trace.next_uses())
    assert replay(trace, 2, policy).misses == 5


def test_lfu_keeps_what_is_asked_for_often() -> None:
    assert (
        misses(by_hand("aaaabcbcdbcda"), 1, UseCount) == misses(by_hand("bcbcdbcd"), 1, LastUse) + 1
    )


def test_nothing_is_loaded_twice_where_everything_fits() -> None:
    trace = by_hand("abacadaeabc")
    for policy in (LastUse, UseCount, GreedyDualSize, ChameleonScore, FastLibra):
        assert misses(trace, 5, policy) == 5
    assert replay_s3fifo(trace, 5).misses == replay_tinylfu(trace, 5).misses == 5
    assert pfoo_cost(trace, 5) == 5


@pytest.mark.parametrize("name", ["zipf", "drift", "sessions", "functions"])
def test_no_policy_pays_less_than_the_bound(name: str) -> None:
    requests = WORKLOADS[name](Load(100, 30.0, 120.0, seed=1, ranks=(8, 16, 64)))
    trace = cache_trace(requests, bytes_per_rank=1e6)
    # The bound is what all costs together leave of all savings, so it is rounded as their sums are.
    rounding = 1e-9 * float(trace.costs[trace.uses].sum())
    for share in (0.05, 0.2, 0.6):
        capacity, skip = share * trace.bytes_all, 300
        bound = pfoo_cost(trace, capacity, skip=skip)
        belady = FarthestUse(trace.sizes, trace.costs, trace.next_uses())
        costs = [
            replay(trace, capacity, policy(trace.sizes, trace.costs), skip=skip).cost_s
            for policy in (LastUse, UseCount, GreedyDualSize, ChameleonScore, FastLibra)
        ]
        costs.append(replay_s3fifo(trace, capacity, skip=skip).cost_s)
        costs.append(replay_tinylfu(trace, capacity, skip=skip).cost_s)
        costs.append(replay(trace, capacity, belady, skip=skip).cost_s)
        assert bound <= min(costs) + rounding
