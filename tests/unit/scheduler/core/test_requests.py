"""Requests through the core: admission, endings, cancellation, failures."""

import re

import pytest

from adex_proto.errors import Overloaded, ProtocolViolation, ShuttingDown, StepFailed
from adex_proto.outcome import SampledTokens, StepOutcome
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.events import Cancelled, Drained, StopFound, Ticked
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk
from adex_scheduler.testing.fake_worker import EOS, oracle


def prompt_whose_outputs(wanted: object, *, ignore_eos: bool = False) -> tuple[int, ...]:
    """A prompt whose outputs satisfy `wanted`, found by trying."""
    sampling = SamplingParams(max_new_tokens=6, ignore_eos=ignore_eos)
    for first in range(101):
        for second in range(101):
            if wanted(oracle("", (first, second), sampling, 101)):  # type: ignore[operator]
                return first, second
    raise AssertionError("no such prompt")


def test_a_request_gets_as_many_tokens_as_it_asked_for() -> None:
    desk = Desk()
    number = desk.arrive(new=5)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)
    assert desk.finish == {number: FinishReason.LENGTH}
    assert not desk.core.sequences


def test_after_a_night_without_requests_an_adapter_serves_as_before() -> None:
    desk = Desk()
    adapters = [desk.publish("a"), desk.publish("b")]
    for desk.now in (0.0, 1.0, 40_000.0, 1e8):
        numbers = [desk.arrive(adapter) for adapter in adapters]
        desk.settle()
        for number, name in zip(numbers, "ab", strict=True):
            assert desk.tokens[number] == desk.expected(number, f"digest-{name}")


def test_an_end_token_at_the_last_allowed_position_counts_as_the_end_token() -> None:
    prompt = prompt_whose_outputs(lambda out: len(out) == 3 and out[2] == EOS)
    desk = Desk()
    number = desk.arrive(prompt=prompt, sampling=SamplingParams(max_new_tokens=3))
    desk.settle()
    assert desk.finish == {number: FinishReason.EOS}


def test_an_ignored_end_token_ends_nothing() -> None:
    prompt = prompt_whose_outputs(lambda out: out[1] == EOS, ignore_eos=True)
    desk = Desk()
    number = desk.arrive(prompt=prompt, sampling=SamplingParams(max_new_tokens=6, ignore_eos=True))
    desk.settle()
    assert len(desk.tokens[number]) == 6
    assert desk.finish == {number: FinishReason.LENGTH}


def test_a_stop_token_ends_the_sequence_as_a_stop() -> None:
    desk = Desk()
    stop = oracle("", (1, 2), SamplingParams(max_new_tokens=3, ignore_eos=True), 101)[2]
    sampling = SamplingParams(max_new_tokens=50, stop_token_ids=(stop,), ignore_eos=True)
    number = desk.arrive(prompt=(1, 2), sampling=sampling)
    desk.settle()
    assert desk.finish == {number: FinishReason.STOP}
    assert desk.tokens[number][-1] == stop


def test_the_step_planned_before_an_end_was_known_is_dropped() -> None:
    prompt = prompt_whose_outputs(lambda out: len(out) == 2)
    desk = Desk()
    number = desk.arrive(prompt=prompt, sampling=SamplingParams(max_new_tokens=6))
    desk.step()
    desk.step()
    assert desk.finish == {number: FinishReason.EOS}
    # Its part of the next step is under way already; its blocks are not free before that.
    assert desk.core.statistics().pages_kv > 0
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)
    assert desk.core.statistics().dropped_tokens == 1
    assert desk.core.statistics().pages_kv == 0


def test_no_step_is_planned_beyond_the_length_that_is_known_to_be_reached() -> None:
    desk = Desk()
    desk.arrive(new=3)
    desk.settle()
    assert sum(len(plan.sequences) for plan in desk.plans) == 3


def test_two_steps_are_in_flight_and_no_more() -> None:
    desk = Desk()
    desk.arrive(new=20)
    desk.settle()
    assert desk.worker.steps_in_flight_max == 2


def test_a_long_prompt_is_computed_in_chunks_beside_the_decodes_of_others() -> None:
    desk = Desk(step_tokens_max=8, step_sequences_max=8)
    talker = desk.arrive(new=20)
    desk.step()
    reader = desk.arrive(prompt=40, new=2)
    desk.settle()
    shared = [plan for plan in desk.plans if set(plan.sequences) == {talker, reader}]
    chunks = [plan.spans[0].count for plan in shared if plan.decodes.sequences == (talker,)]
    assert len(chunks) >= 5
    assert max(chunks) <= 7
    for number in (talker, reader):
        assert desk.tokens[number] == desk.expected(number)


def test_a_cancelled_request_gives_everything_back() -> None:
    desk = Desk()
    adapter = desk.publish("a", 300)
    number = desk.arrive(adapter, new=50)
    desk.settle_commands()
    desk.step()
    desk.tell(Cancelled(number))
    desk.settle()
    statistics = desk.core.statistics()
    assert statistics.sequences == statistics.pages_kv == 0
    assert desk.core.tiers.adapters["digest-a"].pins == 0
    assert len(desk.worker.rows) == 0
    assert len(desk.tokens[number]) <= 1


def test_a_cancelled_waiting_request_leaves_its_place_in_the_queue() -> None:
    desk = Desk(Limits(waiting_max=1))
    adapter = desk.publish("a")
    number = desk.arrive(adapter)
    desk.tell(Cancelled(number))
    assert desk.arrive(adapter) not in desk.errors


def test_cancelling_twice_or_too_late_is_harmless() -> None:
    desk = Desk()
    number = desk.arrive()
    desk.tell(Cancelled(number))
    desk.tell(Cancelled(number))
    desk.settle()
    desk.tell(Cancelled(number))
    desk.tell(Cancelled(999))
    assert desk.core.statistics().cancelled == 1


def test_a_found_stop_string_ends_the_sequence_and_counts_as_finished() -> None:
    desk = Desk()
    number = desk.arrive(new=50)
    desk.step()
    desk.tell(StopFound(number))
    desk.settle()
    assert len(desk.tokens[number]) == 1
    assert desk.core.statistics().finished == {"stop_sequence": 1}


def test_a_failed_step_fails_its_sequence_alone() -> None:
    desk = Desk()
    broken, sound = desk.arrive(new=6), desk.arrive(new=6)
    desk.step()
    desk.step(fail=[broken])
    desk.settle()
    assert isinstance(desk.errors[broken], StepFailed)
    assert desk.tokens[sound] == desk.expected(sound)
    assert desk.core.statistics().failed == {"generation": 1}


def test_a_token_that_does_not_come_fails_its_sequence() -> None:
    desk = Desk()
    number = desk.arrive(new=6)
    outcome = desk.worker.run_plan()
    desk.tell(StepOutcome(outcome.step))
    assert isinstance(desk.errors[number], ProtocolViolation)


def test_a_token_nobody_asked_for_fails_its_sequence_and_is_not_shown() -> None:
    desk = Desk(step_tokens_max=4, step_sequences_max=4)
    number = desk.arrive(prompt=12, new=6)
    outcome = desk.worker.run_plan()
    desk.tell(StepOutcome(outcome.step, SampledTokens((number,), (5,))))
    assert isinstance(desk.errors[number], ProtocolViolation)
    assert desk.tokens[number] == []


def test_an_answer_out_of_turn_is_blamed_on_the_worker() -> None:
    desk = Desk()
    desk.arrive()
    desk.tell(StepOutcome(17))
    assert desk.blamed == ["outcome of step 17 came, of step 0 was awaited"]


@pytest.mark.parametrize(
    ("prompt", "new", "says"),
    [
        (0, 4, "no tokens"),
        (200, 60, "200 prompt tokens and 60 new ones exceed the 256 positions"),
        (40, 60, "40 prompt tokens and 60 new ones take 25 blocks, the device has 20"),
        ((1, 500), 4, r"\[0, 101\)"),
    ],
)
def test_what_can_never_be_served_is_refused_on_arrival(
    prompt: int | tuple[int, ...], new: int, says: str
) -> None:
    desk = Desk(pages=20)
    number = desk.arrive(prompt=prompt, new=new)
    error = desk.errors[number]
    assert error.code == "validation"
    assert re.search(says, error.message)
    assert not desk.core.sequences


def test_a_request_that_needs_the_whole_device_is_served() -> None:
    desk = Desk(pages=20)
    others = [desk.arrive(new=10) for _ in range(3)]
    number = desk.arrive(prompt=40, new=41)
    desk.settle()
    for each in (*others, number):
        assert desk.tokens[each] == desk.expected(each)


def test_prompts_beyond_the_servers_own_limit_are_refused() -> None:
    desk = Desk(Limits(prompt_tokens_max=10))
    assert desk.errors[desk.arrive(prompt=11)].field == "inputs"


def test_a_full_queue_refuses_and_a_full_tenant_refuses_only_that_tenant() -> None:
    desk = Desk(Limits(waiting_max=3, waiting_tenant_max=2))
    adapter = desk.publish("a")
    numbers = [desk.arrive(adapter, tenant=tenant) for tenant in ("x", "x", "x", "y", "y")]
    refused = [number for number in numbers if number in desk.errors]
    assert refused == [numbers[2], numbers[4]]
    for number in refused:
        error = desk.errors[number]
        assert isinstance(error, Overloaded)
        assert error.retry_after_s is not None
        assert error.retry_after_s >= 1.0
    assert "for this tenant" in desk.errors[numbers[2]].message
    assert desk.core.statistics().refused == {"overloaded": 2}


def test_a_request_that_never_begins_fails_after_the_stated_wait() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    adapter = desk.publish("a")
    number = desk.arrive(adapter)
    desk.now = 9.0
    desk.tell(Ticked())
    assert number not in desk.errors
    desk.now = 10.0
    desk.tell(Ticked())
    assert desk.errors[number].code == "source_unavailable"


def test_a_request_that_has_begun_has_no_deadline() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    number = desk.arrive(new=8)
    desk.step()
    desk.now = 100.0
    desk.tell(Ticked())
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)


def test_draining_refuses_what_is_new_and_finishes_what_is_old() -> None:
    desk = Desk()
    old = desk.arrive()
    desk.tell(Drained())
    new = desk.arrive()
    desk.settle()
    assert desk.finish.keys() == {old}
    assert isinstance(desk.errors[new], ShuttingDown)


def test_tenants_are_served_alike_however_many_requests_one_of_them_sends() -> None:
    desk = Desk(step_sequences_max=1, step_tokens_max=8)
    for _ in range(10):
        desk.arrive(tenant="flood")
    late = desk.arrive(tenant="quiet")
    desk.settle()
    assert list(desk.finish).index(late) <= 2


def test_within_a_tenant_who_came_first_goes_first() -> None:
    desk = Desk(step_sequences_max=1, step_tokens_max=8)
    numbers = [desk.arrive() for _ in range(5)]
    desk.settle()
    assert list(desk.finish) == numbers
