"""Lines and tenants: the order of service, and the bound on how unequal it can become."""

from hypothesis import given
from hypothesis import strategies as st

from adex_proto.sampling import SamplingParams
from adex_scheduler.core.fairness import Line, Tenants
from adex_scheduler.core.sequence import Sequence, Tenant

NAMES = st.sampled_from(["a", "b", "c"])


def sequence(number: int, tenant: Tenant) -> Sequence:
    return Sequence(
        number=number,
        payer=tenant,
        key=None,
        sampling=SamplingParams(max_new_tokens=1),
        prompt=(1,),
        arrived_at=0.0,
        ends=frozenset(),
        tokens=[1],
        length_max=2,
        left=1,
    )


@given(st.lists(st.tuples(NAMES, st.integers(0, 30), st.booleans()), max_size=40))
def test_the_first_is_always_the_oldest_of_the_least_served_tenant(
    arrivals: list[tuple[str, int, bool]],
) -> None:
    tenants = Tenants(100)
    line = Line(tenants)
    waiting: list[Sequence] = []
    for number, (name, charge, leaves) in enumerate(arrivals):
        tenant = tenants.enter(name)
        one = sequence(number, tenant)
        line.add(one)
        waiting.append(one)
        tenant.served += charge
        least = min(waiting, key=lambda s: (s.payer.served, s.payer.order, s.number))
        assert line.first() is least
        if leaves:
            line.remove(least)
            waiting.remove(least)
    assert line.members() == sorted(waiting, key=lambda s: s.number)


@given(st.lists(NAMES, max_size=20), st.integers(1, 12))
def test_a_window_takes_one_of_each_tenant_before_a_second_of_any(
    names: list[str], count: int
) -> None:
    tenants = Tenants(100)
    line = Line(tenants)
    for number, name in enumerate(names):
        line.add(sequence(number, tenants.enter(name)))
    window = line.window(count)
    assert len(window) == min(count, len(names))
    assert len({one.number for one in window}) == len(window)
    taken = [[one.number for one in window if one.tenant == name] for name in "abc"]
    for name, numbers in zip("abc", taken, strict=True):
        mine = [number for number, other in enumerate(names) if other == name]
        assert numbers == mine[: len(numbers)]
    lengths = [
        len(numbers)
        for name, numbers in zip("abc", taken, strict=True)
        if len(numbers) < names.count(name)
    ]
    assert not lengths or max(map(len, taken)) - min(lengths) <= 1
    assert window == line.window(count)


def serve(tenants: Tenants, line: Line, cost: dict[str, int]) -> str:
    one = line.first()
    assert one is not None
    line.remove(one)
    tenants.end_waiting(one.payer)
    tenants.serve(one.payer, cost[one.tenant])
    return one.tenant


@given(st.integers(1, 50), st.integers(1, 50))
def test_tenants_who_always_wait_are_served_alike_whatever_their_requests_cost(
    cost_a: int, cost_b: int
) -> None:
    tenants = Tenants(100)
    line = Line(tenants)
    cost = {"a": cost_a, "b": cost_b}
    for number in range(400):
        tenant = tenants.enter("ab"[number % 2])
        tenants.begin_waiting(tenant)
        line.add(sequence(number, tenant))
    got = {"a": 0, "b": 0}
    while all(tenants.waiting_of(name) for name in "ab"):
        name = serve(tenants, line, cost)
        got[name] += cost[name]
    assert abs(got["a"] - got["b"]) <= 2 * max(cost_a, cost_b)


def test_a_tenant_back_from_idling_gets_its_share_and_no_arrears() -> None:
    tenants = Tenants(100)
    line = Line(tenants)
    number = 0

    def arrive(name: str, count: int) -> None:
        nonlocal number
        for _ in range(count):
            tenant = tenants.enter(name)
            tenants.begin_waiting(tenant)
            line.add(sequence(number, tenant))
            number += 1

    arrive("idle", 1)
    cost = {"busy": 10, "idle": 10}
    serve(tenants, line, cost)
    arrive("busy", 200)
    for _ in range(100):
        serve(tenants, line, cost)
    arrive("idle", 50)
    served = [serve(tenants, line, cost) for _ in range(40)]
    assert 18 <= served.count("idle") <= 22


def test_tenants_nobody_has_heard_of_for_long_are_forgotten_and_living_ones_are_not() -> None:
    tenants = Tenants(3)
    living = tenants.enter("living")
    for number in range(20):
        tenants.enter(f"passing-{number}").live -= 1
    assert tenants["living"] is living
    assert tenants.waiting_of("passing-0") == 0
