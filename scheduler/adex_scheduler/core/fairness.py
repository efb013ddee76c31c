"""Order of waiting sequences: the least served tenant first, then who came first.

Tenants are served by virtual token counters (Sheng et al. 2024, arXiv:2401.00588): a tenant's
counter grows with the tokens it was given; one that comes back after idling is lifted to the level
at which the others are served, so that it cannot save up service and then shut the others out.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from heapq import heappop, heappush

from adex_scheduler.core.sequence import Sequence, Tenant

PROMPT_TOKEN_WEIGHT = 1.0
OUTPUT_TOKEN_WEIGHT = 2.0


class Tenants:
    """All tenants with sequences, and the most recent ones without."""

    def __init__(self, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        self._tenants: OrderedDict[str, Tenant] = OrderedDict()
        self._orders = 0
        self._level = 0.0
        self.waiting = 0

    def __getitem__(self, name: str) -> Tenant:
        return self._tenants[name]

    def get(self, name: str) -> Tenant | None:
        """The tenant, if it is known."""
        return self._tenants.get(name)

    def enter(self, name: str) -> Tenant:
        """The tenant, with one more living sequence."""
        tenant = self._tenants.get(name)
        if tenant is None:
            self._orders += 1
            tenant = self._tenants[name] = Tenant(name, self._orders)
            self._forget_one()
        self._tenants.move_to_end(name)
        if tenant.waiting == 0:
            tenant.served = max(tenant.served, self._level)
        tenant.live += 1
        return tenant

    def begin_waiting(self, tenant: Tenant) -> None:
        """One more of the tenant's sequences waits to run."""
        tenant.waiting += 1
        self.waiting += 1

    def end_waiting(self, tenant: Tenant) -> None:
        """One fewer of the tenant's sequences waits to run."""
        assert tenant.waiting > 0
        tenant.waiting -= 1
        self.waiting -= 1

    def waiting_of(self, name: str) -> int:
        """Waiting sequences of a tenant, known or not."""
        tenant = self._tenants.get(name)
        return tenant.waiting if tenant else 0

    def serve(self, tenant: Tenant, tokens: float) -> None:
        """Charge a tenant that was chosen before all others; that sets the level of service."""
        self._level = max(self._level, tenant.served)
        tenant.served += tokens

    def _forget_one(self) -> None:
        """Keep the table bounded; tenants with living sequences go to the end and stay."""
        if len(self._tenants) <= self._tenants_max:
            return
        name, oldest = next(iter(self._tenants.items()))
        if oldest.live:
            self._tenants.move_to_end(name)
        else:
            del self._tenants[name]


class Line:
    """Sequences waiting for one thing, in fair order. Operations cost O(log n)."""

    def __init__(self, tenants: Tenants) -> None:
        self._tenants = tenants
        self._numbers: dict[str, list[int]] = {}
        self._members: dict[int, Sequence] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._in_heap: set[str] = set()

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.number in self._members

    @property
    def tenants_waiting(self) -> int:
        """How many tenants have sequences in the line."""
        return len(self._numbers)

    def add(self, sequence: Sequence) -> None:
        """Put the sequence where its tenant and its number say."""
        assert sequence.number not in self._members
        self._members[sequence.number] = sequence
        numbers = self._numbers.get(sequence.tenant)
        if numbers is None:
            self._numbers[sequence.tenant] = [sequence.number]
            self._enter_heap(sequence.tenant)
        else:
            insort(numbers, sequence.number)

    def remove(self, sequence: Sequence) -> None:
        """Take the sequence out, wherever it stands."""
        del self._members[sequence.number]
        numbers = self._numbers[sequence.tenant]
        del numbers[bisect_left(numbers, sequence.number)]
        if not numbers:
            # The heap entry stays and is dropped when it comes to the top.
            del self._numbers[sequence.tenant]

    def first(self) -> Sequence | None:
        """The oldest sequence of the least served tenant."""
        tenant = self._least_served()
        return self._members[self._numbers[tenant][0]] if tenant is not None else None

    def window(self, count: int) -> list[Sequence]:
        """Up to `count` sequences in fair order: each tenant's oldest, then each one's second."""
        if not self._members:
            return []
        tenants: list[str] = []
        while len(tenants) < count and (name := self._least_served()) is not None:
            tenants.append(name)
            heappop(self._heap)
            self._in_heap.discard(name)
        for name in tenants:
            self._enter_heap(name)
        chosen: list[Sequence] = []
        depth = 0
        while len(chosen) < count and tenants:
            tenants = [name for name in tenants if depth < len(self._numbers[name])]
            room = count - len(chosen)
            chosen += [self._members[self._numbers[name][depth]] for name in tenants[:room]]
            depth += 1
        return chosen

    def members(self) -> list[Sequence]:
        """All sequences in the line, by number."""
        return [self._members[number] for number in sorted(self._members)]

    def _enter_heap(self, name: str) -> None:
        if name not in self._in_heap:
            tenant = self._tenants[name]
            heappush(self._heap, (tenant.served, tenant.order, name))
            self._in_heap.add(name)

    def _least_served(self) -> str | None:
        """The tenant at the top. Counters only grow, so a stale entry only needs to sink."""
        heap = self._heap
        while heap:
            served, order, name = heap[0]
            if name not in self._numbers:
                heappop(heap)
                self._in_heap.discard(name)
            elif served < self._tenants[name].served:
                heappop(heap)
                heappush(heap, (self._tenants[name].served, order, name))
            else:
                return name
        return None
