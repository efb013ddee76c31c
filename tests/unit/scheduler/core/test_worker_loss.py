"""The worker goes and comes: who fails, who waits, and what is known afterwards."""

import pytest

from adex_proto.adapter import Tier
from adex_proto.errors import WorkerLost
from adex_proto.outcome import Hello, Moved, StepOutcome
from adex_scheduler.core.events import Cancelled, Ticked, WorkerGone, WorkerReady
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk
from adex_scheduler.testing.fake_worker import worker_info


def lose(desk: Desk) -> None:
    desk.worker.forget_device()
    desk.tell(WorkerGone("UNAVAILABLE: unix:/run/worker.sock"))


def test_exactly_the_sequences_that_spoke_fail_and_the_others_are_served_later() -> None:
    desk = Desk(step_tokens_max=8, step_sequences_max=8)
    spoke = desk.arrive(new=30)
    desk.step()
    prefilling = desk.arrive(prompt=40)
    desk.step()
    loading = desk.arrive(desk.publish("a"))
    lose(desk)
    assert desk.errors.keys() == {spoke}
    assert isinstance(desk.errors[spoke], WorkerLost)
    # A caller learns what to do, and nothing of where the worker listens.
    assert str(desk.errors[spoke]) == "The worker went away in mid-text. Send it again"
    desk.reconnect()
    desk.settle()
    assert desk.tokens[prefilling] == desk.expected(prefilling)
    assert desk.tokens[loading] == desk.expected(loading, "digest-a")


def test_a_sequence_that_waits_for_a_worker_fails_after_the_stated_wait() -> None:
    desk = Desk(Limits(worker_wait_s_max=30.0))
    silent = desk.arrive(prompt=4)
    lose(desk)
    desk.now = 20.0
    later = desk.arrive()
    desk.now = 30.0
    desk.tell(Ticked())
    assert desk.errors.keys() == {silent}
    desk.now = 50.0
    desk.tell(Ticked())
    assert desk.errors.keys() == {silent, later}
    assert all(isinstance(error, WorkerLost) for error in desk.errors.values())


def test_requests_that_arrive_while_there_is_no_worker_wait_and_may_be_cancelled() -> None:
    desk = Desk()
    adapter = desk.publish("a")
    lose(desk)
    kept, cancelled = desk.arrive(adapter), desk.arrive(adapter)
    desk.tell(Cancelled(cancelled))
    desk.reconnect()
    desk.settle()
    assert desk.finish.keys() == {kept}


def test_answers_of_the_lost_stream_are_ignored() -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a"), new=9)
    lose(desk)
    desk.tell(StepOutcome(0))
    desk.tell(Moved("digest-a", Tier.DEVICE))
    desk.reconnect()
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-a")
    assert desk.blamed == []


def test_a_second_hello_without_a_loss_counts_as_one() -> None:
    desk = Desk()
    spoke = desk.arrive(new=30)
    desk.step()
    desk.reconnect()
    assert isinstance(desk.errors[spoke], WorkerLost)
    number = desk.arrive()
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)


def test_losing_the_worker_twice_is_losing_it_once() -> None:
    desk = Desk()
    desk.arrive()
    lose(desk)
    lose(desk)
    desk.reconnect()
    desk.settle()
    assert len(desk.finish) == 1


@pytest.mark.parametrize("moves", range(4))
def test_moves_under_way_are_forgotten_with_the_stream_and_made_again(moves: int) -> None:
    desk = Desk()
    number = desk.arrive(desk.publish("a", 500))
    for _ in range(moves):
        desk.answer()
    lose(desk)
    desk.reconnect()
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-a")
    assert desk.core.statistics().pages_adapters == 5


def test_a_smaller_worker_refuses_what_it_cannot_hold() -> None:
    desk = Desk(pages=60)
    number = desk.arrive(prompt=100, new=50)
    fits = desk.arrive(prompt=10, new=4)
    lose(desk)
    desk.worker.info = worker_info(pages=20)
    desk.tell(WorkerReady(Hello(desk.worker.info, ())))
    assert desk.errors[number].code == "validation"
    desk.settle()
    assert desk.finish.keys() == {fits}


def test_step_numbers_go_on_after_a_loss() -> None:
    desk = Desk()
    desk.arrive(new=30)
    desk.step()
    last = desk.plans[-1].step
    lose(desk)
    desk.reconnect()
    desk.arrive()
    assert desk.plans[-1].step > last


def test_counters_never_go_back_when_the_worker_is_lost() -> None:
    desk = Desk(pages=12, step_sequences_max=8)
    for _ in range(2):
        desk.arrive(prompt=range(10))
        desk.settle()
    for _ in range(6):
        desk.arrive(prompt=3, new=30)
    desk.settle()
    before = desk.core.statistics()
    assert before.preemptions > 0
    assert before.prefix_hits > 0
    lose(desk)
    desk.reconnect()
    after = desk.core.statistics()
    assert after.preemptions == before.preemptions
    assert after.prefix_hits == before.prefix_hits


def test_who_begins_again_after_a_loss_may_wait_as_long_as_any() -> None:
    desk = Desk(Limits(wait_s_max=60.0))
    number = desk.arrive(desk.publish("a"), new=4)
    desk.settle_commands()
    assert desk.core.sequences[number].began
    desk.now += 50.0
    lose(desk)
    desk.now += 20.0
    desk.reconnect()
    desk.tell(Ticked())
    desk.settle()
    assert not desk.errors
    assert desk.tokens[number] == desk.expected(number, "digest-a")
