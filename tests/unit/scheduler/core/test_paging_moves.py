"""Adapters through the core: names, tiers, room on the device, failures."""

import pytest

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.errors import AdapterNotFound, AdapterTooLarge, SourceUnavailable
from adex_proto.outcome import Held
from adex_proto.plan import Evict, Fetch, PageIn, Stage
from adex_scheduler.core.events import Cancelled, Ticked, WorkerReady
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk, key


def test_the_first_request_for_an_adapter_brings_it_through_every_tier() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a", 300))
    desk.settle()
    assert [type(command) for command in desk.commands] == [Fetch, Stage, PageIn]
    assert desk.tokens[number] == desk.expected(number, "digest-a")


def test_a_fetch_is_asked_for_as_soon_as_the_request_arrives() -> None:
    desk = Desk()
    busy = [desk.arrive(new=50) for _ in range(20)]
    desk.arrive(desk.publish("a"))
    assert len(busy) > desk.worker.info.step_sequences_max
    assert desk.sent(Fetch) == [Fetch(key("a"))]


def test_many_requests_for_one_name_cause_one_fetch_one_stage_and_one_page_in() -> None:
    desk = Desk()
    adapter = desk.publish("a")
    numbers = [desk.arrive(adapter) for _ in range(10)]
    desk.settle()
    assert [type(command) for command in desk.commands] == [Fetch, Stage, PageIn]
    assert desk.finish.keys() == set(numbers)


def test_names_that_mean_the_same_bytes_share_one_copy() -> None:
    desk = Desk()
    numbers = [desk.arrive(desk.publish(name, digest="same")) for name in ("a", "b")]
    desk.settle()
    assert len(desk.sent(PageIn)) == 1
    for number in numbers:
        assert desk.tokens[number] == desk.expected(number, "same")


def test_alternating_adapters_stay_while_there_is_room() -> None:
    desk = Desk()
    adapters = [desk.publish("a", 300), desk.publish("b", 300)]
    for turn in range(6):
        desk.arrive(adapters[turn % 2])
        desk.settle()
    assert len(desk.sent(PageIn)) == 2
    assert desk.sent(Evict) == []


def test_the_least_recently_used_idle_adapter_makes_room() -> None:
    desk = Desk(slots_max=2)
    for name in ("a", "b", "a", "c"):
        desk.arrive(desk.publish(name))
        desk.settle()
    assert desk.sent(Evict) == [Evict("digest-b", Tier.DEVICE)]


def test_pages_are_reused_only_after_the_eviction_is_answered() -> None:
    desk = Desk(pages=10)
    desk.arrive(desk.publish("a", 800), prompt=2, new=2)
    desk.settle()
    desk.arrive(desk.publish("b", 800), prompt=2, new=2)
    while not desk.sent(Evict):
        desk.answer()
    assert len(desk.sent(PageIn)) == 1
    desk.settle()
    assert len(desk.sent(PageIn)) == 2


def test_fetches_stages_and_page_ins_keep_to_their_depth() -> None:
    desk = Desk(Limits(fetches_max=3, stages_max=2, page_ins_max=1))
    for index in range(8):
        desk.arrive(desk.publish(f"a{index}"))
    assert len(desk.worker.commands) == 3
    most = {Fetch: 3, Stage: 2, PageIn: 1}
    while desk.worker.commands or desk.worker.plans:
        for kind, bound in most.items():
            assert sum(isinstance(c, kind) for c in desk.worker.commands) <= bound
        # Steps last, so that moves pile up as far as they may.
        if desk.worker.commands:
            desk.answer(len(desk.worker.commands) - 1)
        else:
            desk.step()
    assert len(desk.finish) == 8


def test_a_stuck_fetch_delays_no_other_adapter_and_no_base_request() -> None:
    desk = Desk()
    stuck = desk.arrive(desk.publish("stuck"))
    quick = desk.arrive(desk.publish("quick"))
    base = desk.arrive()
    while len(desk.finish) < 2:
        if len(desk.worker.commands) > 1:
            desk.answer(1)
        else:
            desk.step()
    assert desk.finish.keys() == {quick, base}
    assert stuck not in desk.errors


def test_a_failed_fetch_fails_exactly_those_who_waited_for_that_name() -> None:
    desk = Desk()
    doomed = [desk.arrive(key("missing")) for _ in range(3)]
    other = desk.arrive(desk.publish("a"))
    desk.settle()
    assert desk.errors.keys() == set(doomed)
    assert all(isinstance(desk.errors[number], AdapterNotFound) for number in doomed)
    assert desk.finish.keys() == {other}


def test_a_broken_name_fails_at_once_for_a_short_while_and_is_then_tried_again() -> None:
    desk = Desk(Limits(failure_ttl_s=2.0))
    desk.arrive(key("late"))
    desk.settle()
    desk.publish("late")
    assert desk.arrive(key("late")) in desk.errors
    assert len(desk.sent(Fetch)) == 1
    desk.now = 2.0
    number = desk.arrive(key("late"))
    desk.settle()
    assert desk.finish.keys() == {number}


def test_a_move_that_fails_is_tried_again_and_then_fails_its_waiters() -> None:
    desk = Desk(Limits(move_retries_max=2))
    number = desk.arrive(desk.publish("a", 500))
    desk.answer()
    desk.answer(fail=True)
    desk.answer()
    for _ in range(3):
        assert number not in desk.errors
        desk.answer(fail=True)
    assert isinstance(desk.errors[number], SourceUnavailable)
    statistics = desk.core.statistics()
    assert statistics.pages_adapters == statistics.slots_used == statistics.page_ins_in_flight == 0


def test_failing_loads_never_use_the_budget_up() -> None:
    desk = Desk(Limits(move_retries_max=0, failure_ttl_s=0.001), host_bytes=500, pages=12)
    adapter = desk.publish("a", 500)
    for attempt in range(30):
        desk.now += 1.0
        desk.arrive(adapter)
        while desk.worker.commands:
            kinds = (Stage, PageIn) if attempt % 2 else PageIn
            desk.answer(fail=isinstance(desk.worker.commands[0], kinds))
    assert len(desk.errors) == 30
    desk.now += 1.0
    number = desk.arrive(adapter)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-a")


def test_a_bundle_that_cannot_be_staged_is_removed_and_fetched_anew() -> None:
    desk = Desk(Limits(move_retries_max=0))
    adapter = desk.publish("a")
    first = desk.arrive(adapter)
    desk.answer()
    desk.answer(fail=True)
    assert first in desk.errors
    desk.settle()
    assert desk.sent(Evict) == [Evict("digest-a", Tier.DISK)]
    desk.now = 10.0
    second = desk.arrive(adapter)
    desk.settle()
    assert second in desk.finish
    assert len(desk.sent(Fetch)) == 2


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (20_000, "takes 20000 bytes, host memory for adapters has 10000"),
        (6300, "takes 63 pages and the request up to 2, the device has 64"),
    ],
)
def test_an_adapter_too_large_for_the_worker_is_refused_with_both_numbers(
    size: int, says: str
) -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("big", size), prompt=4, new=4)
    other = desk.arrive()
    desk.settle()
    assert isinstance(desk.errors[number], AdapterTooLarge)
    assert says in desk.errors[number].message
    assert other in desk.finish


def test_a_name_resolved_long_ago_is_resolved_again_beside_the_request() -> None:
    desk = Desk(Limits(alias_ttl_s=5.0))
    adapter = desk.publish("a", digest="old")
    desk.arrive(adapter)
    desk.settle()
    desk.publish("a", digest="new")
    desk.now = 4.0
    desk.arrive(adapter)
    desk.settle()
    assert len(desk.sent(Fetch)) == 1
    desk.now = 5.0
    stale = desk.arrive(adapter, new=9)
    desk.settle()
    assert len(desk.sent(Fetch)) == 2
    assert desk.tokens[stale] == desk.expected(stale, "old")
    fresh = desk.arrive(adapter)
    desk.settle()
    assert desk.tokens[fresh] == desk.expected(fresh, "new")


def test_running_requests_finish_on_the_version_they_began_with() -> None:
    desk = Desk(Limits(alias_ttl_s=1.0))
    adapter = desk.publish("a", digest="old")
    running = desk.arrive(adapter, new=30)
    desk.settle_commands()
    desk.step()
    desk.publish("a", digest="new")
    desk.now = 2.0
    desk.arrive(adapter)
    desk.settle_commands()
    fresh = desk.arrive(adapter, new=30)
    desk.settle()
    assert desk.tokens[running] == desk.expected(running, "old")
    assert desk.tokens[fresh] == desk.expected(fresh, "new")


def test_a_name_that_is_gone_when_resolved_again_fails_the_request_after() -> None:
    desk = Desk(Limits(alias_ttl_s=1.0))
    adapter = desk.publish("a")
    desk.arrive(adapter)
    desk.settle()
    del desk.worker.published[adapter]
    desk.now = 2.0
    served = desk.arrive(adapter)
    desk.settle()
    assert served in desk.finish
    assert isinstance(desk.errors[desk.arrive(adapter)], AdapterNotFound)


def test_a_source_that_does_not_answer_leaves_the_known_version_in_service() -> None:
    desk = Desk(Limits(alias_ttl_s=1.0))
    adapter = desk.publish("a")
    desk.arrive(adapter)
    desk.settle()
    for _ in range(3):
        desk.now += 2.0
        number = desk.arrive(adapter)
        desk.answer(fail=True)
        desk.settle()
        assert number in desk.finish


def test_cancelling_the_last_waiter_wastes_no_further_moves() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a"))
    desk.tell(Cancelled(number))
    desk.settle()
    assert [type(command) for command in desk.commands] == [Fetch]


def test_the_host_tier_keeps_to_its_budget_and_drops_what_is_idle() -> None:
    desk = Desk(host_bytes=1000)
    for index in range(6):
        desk.arrive(desk.publish(f"a{index}", 400))
        desk.settle()
        assert desk.core.statistics().host_bytes <= 1000
    assert len(desk.finish) == 6
    assert any(command.tier is Tier.HOST for command in desk.sent(Evict))


def test_the_disk_tier_drops_what_nobody_uses_and_forgets_its_names() -> None:
    desk = Desk(disk_bytes=1000, host_bytes=500, slots_max=1)
    for index in range(6):
        desk.arrive(desk.publish(f"a{index}", 400))
        desk.settle()
    assert desk.core.statistics().disk_bytes <= 1000
    again = desk.arrive(key("a0"))
    desk.settle()
    assert again in desk.finish
    assert desk.sent(Fetch).count(Fetch(key("a0"))) == 2


def test_a_worker_that_comes_with_far_too_much_on_disk_is_not_flooded() -> None:
    desk = Desk(Limits(disk_evictions_max=5), disk_bytes=1000)
    held = tuple(Held(AdapterVersion(f"held-{n}", 100, 8, 4), Tier.DISK) for n in range(200))
    desk.worker.disk = {copy.version.digest: copy.version for copy in held}
    desk.tell(WorkerReady(desk.worker.hello()))
    assert len(desk.sent(Evict)) == 5
    desk.settle()
    assert desk.core.statistics().disk_bytes <= 1000
    assert len(desk.sent(Evict)) == 190


def test_names_are_forgotten_beyond_their_bound_and_learnt_again() -> None:
    desk = Desk(Limits(aliases_max=3))
    for index in range(10):
        desk.arrive(desk.publish(f"a{index}"))
        desk.settle()
    assert desk.core.statistics().names <= 4
    number = desk.arrive(key("a0"))
    desk.settle()
    assert number in desk.finish


def test_a_reconnected_worker_keeps_its_host_and_disk_copies() -> None:
    desk = Desk()
    adapter = desk.publish("a")
    desk.arrive(adapter)
    desk.settle()
    desk.reconnect()
    number = desk.arrive(adapter)
    desk.settle()
    assert number in desk.finish
    assert [type(command) for command in desk.commands] == [Fetch, Stage, PageIn, PageIn]


def test_a_large_adapter_is_not_starved_by_small_ones_that_keep_coming() -> None:
    desk = Desk(Limits(turn_admissions=4), pages=24, slots_max=16)
    small = [desk.publish(f"s{index}", 300) for index in range(5)]
    for index in range(5):
        desk.arrive(small[index], new=6)
    desk.settle_commands()
    large = desk.arrive(desk.publish("large", 2000), prompt=2, new=2)
    for turn in range(400):
        # Always several small ones waiting, so the device is never idle of itself.
        while desk.core.statistics().sequences < 8:
            desk.arrive(small[turn % 5], new=6)
        if desk.worker.commands:
            desk.answer()
        else:
            desk.step()
        if large in desk.finish:
            return
    raise AssertionError(f"never served: {desk.core.statistics()}")


def test_an_adapter_that_cannot_be_placed_is_displaced_by_nobody_while_someone_waits_for_it() -> (
    None
):
    desk = Desk(slots_max=1, step_sequences_max=1)
    first = desk.arrive(desk.publish("a"), new=3)
    desk.settle_commands()
    second = desk.arrive(desk.publish("a"), new=3)
    third = desk.arrive(desk.publish("b"), new=3)
    desk.settle()
    assert list(desk.finish) == [first, second, third]
    assert len(desk.sent(PageIn)) == 2


def test_more_hot_adapters_than_slots_are_all_served_in_turn() -> None:
    desk = Desk(Limits(turn_admissions=4), slots_max=2)
    adapters = [desk.publish(f"a{index}") for index in range(20)]
    numbers = [desk.arrive(adapters[i % 20], tenant=f"t{i % 20}", new=4) for i in range(60)]
    desk.settle()
    assert desk.finish.keys() == set(numbers)
    # Each tenant's first comes before any tenant has had all of its own.
    firsts = [list(desk.finish).index(number) for number in numbers[:20]]
    assert max(firsts) < 59


def test_who_waits_for_host_memory_and_is_before_all_others_holds_admissions_back() -> None:
    desk = Desk(Limits(turn_s=1.0), pages=20, host_bytes=1000)
    desk.arrive(tenant="behind")
    desk.settle()
    desk.arrive(prompt=41, new=30, tenant="running")
    desk.step()
    behind = desk.arrive(desk.publish("behind", 1000), tenant="behind")
    desk.settle_commands()
    first = desk.arrive(desk.publish("first", 1000), tenant="first")
    desk.settle_commands()
    # Host memory holds what the one behind waits to have on the device, where it finds no room.
    assert [desk.tier_of(key(name)) for name in ("behind", "first")] == [Tier.HOST, Tier.DISK]
    for _ in range(2):
        desk.now += 10.0
        desk.tell(Ticked())
    held = desk.core.turns.held_for
    assert held is not None
    assert held.number == first
    desk.settle_commands()
    assert [desk.tier_of(key(name)) for name in ("behind", "first")] == [Tier.DISK, Tier.HOST]
    desk.settle()
    assert {first, behind} <= desk.finish.keys()
