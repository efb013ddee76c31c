"""Cache-only replay: what a trace's misses cost under a policy, and the least they could cost.

One cache of bytes, and nothing else of a server: no queues, no time taken by loads. It separates
the worth of a rule for eviction from everything around it.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adex_scheduler.simulate.cache_policies import CachePolicy, Floats, Ints
from adex_scheduler.simulate.trace import TracedRequest, ranks_of

NEVER = 2**40


@dataclass(frozen=True, slots=True)
class CacheTrace:
    """Uses of adapters by index, with each one's size in bytes and cost in seconds to load."""

    times: Floats
    uses: Ints
    sizes: Floats
    costs: Floats

    @property
    def bytes_all(self) -> float:
        return float(self.sizes.sum())

    def next_uses(self) -> Ints:
        """For each position, where its adapter is used again; NEVER if it is not."""
        found = np.full(len(self.uses), NEVER, dtype=np.int64)
        seen: dict[int, int] = {}
        for position in range(len(self.uses) - 1, -1, -1):
            index = int(self.uses[position])
            found[position] = seen.get(index, NEVER)
            seen[index] = position
        return found


def cache_trace(
    requests: Sequence[TracedRequest],
    *,
    bytes_per_rank: float,
    fixed_s: float = 0.040,
    bytes_per_s: float = 2e9,
) -> CacheTrace:
    """The adapters of a trace, each costing `fixed_s` and its bytes over `bytes_per_s` to load."""
    ranks = ranks_of(requests)
    index = {name: place for place, name in enumerate(ranks)}
    named = [request for request in requests if request.adapter is not None]
    sizes = np.array([rank * bytes_per_rank for rank in ranks.values()])
    return CacheTrace(
        np.array([request.time_s for request in named]),
        np.array([index[request.adapter or ""] for request in named]),
        sizes,
        fixed_s + sizes / bytes_per_s,
    )


@dataclass(frozen=True, slots=True)
class CacheResult:
    """Cost of all misses in seconds, after the first `skip` requests."""

    misses: int
    cost_s: float
    loaded_bytes: float


def replay(
    trace: CacheTrace, capacity: float, policy: CachePolicy, *, skip: int = 0
) -> CacheResult:
    """Serve the whole trace; every miss loads, then the least worth leave until all fit."""
    resident = np.zeros(len(trace.sizes), dtype=np.bool_)
    held = cost = loaded = 0.0
    misses = 0
    sizes, costs, times = trace.sizes, trace.costs, trace.times.tolist()
    for position, index in enumerate(trace.uses.tolist()):
        policy.use(index, times[position], position)
        if resident[index]:
            continue
        if position >= skip:
            misses, cost, loaded = misses + 1, cost + costs[index], loaded + sizes[index]
        if sizes[index] > capacity:
            continue
        resident[index] = True
        held += sizes[index]
        while held > capacity:
            worth = policy.worth(resident, times[position], position)
            victim = int(np.argmin(np.where(resident, worth, np.inf)))
            resident[victim] = False
            held -= sizes[victim]
            policy.note_eviction(victim)
    return CacheResult(misses, float(cost), float(loaded))


def replay_s3fifo(trace: CacheTrace, capacity: float, *, skip: int = 0) -> CacheResult:
    """S3-FIFO by bytes: a small queue of 10 %, a main one with second chances, a ghost of ids."""
    small, main = OrderedDict[int, int](), OrderedDict[int, int]()
    ghost = OrderedDict[int, None]()
    held = {id(small): 0.0, id(main): 0.0}
    sizes, cost, misses, loaded = trace.sizes, 0.0, 0, 0.0

    def add(queue: OrderedDict[int, int], index: int) -> None:
        queue[index] = 0
        held[id(queue)] += sizes[index]

    def pop(queue: OrderedDict[int, int]) -> tuple[int, int]:
        index, uses = queue.popitem(last=False)
        held[id(queue)] -= sizes[index]
        return index, uses

    def evict() -> None:
        if small and (held[id(small)] > 0.1 * capacity or not main):
            index, uses = pop(small)
            if uses > 1:
                add(main, index)
                return
            ghost[index] = None
            while len(ghost) > len(main) + len(small):
                ghost.popitem(last=False)
            return
        index, uses = pop(main)
        if uses:
            add(main, index)
            main[index] = uses - 1

    for position, index in enumerate(trace.uses.tolist()):
        queue = small if index in small else main
        if index in queue:
            queue[index] = min(queue[index] + 1, 3)
            continue
        if position >= skip:
            misses, cost, loaded = misses + 1, cost + trace.costs[index], loaded + sizes[index]
        if sizes[index] > capacity:
            continue
        while held[id(small)] + held[id(main)] + sizes[index] > capacity:
            evict()
        add(main if index in ghost else small, index)
        ghost.pop(index, None)
    return CacheResult(misses, float(cost), float(loaded))


def replay_tinylfu(trace: CacheTrace, capacity: float, *, skip: int = 0) -> CacheResult:
    """W-TinyLFU by bytes: an LRU window of 1 %, a segmented main part guarded by frequency.

    Counts are exact, and halved after ten uses for each adapter, where the published one sketches.
    """
    window, probation, protected = (OrderedDict[int, None]() for _ in range(3))
    held = [0.0, 0.0, 0.0]
    queues = (window, probation, protected)
    uses = np.zeros(len(trace.sizes))
    sizes, cost, misses, loaded = trace.sizes, 0.0, 0, 0.0
    window_max, protected_max = 0.01 * capacity, 0.8 * 0.99 * capacity

    def put(level: int, index: int) -> None:
        queues[level][index] = None
        held[level] += sizes[index]

    def drop(level: int, index: int) -> None:
        del queues[level][index]
        held[level] -= sizes[index]

    def settle() -> None:
        while held[2] > protected_max:
            index = next(iter(protected))
            drop(2, index)
            put(1, index)
        while window and held[0] > window_max:
            index = next(iter(window))
            drop(0, index)
            put(1, index)
            while sum(held) > capacity:
                rival = next((one for one in probation if one != index), None)
                if rival is None or uses[rival] >= uses[index]:
                    drop(1, index)
                    break
                drop(1, rival)

    for position, index in enumerate(trace.uses.tolist()):
        uses[index] += 1
        if position % (10 * len(sizes)) == 0:
            uses /= 2
        level = next((level for level, queue in enumerate(queues) if index in queue), None)
        if level is None:
            if position >= skip:
                misses, cost, loaded = misses + 1, cost + trace.costs[index], loaded + sizes[index]
            put(0, index)
        elif level == 1:
            drop(1, index)
            put(2, index)
        else:
            queues[level].move_to_end(index)
        settle()
    return CacheResult(misses, float(cost), float(loaded))


def pfoo_cost(trace: CacheTrace, capacity: float, *, skip: int = 0) -> float:
    """No policy can pay less: PFOO-L, the best use of `capacity` x time with no other constraint.

    Each span between two uses saves its cost and takes its bytes for its length; the best savings
    per byte and request are taken until the whole area is used. Source: Berger et al. 2018.
    """
    next_use = trace.next_uses()
    position = np.arange(len(trace.uses))
    size, cost = trace.sizes[trace.uses], trace.costs[trace.uses]
    total = float(cost[skip:].sum())
    again = np.flatnonzero((next_use < NEVER) & (next_use >= skip))
    start = np.maximum(position[again], skip)
    area = size[again] * np.maximum(next_use[again] - start, 1)
    order = np.argsort(-cost[again] / area, kind="stable")
    filled = np.cumsum(area[order])
    budget = capacity * (len(trace.uses) - skip)
    taken = order[: int(np.searchsorted(filled, budget, side="right")) + 1]
    return total - float(cost[again][taken].sum())
