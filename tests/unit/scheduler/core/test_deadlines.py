"""Requests that name a deadline for their first token: refused early, dropped early, or served."""

from adex_proto.adapter import Tier
from adex_proto.errors import DeadlineUnmeetable
from adex_scheduler.core.events import Ticked
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk


def test_a_deadline_that_can_be_met_changes_nothing() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a"), deadline_s=30.0)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-a")
    assert not desk.errors


def test_an_adapter_that_cannot_come_in_time_is_refused_on_arrival_with_a_hint() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a"), deadline_s=0.001)
    error = desk.errors[number]
    assert isinstance(error, DeadlineUnmeetable)
    assert "the request allows 0.001 s" in error.message
    assert error.retry_after_s == 1.0
    assert not desk.commands
    assert desk.core.statistics().refused == {"deadline_unmeetable": 1}


def test_what_moves_really_take_decides_and_not_what_was_assumed() -> None:
    desk = Desk(host_bytes=10**9)
    slow, late = desk.publish("slow"), desk.publish("late")
    desk.arrive(slow)
    desk.now += 20.0
    desk.settle_commands()
    assert desk.core.statistics().links["fetch_local"].fixed_s > 0.5
    assert isinstance(desk.errors[desk.arrive(late, deadline_s=0.5)], DeadlineUnmeetable)
    # The one that is on the device already needs no move.
    assert desk.tier_of(slow) is Tier.DEVICE
    assert desk.arrive(slow, deadline_s=0.5) not in desk.errors


def test_a_long_queue_is_seen_on_arrival() -> None:
    desk = Desk(Limits(running_max=1))
    for _ in range(20):
        desk.arrive(new=4)
    for _ in range(4 * 6):
        desk.now += 0.5
        desk.step()
    assert isinstance(desk.errors[desk.arrive(deadline_s=1.0)], DeadlineUnmeetable)
    assert desk.arrive(deadline_s=1000.0) not in desk.errors
    # Another tenant's first request waits for one turn and not for the whole queue.
    assert desk.arrive(tenant="other", deadline_s=8.0) not in desk.errors


def test_a_quiet_hour_does_not_make_the_queue_look_slow() -> None:
    desk = Desk(Limits(running_max=1))
    for _ in range(3):
        desk.now += 3600.0
        desk.arrive(new=1)
        desk.settle()
    desk.arrive(new=50)
    desk.arrive()
    assert desk.arrive(deadline_s=1.0) not in desk.errors


def test_one_that_can_no_longer_be_met_leaves_the_queue_and_nothing_of_it_stays() -> None:
    desk = Desk(Limits(running_max=1))
    desk.arrive(new=50)
    late = desk.arrive(new=4, deadline_s=5.0)
    desk.now = 4.0
    desk.tell(Ticked())
    assert late not in desk.errors
    desk.now = 5.1
    desk.tell(Ticked())
    assert isinstance(desk.errors[late], DeadlineUnmeetable)
    desk.settle()
    assert desk.tokens[late] == []
    assert desk.core.statistics().sequences == 0


def test_one_that_has_begun_is_served_to_its_end_however_late() -> None:
    desk = Desk()
    number = desk.arrive(new=5, deadline_s=1.0)
    desk.now = 50.0
    desk.tell(Ticked())
    desk.settle()
    assert len(desk.tokens[number]) == 5
