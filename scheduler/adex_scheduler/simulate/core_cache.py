"""The core's own order of leaving, replayed as a cache: what serves, measured like the rest."""

from collections import OrderedDict

from adex_proto.adapter import AdapterVersion, Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.eviction import LeastValued
from adex_scheduler.core.links import Links
from adex_scheduler.core.reuse import ReuseRates
from adex_scheduler.simulate.caches import CacheResult, CacheTrace


def replay_core(trace: CacheTrace, capacity: float, *, skip: int = 0) -> CacheResult:
    """Serve the whole trace with copies in host memory, each idle as soon as it has been used."""
    adapters = [
        Adapter(
            AdapterVersion(str(index), int(size), 1, 1),
            pages=1,
            residence=Residence.HOST,
            host=HostCopy.HELD,
        )
        for index, size in enumerate(trace.sizes)
    ]
    order = LeastValued(ReuseRates(len(adapters) + 1), Links())
    resident: OrderedDict[str, Adapter] = OrderedDict()
    sizes, costs, times = trace.sizes, trace.costs, trace.times.tolist()
    held = cost = loaded = 0.0
    misses = 0
    for position, index in enumerate(trace.uses.tolist()):
        adapter, now = adapters[index], times[position]
        order.note_use(adapter, now)
        if adapter.digest in resident:
            resident.move_to_end(adapter.digest)
            order.enter(Tier.HOST, adapter)
            continue
        if position >= skip:
            misses, cost, loaded = misses + 1, cost + costs[index], loaded + sizes[index]
        if sizes[index] > capacity:
            continue
        resident[adapter.digest] = adapter
        order.enter(Tier.HOST, adapter)
        held += sizes[index]
        while held > capacity:
            victim = next(order.first_to_leave(Tier.HOST, resident, now))
            del resident[victim.digest]
            held -= victim.version.bundle_bytes
    return CacheResult(misses, float(cost), float(loaded))
