"""KV blocks under pressure: growth, idle prefixes, idle adapters, preemption."""

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.plan import Evict
from adex_proto.sampling import SamplingParams
from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.events import Cancelled
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.room import Room, find_among_idle, find_room
from adex_scheduler.testing.desk import Desk


def test_blocks_are_taken_as_they_are_needed() -> None:
    desk = Desk()
    desk.arrive(prompt=4, new=40)
    desk.step()
    assert desk.core.statistics().pages_kv <= 2
    desk.settle()


def test_sequences_beyond_the_room_are_preempted_and_computed_again_to_the_same_tokens() -> None:
    desk = Desk(pages=12, step_sequences_max=8)
    numbers = [desk.arrive(prompt=3, new=30) for _ in range(6)]
    desk.settle()
    assert desk.core.statistics().preemptions > 0
    for number in numbers:
        assert desk.tokens[number] == desk.expected(number)


def test_the_oldest_running_sequence_is_never_preempted() -> None:
    desk = Desk(pages=12, step_sequences_max=8)
    numbers = [desk.arrive(prompt=3, new=30) for _ in range(6)]
    desk.settle()
    arrivals = [new.sequence for plan in desk.plans for new in plan.arrived]
    assert arrivals.count(numbers[0]) == 1
    assert next(iter(desk.finish)) == numbers[0]


def test_a_preempted_sequence_arrives_again_with_all_its_tokens() -> None:
    desk = Desk(Limits(prefix_cache=False), pages=12, step_sequences_max=8)
    for _ in range(6):
        desk.arrive(prompt=3, new=30)
    desk.settle()
    again = [new for plan in desk.plans for new in plan.arrived if len(new.token_ids) > 3]
    assert again
    for new in again:
        shown = desk.tokens[new.sequence][: len(new.token_ids) - 3]
        assert list(new.token_ids[3:]) == shown
        assert new.output_start == 3


def test_a_cancelled_sequence_that_was_preempted_is_gone() -> None:
    desk = Desk(pages=12, step_sequences_max=8)
    numbers = [desk.arrive(prompt=3, new=30) for _ in range(6)]
    while not desk.core.statistics().preemptions:
        desk.step()
    for number in numbers:
        desk.tell(Cancelled(number))
    desk.settle()
    assert not desk.core.sequences
    assert desk.core.statistics().pages_kv == 0


def test_a_run_longer_than_all_those_that_should_leave_first_is_found() -> None:
    desk = Desk(pages=412, slots_max=100, host_bytes=100_000, disk_bytes=100_000)
    desk.checking = False
    small = [desk.publish(f"small-{place:02}", 500) for place in range(80)]
    for name in small:
        desk.arrive(name, prompt=2, new=1)
        desk.settle()
    desk.now = 2.0
    number = desk.arrive(desk.publish("large", 20_000), prompt=2, new=1)
    desk.settle()
    assert len(desk.tokens[number]) == 1
    assert desk.core.tiers.counters.device_evictions <= 41


def test_idle_adapters_give_way_to_running_sequences() -> None:
    desk = Desk(pages=20)
    desk.arrive(desk.publish("idle", 1500), prompt=2, new=2)
    desk.settle()
    number = desk.arrive(prompt=20, new=40)
    desk.settle()
    assert desk.sent(Evict) == [Evict("digest-idle", Tier.DEVICE)]
    assert desk.tokens[number] == desk.expected(number)
    assert desk.core.statistics().preemptions == 0


def test_idle_prefixes_give_way_to_an_adapter() -> None:
    desk = Desk(pages=20)
    desk.arrive(prompt=40, new=20)
    desk.settle()
    assert desk.core.statistics().pages_prefix >= 14
    number = desk.arrive(desk.publish("a", 1500), prompt=2, new=2)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-a")


def full_of_prefixes_and_adapters() -> tuple[Desk, int]:
    """Adapter `old` on the device, unused since 1.0; a prefix unused since 2.0 in the rest."""
    desk = Desk(pages=30)
    desk.now = 1.0
    desk.arrive(desk.publish("old", 1000), prompt=2, new=2)
    desk.settle()
    desk.now = 2.0
    desk.arrive(prompt=40, new=30)
    desk.settle()
    prefix = desk.core.statistics().pages_prefix
    assert prefix > 15
    desk.now = 3.0
    return desk, prefix


def test_an_adapter_unused_for_longer_leaves_for_another_before_a_prefix_does() -> None:
    desk, prefix = full_of_prefixes_and_adapters()
    desk.arrive(desk.publish("new", 1000), prompt=2, new=2)
    desk.settle()
    assert Evict("digest-old", Tier.DEVICE) in desk.sent(Evict)
    assert desk.core.statistics().pages_prefix >= prefix


def test_a_prefix_unused_for_longer_leaves_for_an_adapter_before_another_does() -> None:
    desk, prefix = full_of_prefixes_and_adapters()
    desk.arrive(desk.publish("old", 1000), prompt=2, new=2)
    desk.settle()
    desk.arrive(desk.publish("new", 1000), prompt=2, new=2)
    desk.settle()
    assert not desk.sent(Evict)
    assert desk.core.statistics().pages_prefix < prefix


def test_a_repeated_prompt_is_computed_once_but_for_its_last_token() -> None:
    desk = Desk()
    prompt = tuple(range(1, 17))
    first = desk.arrive(prompt=prompt)
    desk.settle()
    plans = len(desk.plans)
    second = desk.arrive(prompt=prompt)
    desk.settle()
    span = desk.plans[plans].spans[0]
    assert (span.start, span.count) == (12, 4)
    assert desk.core.statistics().prefix_hits == 3
    assert desk.tokens[first] == desk.tokens[second] == desk.expected(first)


def test_a_conversation_continues_from_the_blocks_its_answer_left() -> None:
    desk = Desk()
    first = desk.arrive(prompt=tuple(range(1, 9)), new=9)
    desk.settle()
    longer = (*range(1, 9), *desk.tokens[first], 5, 5)
    second = desk.arrive(prompt=longer)
    desk.settle()
    assert desk.core.statistics().prefix_hits == 4
    assert desk.tokens[second] == desk.expected(second)


def test_tenants_and_adapters_do_not_share_prefixes() -> None:
    desk = Desk()
    prompt = (7,) * 20
    adapter = desk.publish("a")
    for tenant, named in (("", None), ("x", None), ("", adapter), ("x", adapter)):
        desk.arrive(named, prompt=prompt, tenant=tenant)
        desk.settle()
    assert desk.core.statistics().prefix_hits == 0


def test_a_block_is_shared_only_after_the_step_that_computed_it_has_retired() -> None:
    desk = Desk()
    prompt = (7,) * 20
    # One token only, so that its second step is not in flight instead of the other's first.
    desk.arrive(prompt=prompt, new=1)
    early = desk.arrive(prompt=prompt)
    arrived = [new.sequence for plan in desk.plans for new in plan.arrived]
    assert early in arrived
    assert desk.core.statistics().prefix_hits == 0
    desk.step()
    late = desk.arrive(prompt=prompt)
    desk.settle()
    assert desk.core.statistics().prefix_hits == 4
    for number in (early, late):
        assert desk.tokens[number] == desk.expected(number)


def test_a_cancelled_step_leaves_nothing_uncomputed_in_the_prefix_cache() -> None:
    desk = Desk(step_tokens_max=8, step_sequences_max=8)
    prompt = (7,) * 40
    number = desk.arrive(prompt=prompt)
    desk.step()
    desk.tell(Cancelled(number))
    desk.settle()
    again = desk.arrive(prompt=prompt)
    desk.settle()
    assert desk.tokens[again] == desk.expected(again)
    assert 0 < desk.core.statistics().prefix_hits <= 4


def test_kv_blocks_come_from_the_high_end_and_adapters_from_the_low_end() -> None:
    desk = Desk(pages=40)
    number = desk.arrive(desk.publish("a", 500), prompt=4, new=30)
    desk.settle_commands()
    desk.step()
    adapter = desk.core.tiers.adapters["digest-a"]
    assert (adapter.first_page, adapter.stop_page) == (0, 5)
    assert min(desk.core.sequences[number].blocks) >= 37


def resident(pool: PagePool, name: str, first_page: int, pages: int) -> Adapter:
    pool.take_exact(first_page, first_page + pages)
    version = AdapterVersion(name, pages * 100, 8, 4)
    return Adapter(version, pages, first_page=first_page)


def displaced(pages: int, pool: PagePool, candidates: list[Adapter]) -> tuple[int, str] | None:
    room = find_room(pages, pool, candidates)
    return room and (room.first, "".join(victim.digest for victim in room.victims))


def test_room_is_made_by_those_who_leave_sooner_before_loose_pages_are_taken() -> None:
    pool = PagePool(20)
    a, b = resident(pool, "a", 0, 5), resident(pool, "b", 5, 5)
    pool.take_exact(10, 20)
    pool.loosen(range(14, 20))
    assert find_room(5, pool, [a, b]) == Room(14, ())
    assert find_room(5, pool, [a, b], [b]) == Room(5, (b,))
    assert find_room(6, pool, [a, b], [b]) == Room(14, ())
    assert find_room(7, pool, [a, b], [b, a]) == Room(0, (a, b))


def test_room_for_a_run_prefers_free_pages_and_then_the_first_candidates() -> None:
    pool = PagePool(20)
    a, b, c = (resident(pool, name, at, 5) for name, at in (("a", 0), ("b", 5), ("c", 12)))
    # Pages 10-11 and 17-19 are free.
    assert displaced(3, pool, [a, b, c]) == (17, "")
    assert displaced(2, pool, [a, b, c]) == (10, "")
    assert displaced(5, pool, [a, b, c]) == (0, "a")
    assert displaced(5, pool, [c, b, a]) == (10, "c")
    assert displaced(6, pool, [a, b, c]) == (5, "b")
    assert displaced(10, pool, [a, c, b]) == (10, "c")
    assert displaced(11, pool, [a, b, c]) == (0, "ab")
    assert displaced(20, pool, [a, b, c]) == (0, "abc")
    assert displaced(20, pool, [a, c]) is None
    assert displaced(21, pool, [a, b, c]) is None


def test_room_among_loose_pages_displaces_nobody() -> None:
    pool = PagePool(20)
    a = resident(pool, "a", 0, 5)
    pool.take_exact(5, 20)
    assert displaced(6, pool, [a]) is None
    pool.loosen(range(8, 16))
    assert displaced(6, pool, [a]) == (8, "")
    pool.loosen(range(5, 8))
    assert displaced(13, pool, [a]) == (0, "a")


def test_room_among_all_who_are_idle_is_the_lowest_and_displaces_those_inside_it() -> None:
    pool = PagePool(20)
    _, b, c = (resident(pool, name, at, 3) for name, at in (("a", 0), ("b", 5), ("c", 10)))
    # Pages 3-4, 8-9 and 13-19 are free; a is used.
    for one in (b, c):
        pool.offer(one.first_page, one.stop_page)
    idle = [c, b]
    assert find_among_idle(6, pool, idle) == Room(3, (b,))
    assert find_among_idle(7, pool, idle) == Room(3, (b,))
    assert find_among_idle(8, pool, idle) == Room(3, (c, b))
    assert find_among_idle(17, pool, idle) == Room(3, (c, b))
    assert find_among_idle(18, pool, idle) is None
    pool.withdraw(b.first_page, b.stop_page)
    assert find_among_idle(6, pool, [c]) == Room(8, (c,))


def test_admission_leaves_room_for_the_running_to_grow() -> None:
    desk = Desk(Limits(watermark_fraction=0.2, prefix_cache=False), pages=20)
    desk.arrive(prompt=40, new=24)
    desk.step()
    desk.arrive(prompt=28, new=2)
    assert desk.core.statistics().running == 1
    desk.settle()
    assert len(desk.finish) == 2


def test_a_stop_in_mid_prompt_frees_what_was_promised() -> None:
    desk = Desk(pages=30, step_tokens_max=4, step_sequences_max=4)
    number = desk.arrive(prompt=60, new=2)
    desk.step()
    assert desk.core.batch.promised > 0
    desk.tell(Cancelled(number))
    assert desk.core.batch.promised == 0
    desk.settle()


def test_minimum_tokens_and_ends_survive_preemption() -> None:
    desk = Desk(pages=12, step_sequences_max=8)
    sampling = SamplingParams(max_new_tokens=30, min_new_tokens=25, stop_token_ids=(3, 4, 5))
    numbers = [desk.arrive(prompt=(index, 2), sampling=sampling) for index in range(1, 7)]
    desk.settle()
    assert desk.core.statistics().preemptions > 0
    for number in numbers:
        assert desk.tokens[number] == desk.expected(number)
