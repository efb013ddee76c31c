"""Order of waiting sequences: the least served tenant first, then who came first.

Tenants are served by virtual token counters (Sheng et al. 2024, arXiv:2401.00588): a tenant's
counter grows with what it was given; one that comes back after idling is lifted to the level at
which the others are served, so that it cannot save up service and then shut the others out.

What is counted is what a request costs, in prompt tokens: its prompt, its outputs, its adapter's
part in each step, and the loads it caused. An adapter's bytes are counted in the positions of KV
cache that would fill its pages; the device's memory and every link move both at the same speed. The
weights below are constants, not measurements: a charge then depends on the request and not on how
busy a link is, and the most one request can cost is known beforehand (`charge_max`).

Of two tenants that always wait, neither is ahead of the other by more than `lag_max`, per weight:
the one served is the least served, so it is never ahead of the other by more than what it is
charged for requests that run at once.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Mapping
from heapq import heappop, heappush

from adex_proto.adapter import Tier
from adex_scheduler.core.sequence import Sequence, Stage, Tenant

PROMPT_TOKEN_WEIGHT = 1.0
OUTPUT_TOKEN_WEIGHT = 2.0
# An output token reads its share of the base weights. Those of today's models are as large as
# 25 000 to 400 000 positions of their own KV cache, and some 64 sequences share them.
POSITIONS_PER_OUTPUT_TOKEN = 2048
# What bringing one position's bytes to each tier costs beside computing a prompt token, which takes
# some 40 us: at 1 to 2 GB/s from afar, 3 GB/s from the disk, 50 GB/s onto the device.
LOAD_WEIGHTS: Mapping[Tier, float] = {Tier.DISK: 2.0, Tier.HOST: 1.0, Tier.DEVICE: 1 / 16}


def output_charge(positions: int, users: int) -> float:
    """For one output token, of an adapter as large as `positions` that `users` sequences share.

    It is asked once, when the sequence begins, for all of its tokens; the users are those of then.
    """
    return OUTPUT_TOKEN_WEIGHT * (1.0 + positions / (POSITIONS_PER_OUTPUT_TOKEN * users))


def charge_max(prompt: int, new: int, positions: int) -> float:
    """The most that one request costs: alone with its adapter, which it had brought from afar."""
    outputs = new * output_charge(positions, users=1)
    return PROMPT_TOKEN_WEIGHT * prompt + outputs + sum(LOAD_WEIGHTS.values()) * positions


def lag_max(largest: float, at_once: int = 1) -> float:
    """How far two tenants that always wait can come apart, each over its weight.

    `largest`: the most a request costs over its tenant's weight; `at_once`: how many may run, and
    still be charged for, when it is decided who is next.
    """
    return 2.0 * largest * at_once


def owe(sequence: Sequence, tier: Tier, positions: int) -> None:
    """The sequence has caused a load into `tier`; it is charged for it when it begins or ends.

    Only the first time: what was put out while it waited comes back at our expense.
    """
    if sequence.began or tier <= sequence.brought:
        return
    sequence.brought = tier
    sequence.owed += LOAD_WEIGHTS[tier] * positions
    if sequence.stage is Stage.ENDED:
        settle(sequence)


def settle(sequence: Sequence) -> None:
    """Charge the loads that the sequence caused."""
    sequence.payer.charge(sequence.owed)
    sequence.owed = 0.0


# Where a sequence stands in fair order: its tenant's service, then its own number. Least is first.
Rank = tuple[float, int]


def rank(sequence: Sequence) -> Rank:
    """The sequence's place among the firsts of several lines."""
    return sequence.payer.served, sequence.number


class Tenants:
    """All tenants with sequences, and the most recent ones without."""

    def __init__(self, tenants_max: int, weights: Mapping[str, float] | None = None) -> None:
        self._tenants_max = tenants_max
        self._weights = weights or {}
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
            weight = self._weights.get(name, 1.0)
            tenant = self._tenants[name] = Tenant(name, self._orders, weight=weight)
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
        tenant.charge(tokens)

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
