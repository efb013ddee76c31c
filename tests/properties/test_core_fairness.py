"""Lines and tenants: the order of service, what it costs, and how unequal it can become."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.adapter import Tier
from adex_proto.sampling import SamplingParams
from adex_scheduler.core.events import Cancelled
from adex_scheduler.core.fairness import (
    LOAD_WEIGHTS,
    OUTPUT_TOKEN_WEIGHT,
    Line,
    Tenants,
    charge_max,
    lag_max,
    output_charge,
)
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.sequence import Sequence, Tenant
from adex_scheduler.testing.desk import Desk

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


def serve(tenants: Tenants, line: Line, cost: dict[str, float]) -> str:
    one = line.first()
    assert one is not None
    line.remove(one)
    tenants.end_waiting(one.payer)
    tenants.serve(one.payer, cost[one.tenant])
    return one.tenant


REQUESTS = st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 100_000))
WEIGHTS = st.sampled_from([0.25, 1.0, 3.0])


@given(REQUESTS, REQUESTS, WEIGHTS, WEIGHTS)
def test_tenants_who_always_wait_get_what_their_weights_say_whatever_their_requests_cost(
    request_a: tuple[int, int, int],
    request_b: tuple[int, int, int],
    weight_a: float,
    weight_b: float,
) -> None:
    weights = {"a": weight_a, "b": weight_b}
    tenants = Tenants(100, weights)
    line = Line(tenants)
    cost = {"a": charge_max(*request_a), "b": charge_max(*request_b)}
    for number in range(400):
        tenant = tenants.enter("ab"[number % 2])
        tenants.begin_waiting(tenant)
        line.add(sequence(number, tenant))
    got = {"a": 0.0, "b": 0.0}
    largest = max(cost[name] / weights[name] for name in "ab")
    while all(tenants.waiting_of(name) for name in "ab"):
        name = serve(tenants, line, cost)
        got[name] += cost[name] / weights[name]
        assert abs(got["a"] - got["b"]) <= lag_max(largest) * (1 + 1e-9)


@given(st.integers(1, 2000), st.integers(1, 2000), WEIGHTS, st.integers(1, 4))
@settings(max_examples=15)
def test_beside_steps_in_flight_the_lag_is_bounded_by_what_runs_at_once(
    size_a: int, size_b: int, weight: float, running_max: int
) -> None:
    limits = Limits(running_max=running_max, tenant_weights={"a": weight})
    desk = Desk(limits, pages=200)
    desk.checking = False
    keys = {"a": desk.publish("of-a", size_a), "b": desk.publish("of-b", size_b)}
    for key in keys.values():
        desk.preload(key)
    desk.settle()
    for _ in range(30):
        for name, key in keys.items():
            desk.arrive(key, tenant=name)
    tenants, info = desk.core.tenants, desk.core.info
    pages = max(-(-size // info.page_bytes) for size in (size_a, size_b))
    largest = charge_max(3, 4, pages * info.block_tokens) / min(weight, 1.0)
    while all(tenants.waiting_of(name) for name in "ab"):
        lag = abs(tenants["a"].served - tenants["b"].served)
        assert lag <= lag_max(largest, at_once=running_max)
        desk.step()


def test_a_request_that_has_its_adapter_fetched_and_to_itself_costs_the_most() -> None:
    desk = Desk()
    desk.arrive(desk.publish("cold", 1000), prompt=5, new=4, tenant="a")
    desk.settle()
    assert desk.core.tenants["a"].served == charge_max(5, 4, positions=40)
    # The next one finds it there.
    desk.arrive(desk.publish("cold", 1000), prompt=5, new=4, tenant="a")
    desk.settle()
    again = 5 + 4 * output_charge(40, users=1)
    assert desk.core.tenants["a"].served == charge_max(5, 4, positions=40) + again


def test_what_is_fetched_for_a_request_is_charged_though_it_goes_away() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("cold", 1000), tenant="a")
    desk.tell(Cancelled(number))
    desk.settle()
    assert desk.core.tenants["a"].served == LOAD_WEIGHTS[Tier.DISK] * 40


def test_who_shares_an_adapter_shares_its_part_of_the_step() -> None:
    assert output_charge(0, users=1) == OUTPUT_TOKEN_WEIGHT
    alone, shared = output_charge(5000, users=1), output_charge(5000, users=4)
    assert alone - OUTPUT_TOKEN_WEIGHT == 4 * (shared - OUTPUT_TOKEN_WEIGHT)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_a_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="tenant_weights must be positive"):
        Limits(tenant_weights={"a": weight})


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
    cost = {"busy": 10.0, "idle": 10.0}
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
