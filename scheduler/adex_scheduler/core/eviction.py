"""Which idle copy leaves first, in each tier: the order that paging asks for and nothing else.

A copy is worth the seconds it is expected to save for each byte it takes: how often its adapter
will be asked for, times what bringing it back would take, over its size. Values fall between an
adapter's requests, and a copy's place in the order is only looked up when something must leave. So
the order is a heap of values as they were when last looked at: one that has risen since is put back
when it comes to the top, and those that have fallen are found by a hand that goes round the heap, a
few places at each request. An eviction costs the same however many copies there are.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from heapq import heapify, heappop, heappush, heapreplace
from itertools import islice
from typing import Protocol

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.links import OTHER, Links
from adex_scheduler.core.reuse import ReuseRates

# Copies that are offered at most: room on the device may take several that lie side by side. As
# many are looked for at a time, and offered in the order of what they are worth by then.
CANDIDATES = 8
# Places of the heap that the hand visits at each request; it stops after a round without a look.
SWEPT = 8
# Copies that one look puts back because they have risen; the next look goes on from there.
RISEN_MAX = 16
# How long copies stay in the order in which they were offered.
FRESH_S = 0.05
# What a copy in host memory is worth beside one on the device, of what it would be worth alone.
_UNDER_DEVICE_COPY = 0.5


class Eviction(Protocol):
    """The order in which idle copies leave. Its owner tells it of requests and of idle copies."""

    def clear(self) -> None:
        """No copy is held any more; what is known of adapters stays known."""
        ...

    def note_use(self, adapter: Adapter, now: float) -> None:
        """A request for the adapter has come."""
        ...

    def enter(self, tier: Tier, adapter: Adapter) -> None:
        """The adapter's copy in `tier` has fallen idle. When it is idle no more, nobody says so."""
        ...

    def forget(self, adapter: Adapter) -> None:
        """No copy of the adapter is left in any tier."""
        ...

    def first_to_leave(
        self, tier: Tier, idle: Mapping[str, Adapter], now: float
    ) -> Iterator[Adapter]:
        """The `idle` copies of a tier in the order in which they should leave, CANDIDATES at most;
        nothing only where none is idle. They are looked for when the first is asked for. `idle` has
        them in the order in which they fell idle, and stands still meanwhile.
        """
        ...


class LeastRecent:
    """The longest idle leaves first."""

    def clear(self) -> None:
        """Nothing is remembered."""

    def note_use(self, adapter: Adapter, now: float) -> None:
        """The order of falling idle is all there is to know."""

    def enter(self, tier: Tier, adapter: Adapter) -> None:
        """`idle` is in this order already."""

    def forget(self, adapter: Adapter) -> None:
        """Nothing was remembered."""

    def first_to_leave(
        self, tier: Tier, idle: Mapping[str, Adapter], now: float
    ) -> Iterator[Adapter]:
        """The longest idle."""
        return islice(idle.values(), CANDIDATES)


class LeastValued:
    """The copy that is expected to save the fewest seconds per byte leaves first."""

    def __init__(self, rates: ReuseRates, links: Links) -> None:
        self.rates = rates
        self._links = links
        self._page_in, self._stage = links.into(Tier.DEVICE).cost, links.into(Tier.HOST).cost
        self.clear()

    def clear(self) -> None:
        """Forget the copies; how often adapters are asked for stays known."""
        self._orders = {
            tier: _Order(partial(self.value, tier)) for tier in (Tier.DISK, Tier.HOST, Tier.DEVICE)
        }

    def note_use(self, adapter: Adapter, now: float) -> None:
        """Count the request. As others' values fall by it, some of them are looked at."""
        self.rates.note(adapter.digest, now)
        for order in self._orders.values():
            order.sweep()

    def enter(self, tier: Tier, adapter: Adapter) -> None:
        """Let the copy have a place in its tier's order."""
        self._orders[tier].enter(adapter)

    def forget(self, adapter: Adapter) -> None:
        """Let it have a place in no order; how often it was asked for stays known."""
        for order in self._orders.values():
            order.forget(adapter)

    def first_to_leave(
        self, tier: Tier, idle: Mapping[str, Adapter], now: float
    ) -> Iterator[Adapter]:
        """The least valued first."""
        return self._orders[tier].least(idle, now)

    def value(self, tier: Tier, adapter: Adapter) -> float:
        """Seconds per byte that keeping the copy is expected to save for each request to come."""
        version = adapter.version
        size = version.bundle_bytes
        if tier is Tier.DEVICE:
            seconds = self._page_in.seconds(size)
            if adapter.host is not HostCopy.HELD:
                # The copy in host memory has gone, so it would come from the disk.
                seconds += self._stage.seconds(size)
        elif tier is Tier.HOST:
            seconds = self._stage.seconds(size)
            if adapter.residence is Residence.DEVICE:
                # It saves something only once the copy on the device has gone.
                seconds *= _UNDER_DEVICE_COPY
        else:
            source = next(iter(adapter.names)).source if adapter.names else OTHER
            seconds = self._links.into(tier, source).cost.seconds(size)
        return self.rates.share(version.digest) * seconds / size


# (value, number of the entry, its copy)
_Entry = tuple[float, int, Adapter]


class _Order:
    """The copies of one tier by value. Each has one valid entry, or has been offered of late.

    Entries that are not valid are dropped when met.
    """

    def __init__(self, value: Callable[[Adapter], float]) -> None:
        self._value = value
        self._heap: list[_Entry] = []
        self._valid: dict[str, _Entry] = {}
        self._numbers = 0
        self._hand = self._hand_left = 0
        # By digest, with the value they were offered at.
        self._offered: dict[str, tuple[float, Adapter]] = {}
        self._began = float("-inf")

    def enter(self, adapter: Adapter) -> None:
        """Give the adapter the place that it is worth now."""
        self._offered.pop(adapter.digest, None)
        heappush(self._heap, self._entry(self._value(adapter), adapter))
        # Where nothing ever has to leave, nobody looks, and nobody drops what is not valid.
        if len(self._heap) > 2 * len(self._valid) + 2 * CANDIDATES:
            self._heap = list(self._valid.values())
            heapify(self._heap)

    def forget(self, adapter: Adapter) -> None:
        """The adapter is gone."""
        self._valid.pop(adapter.digest, None)
        self._offered.pop(adapter.digest, None)

    def sweep(self) -> None:
        """Look at the next places of the heap, and put where they belong those that have fallen."""
        heap, valid = self._heap, self._valid
        places = min(SWEPT, self._hand_left, len(heap))
        self._hand_left -= places
        for _ in range(places):
            self._hand = (self._hand + 1) % len(heap)
            entry = heap[self._hand]
            key, _, adapter = entry
            if valid.get(adapter.digest) is entry:
                value = self._value(adapter)
                if value < key:
                    heappush(heap, self._entry(value, adapter))

    def least(self, idle: Mapping[str, Adapter], now: float) -> Iterator[Adapter]:
        """The `idle` from the least valued on: those offered of late, then more as asked for."""
        if now - self._began > FRESH_S:
            self._begin_anew(idle)
            self._began = now
        some = [one for _, one in self._offered.values() if idle.get(one.digest) is one]
        left = CANDIDATES
        while left > 0 and (some := some or self._look(idle)):
            yield from some[:left]
            left -= len(some)
            some = []

    def _begin_anew(self, idle: Mapping[str, Adapter]) -> None:
        """Let those that were offered have places again, by what they were worth then: these are
        near the top, where the next look sees what they are worth now.
        """
        for digest, (value, adapter) in self._offered.items():
            if idle.get(digest) is adapter:
                heappush(self._heap, self._entry(value, adapter))
        self._offered.clear()
        self._hand_left = len(self._heap)
        if len(self._heap) > 2 * len(idle) + 2 * CANDIDATES:
            self._valid = {digest: e for digest, e in self._valid.items() if digest in idle}
            self._heap = list(self._valid.values())
            heapify(self._heap)

    def _look(self, idle: Mapping[str, Adapter]) -> list[Adapter]:
        """The next CANDIDATES of them, taken out of the heap."""
        heap, valid = self._heap, self._valid
        found: list[tuple[float, Adapter]] = []
        risen = 0
        while heap and len(found) < CANDIDATES:
            entry = heap[0]
            key, _, adapter = entry
            digest = adapter.digest
            if valid.get(digest) is not entry:
                heappop(heap)
                continue
            if idle.get(digest) is not adapter:
                heappop(heap)
                del valid[digest]
                continue
            value = self._value(adapter)
            if value > key and risen < RISEN_MAX:
                # It has risen since: it comes again in its place, unless that is this one.
                risen += 1
                entry = self._entry(value, adapter)
                heapreplace(heap, entry)
                if heap[0] is not entry:
                    continue
            heappop(heap)
            del valid[digest]
            found.append((value, adapter))
        found.sort(key=lambda pair: pair[0])
        self._offered.update((pair[1].digest, pair) for pair in found)
        return [adapter for _, adapter in found]

    def _entry(self, value: float, adapter: Adapter) -> _Entry:
        """The one entry that is valid from now on."""
        self._numbers += 1
        entry = self._valid[adapter.digest] = (value, self._numbers, adapter)
        return entry
