"""One trace and one cache size under every policy: what each pays for its misses."""

from collections.abc import Callable, Mapping, Sequence

from adex_scheduler.simulate.cache_policies import (
    CachePolicy,
    ChameleonScore,
    FarthestUse,
    FastLibra,
    Floats,
    GreedyDualSize,
    LastUse,
    LearnedMixture,
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
from adex_scheduler.simulate.core_cache import replay_core
from adex_scheduler.simulate.trace import TracedRequest

POLICIES: Mapping[str, Callable[[Floats, Floats], CachePolicy]] = {
    "LRU": LastUse,
    "LRU-2": lambda sizes, costs: LastUse(sizes, costs, 2),
    "LFU": UseCount,
    "GDSF": GreedyDualSize,
    "Chameleon": ChameleonScore,
    "FastLibra": FastLibra,
    "mixture": LearnedMixture,
}


def cache_row(
    requests: Sequence[TracedRequest], share: float, *, bytes_per_rank: float
) -> dict[str, float]:
    """Seconds paid for misses, by policy, with room for `share` of all adapters' bytes.

    The first quarter of the trace warms the cache and does not count. "mixture
    +64" also knows the next 64 requests, as a queue would tell; "Belady" and "PFOO"
    know all of them, and PFOO is a bound that nothing attains.
    """
    trace = cache_trace(requests, bytes_per_rank=bytes_per_rank)
    capacity, skip = share * trace.bytes_all, len(trace.uses) // 4
    row = {
        name: replay(trace, capacity, make(trace.sizes, trace.costs), skip=skip).cost_s
        for name, make in POLICIES.items()
    }
    row["S3-FIFO"] = replay_s3fifo(trace, capacity, skip=skip).cost_s
    row["W-TinyLFU"] = replay_tinylfu(trace, capacity, skip=skip).cost_s
    for window in (64, 256):
        row[f"mixture +{window}"] = _with_queue(trace, capacity, window, skip)
    belady = FarthestUse(trace.sizes, trace.costs, trace.next_uses())
    row["Belady"] = replay(trace, capacity, belady, skip=skip).cost_s
    row["PFOO"] = pfoo_cost(trace, capacity, skip=skip)
    return row


def core_row(
    requests: Sequence[TracedRequest], share: float, *, bytes_per_rank: float
) -> dict[str, float]:
    """The same of the core's own order, which changes with the core and the others do not."""
    trace = cache_trace(requests, bytes_per_rank=bytes_per_rank)
    cost = replay_core(trace, share * trace.bytes_all, skip=len(trace.uses) // 4).cost_s
    return {"adex": cost}


def _with_queue(trace: CacheTrace, capacity: float, window: int, skip: int) -> float:
    policy = LearnedMixture(trace.sizes, trace.costs, queue=(trace.uses, window))
    return replay(trace, capacity, policy, skip=skip).cost_s
