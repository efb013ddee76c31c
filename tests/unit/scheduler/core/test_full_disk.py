"""A disk of which others took the worker's share: what nobody uses leaves, and requests go on."""

from adex_proto.adapter import Tier
from adex_proto.errors import CacheFull
from adex_scheduler.core.disk_room import LOWERED_S, SHARES
from adex_scheduler.core.events import Ticked
from adex_scheduler.testing.desk import Desk


def crowded(there: int, **changes: int) -> Desk:
    """A desk whose disk has a budget of 10 000 bytes, and in truth room for `there`."""
    desk = Desk(**({"disk_bytes": 10_000, "host_bytes": 500, "slots_max": 2} | changes))
    desk.worker.disk_bytes_there = there
    return desk


def use(desk: Desk, name: str, count: int) -> None:
    """So many adapters of 100 bytes are used, one after the other."""
    for number in range(count):
        desk.arrive(desk.publish(f"{name}{number}"), new=1)
        desk.settle()


def held(desk: Desk) -> int:
    return sum(version.bundle_bytes for version in desk.worker.disk.values())


def test_requests_for_more_adapters_than_a_full_disk_takes_are_all_served() -> None:
    desk = crowded(1000)
    for number in range(60):
        desk.arrive(desk.publish(f"a{number}"), new=1)
        desk.settle()
        assert held(desk) <= 1000
    assert desk.errors == {}
    assert len(desk.finish) == 60
    # Room is made for several at once, so that few have to be asked for again.
    assert desk.core.statistics().fetch_failures < 60 // 5


def test_many_at_once_make_room_once() -> None:
    desk = crowded(2000)
    use(desk, "a", 20)
    for number in range(8):
        desk.arrive(desk.publish(f"b{number}", size=30), new=1)
    desk.settle()
    assert desk.errors == {}
    assert held(desk) > 1000


def test_what_nothing_can_make_room_for_fails_as_such_and_without_delay() -> None:
    desk = crowded(1000)
    desk.preload(desk.publish("small", size=300), tier=Tier.HOST)
    desk.settle()
    number = desk.arrive(desk.publish("huge", size=1200), new=1)
    desk.settle()
    assert isinstance(desk.errors[number], CacheFull)


def test_an_empty_disk_that_takes_nothing_fails_the_request_that_needs_it() -> None:
    desk = crowded(50)
    number = desk.arrive(desk.publish("a"), new=1)
    desk.settle()
    assert isinstance(desk.errors[number], CacheFull)


def test_what_an_operator_has_pinned_stays_on_a_full_disk() -> None:
    desk = crowded(1000, host_bytes=2000)
    kept = desk.publish("kept", size=400)
    desk.pin(kept, tier=Tier.HOST)
    desk.settle()
    use(desk, "a", 30)
    assert desk.errors == {}
    assert "digest-kept" in desk.worker.disk


def test_when_others_have_left_room_it_is_used_again() -> None:
    desk = crowded(1000, host_bytes=3000)
    use(desk, "a", 30)
    desk.worker.disk_bytes_there = 20_000
    desk.now += LOWERED_S
    desk.tell(Ticked())
    use(desk, "b", 30)
    assert held(desk) > 3000


def test_another_worker_may_have_another_disk() -> None:
    desk = crowded(1000, host_bytes=3000)
    use(desk, "a", 30)
    desk.worker.disk_bytes_there = 20_000
    desk.reconnect()
    use(desk, "b", 30)
    assert held(desk) > 3000


def test_a_name_is_tried_again_a_few_times_and_no_more() -> None:
    desk = Desk(disk_bytes=10_000)
    use(desk, "a", 20)
    before = desk.core.statistics().fetch_failures
    desk.worker.disk_bytes_there = 0
    number = desk.arrive(desk.publish("late"), new=1)
    desk.settle()
    assert isinstance(desk.errors[number], CacheFull)
    assert desk.core.statistics().fetch_failures - before == len(SHARES) + 1
