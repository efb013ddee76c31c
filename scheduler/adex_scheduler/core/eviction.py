"""Which idle copy leaves first, in each tier: the order that paging asks for and nothing else.

A copy is worth the seconds it is expected to save for each byte it takes: how often its adapter
will be asked for, times what bringing it back would take, over its size. Values fall between an
adapter's requests, and a copy's place in the order is only looked up when something must leave. So
the order is a heap of values as they were when last looked at: one that has risen since is put back
when it comes to the top, and those that have fallen are found by a hand that goes round the heap, a
few places at each look. An eviction costs the same however many copies there are.
"""

from collections.abc import Callable, Mapping
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Protocol

from adex_proto.adapter import Tier
from adex_scheduler.core.adapters import Adapter, HostCopy, Residence
from adex_scheduler.core.links import OTHER, Links
from adex_scheduler.core.reuse import ReuseRates

# Copies that one look offers: room on the device may take several that lie side by side.
CANDIDATES = 16
# Places of the heap that the hand visits at each look.
SWEPT = 16
# Copies that one look puts back because they have risen; the next look goes on from there.
RISEN_MAX = 16
# How long an answer may be given again.
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

    def first_to_leave(self, tier: Tier, idle: Mapping[str, Adapter], now: float) -> list[Adapter]:
        """Some of the `idle` copies of a tier, all of them or CANDIDATES at most, in the order in
        which they should leave; empty only where none is idle. `idle` has them in the order in
        which they fell idle.
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

    def first_to_leave(self, tier: Tier, idle: Mapping[str, Adapter], now: float) -> list[Adapter]:
        """The longest idle."""
        return list(islice(idle.values(), CANDIDATES))


class LeastValued:
    """The copy that is expected to save the fewest seconds per byte leaves first."""

    def __init__(self, rates: ReuseRates, links: Links) -> None:
        self.rates = rates
        self._links = links
        self._page_in, self._stage = links.into(Tier.DEVICE), links.into(Tier.HOST)
        self.clear()

    def clear(self) -> None:
        """Forget the copies; how often adapters are asked for stays known."""
        self._orders = {
            tier: _Order(partial(self.value, tier)) for tier in (Tier.DISK, Tier.HOST, Tier.DEVICE)
        }

    def note_use(self, adapter: Adapter, now: float) -> None:
        """Count the request."""
        self.rates.note(adapter.digest, now)

    def enter(self, tier: Tier, adapter: Adapter) -> None:
        """Let the copy have a place in its tier's order."""
        self._orders[tier].enter(adapter)

    def forget(self, adapter: Adapter) -> None:
        """Let it have a place in no order; how often it was asked for stays known."""
        for order in self._orders.values():
            order.forget(adapter)

    def first_to_leave(self, tier: Tier, idle: Mapping[str, Adapter], now: float) -> list[Adapter]:
        """The least valued first."""
        return self._orders[tier].least(idle, now)

    def value(self, tier: Tier, adapter: Adapter) -> float:
        """Seconds per byte that keeping the copy is expected to save for each request to come."""
        version = adapter.version
        size = version.bundle_bytes
        if tier is Tier.DEVICE:
            seconds = self._page_in.cost.seconds(size)
            if adapter.host is not HostCopy.HELD:
                # The copy in host memory has gone, so it would come from the disk.
                seconds += self._stage.cost.seconds(size)
        elif tier is Tier.HOST:
            seconds = self._stage.cost.seconds(size)
            if adapter.residence is Residence.DEVICE:
                # It saves something only once the copy on the device has gone.
                seconds *= _UNDER_DEVICE_COPY
        else:
            source = next(iter(adapter.names)).source if adapter.names else OTHER
            seconds = self._links.into(tier, source).cost.seconds(size)
        return self.rates.share(version.digest) * seconds / size


# (value, number of the entry, digest)
_Entry = tuple[float, int, str]


class _Order:
    """The copies of one tier by value. Each has one valid entry; others are dropped when met."""

    def __init__(self, value: Callable[[Adapter], float]) -> None:
        self._value = value
        self._heap: list[_Entry] = []
        self._valid: dict[str, _Entry] = {}
        self._numbers = 0
        self._hand = 0
        self._least: list[Adapter] = []
        self._looked_at = float("-inf")

    def enter(self, adapter: Adapter) -> None:
        """See that the adapter's entry is not above its value."""
        value = self._value(adapter)
        entry = self._valid.get(adapter.digest)
        if entry is None or value < entry[0]:
            self._push(value, adapter.digest)
            # Where nothing ever has to leave, nobody looks, and nobody drops what is not valid. Not
            # within a look: what that has taken out is valid still, and would come a second time.
            if len(self._heap) > 2 * len(self._valid) + 2 * CANDIDATES:
                self._heap = list(self._valid.values())
                heapify(self._heap)

    def forget(self, adapter: Adapter) -> None:
        """The adapter is gone."""
        self._valid.pop(adapter.digest, None)

    def least(self, idle: Mapping[str, Adapter], now: float) -> list[Adapter]:
        """The least valued of `idle`, anew where the last answer is too old or used up."""
        some = [adapter for adapter in self._least if idle.get(adapter.digest) is adapter]
        enough = min(len(idle), CANDIDATES // 2)
        if len(some) < enough or now - self._looked_at > FRESH_S:
            self._sweep(idle)
            some = self._least = self._look(idle)
            self._looked_at = now
        return some

    def _look(self, idle: Mapping[str, Adapter]) -> list[Adapter]:
        heap, valid = self._heap, self._valid
        found: list[tuple[float, Adapter]] = []
        risen = 0
        while heap and len(found) < CANDIDATES:
            entry = heappop(heap)
            key, _, digest = entry
            if valid.get(digest) is not entry:
                continue
            adapter = idle.get(digest)
            if adapter is None:
                del valid[digest]
                continue
            value = self._value(adapter)
            if value > key and heap and value > heap[0][0] and risen < RISEN_MAX:
                # It has risen since: it comes again in its place.
                risen += 1
                self._push(value, digest)
            else:
                found.append((value, adapter))
        for value, adapter in found:
            self._push(value, adapter.digest)
        found.sort(key=lambda pair: pair[0])
        return [adapter for _, adapter in found]

    def _sweep(self, idle: Mapping[str, Adapter]) -> None:
        """Look at the next places of the heap, and put where they belong those that have fallen."""
        heap, valid = self._heap, self._valid
        if len(heap) > 2 * len(idle) + 2 * CANDIDATES:
            self._valid = valid = {digest: e for digest, e in valid.items() if digest in idle}
            self._heap = heap = list(valid.values())
            heapify(heap)
        for _ in range(min(SWEPT, len(heap))):
            self._hand = (self._hand + 1) % len(heap)
            entry = heap[self._hand]
            key, _, digest = entry
            if valid.get(digest) is entry and (adapter := idle.get(digest)) is not None:
                value = self._value(adapter)
                if value < key:
                    self._push(value, digest)

    def _push(self, value: float, digest: str) -> None:
        self._numbers += 1
        entry = self._valid[digest] = (value, self._numbers, digest)
        heappush(self._heap, entry)
