"""What steps take is learned, and prompts beside decodes are cut by it."""

from collections.abc import Iterator

import pytest

from adex_scheduler.core.limits import Limits, Pacing
from adex_scheduler.core.step_time import STEPS_BESIDE_MAX, StepTime, prompt_tokens_min
from adex_scheduler.testing.desk import Desk

# A step of the fake worker takes a millisecond, whatever is in it.
NEVER = Limits(pacing=Pacing(target_s=1e-9))


def seconds(decodes: int, prompt_tokens: int) -> float:
    """A machine on which a prompt token costs three times what a decode does."""
    return 0.008 + 0.0001 * decodes + 0.0003 * prompt_tokens


def taught(steps: int) -> StepTime:
    """One that has seen steps with prompts, then `steps` without."""
    learned = StepTime()
    for count in range(40):
        learned.observe(count % 20, 0, seconds(count % 20, 0))
    for count in range(40):
        learned.observe(count % 20, 30 + 9 * count, seconds(count % 20, 30 + 9 * count))
    for count in range(steps):
        learned.observe(count % 20, 0, seconds(count % 20, 0))
    return learned


def prompts_of(desk: Desk) -> Iterator[int]:
    """Prompt tokens of each plan in which somebody decodes."""
    for plan in desk.plans:
        if plan.decodes.sequences:
            yield sum(span.count for span in plan.spans)


@pytest.mark.parametrize("steps", [0, 5000])
def test_decodes_and_prompts_are_told_apart_however_long_ago_there_were_prompts(steps: int) -> None:
    learned = taught(steps)
    for decodes, prompt_tokens in ((1, 0), (16, 0), (8, 64), (16, 400)):
        expected = pytest.approx(seconds(decodes, prompt_tokens), rel=0.05)
        assert learned.seconds(decodes, prompt_tokens) == expected


def test_a_step_that_hangs_is_not_taken_for_what_steps_take() -> None:
    learned = taught(0)
    learned.observe(8, 100, 60.0)
    assert learned.seconds(8, 100) < 3 * seconds(8, 100)


def test_prompts_that_were_free_are_not_taken_for_free_in_any_number() -> None:
    learned = StepTime()
    for _ in range(200):
        learned.observe(8, 0, 0.004)
        learned.observe(8, 100, 0.004)
    assert learned.prompt_room(8, 1, Pacing(0.005)) == 200


def test_where_prompts_have_long_been_free_steps_are_paced_all_the_same() -> None:
    learned = StepTime()
    for _ in range(30_000):
        learned.observe(8, 100, 0.0)
    assert learned.prompt_room(8, 1, Pacing(stretch_max=2.0)) == 200
    assert learned.prompt_room(8, 1, Pacing(target_s=1e-9)) == 0


def test_a_step_that_failed_tells_nothing_of_what_steps_take() -> None:
    desk = Desk(Limits(plans_in_flight_max=1))
    desk.arrive(new=4)
    desk.settle()
    before = desk.core.step_time.alone.seconds(1)
    for _ in range(10):
        broken = desk.arrive(new=5)
        desk.step()
        desk.step(fail=(broken,))
        assert broken in desk.errors
        desk.settle()
    assert desk.core.step_time.alone.seconds(1) == before


def test_where_having_prompts_at_all_costs_they_are_not_cut_to_nothing() -> None:
    def dear(prompt_tokens: int) -> float:
        return 0.005 + (0.02 + 0.00002 * prompt_tokens if prompt_tokens else 0.0)

    learned, pacing = StepTime(), Pacing(stretch_max=2.0)
    for count in range(200):
        learned.observe(8, 0, dear(0))
        # The last chunk of a prompt is of any size.
        chunk = min(max(learned.prompt_room(8, 1, pacing), 64), 1 + 37 * count % 4096)
        learned.observe(8, chunk, dear(chunk))
    assert 0.03 < dear(learned.prompt_room(8, 1, pacing)) < 0.055


def test_what_more_decodes_take_is_not_taken_for_what_prompts_take() -> None:
    learned, pacing = StepTime(), Pacing(stretch_max=3.0)
    for count in range(100):
        learned.observe(1 + count % 4, 0, seconds(1 + count % 4, 0))
    # From then on all steps have prompts of 200 tokens each, but for those that go without.
    left = 200
    for count in range(10 * STEPS_BESIDE_MAX):
        decodes = 60 + count % 7
        chunk = min(max(learned.prompt_room(decodes, 1, pacing), 16), left)
        if count % STEPS_BESIDE_MAX == 0:
            chunk = 0
        learned.observe(decodes, chunk, seconds(decodes, chunk))
        left = left - chunk or 200
    room = learned.prompt_room(64, 1, pacing)
    assert 2.5 * seconds(64, 0) < seconds(64, room) < 3.2 * seconds(64, 0)


def test_few_prompts_stretch_a_step_by_the_factor_and_many_by_more() -> None:
    learned, pacing = taught(0), Pacing(stretch_max=2.0)
    alone = learned.seconds(16, 0)
    one, four, nine = (learned.prompt_room(16, prompts, pacing) for prompts in (1, 5, 9))
    assert learned.seconds(16, one) == pytest.approx(2 * alone, rel=0.05)
    assert four == one
    assert learned.seconds(16, nine) == pytest.approx(3 * alone, rel=0.05)


def test_a_prompt_beside_decodes_goes_on_however_short_the_target() -> None:
    desk = Desk(NEVER, step_tokens_max=64)
    desk.arrive(new=200)
    desk.step()
    long = desk.arrive(prompt=100, new=1)
    desk.settle()
    assert desk.tokens[long] == desk.expected(long)
    least = prompt_tokens_min(64)
    assert set(prompts_of(desk)) == {0, least}
    assert list(prompts_of(desk)).count(least) == 100 / least


def test_with_nobody_decoding_a_step_is_as_large_as_ever() -> None:
    desk = Desk(NEVER, step_tokens_max=64)
    desk.arrive(prompt=150, new=1)
    assert [plan.tokens for plan in desk.plans] == [64, 64]


def test_without_pacing_prompts_have_what_decodes_leave_of_a_step() -> None:
    desk = Desk(Limits(pacing=None), step_tokens_max=64)
    desk.arrive(new=200)
    desk.step()
    desk.arrive(prompt=200, new=1)
    desk.settle()
    assert [count for count in prompts_of(desk) if count] == [63, 63, 63, 11]


def test_now_and_then_a_step_goes_without_prompts_to_see_what_decodes_take() -> None:
    desk = Desk(NEVER, step_tokens_max=32, pages=1000)
    desk.arrive(new=250)
    desk.step()
    desk.arrive(prompt=3 * STEPS_BESIDE_MAX, new=1)
    desk.settle()
    beside = list(prompts_of(desk))
    beside = beside[beside.index(1) : len(beside) - beside[::-1].index(1)]
    assert beside == [*[1] * STEPS_BESIDE_MAX, 0] * 2 + [1] * STEPS_BESIDE_MAX


def test_what_is_kept_for_the_head_of_the_queue_stays_kept_where_a_step_goes_alone() -> None:
    limits = Limits(pacing=NEVER.pacing, plans_in_flight_max=1, prefix_cache=False)
    desk = Desk(limits, step_tokens_max=64, pages=60, positions_max=4096)
    desk.arrive(new=200)
    desk.step()
    # Its last chunk leaves room in the last step before one goes alone.
    desk.arrive(prompt=2 * STEPS_BESIDE_MAX - 1, new=1)
    desk.arrive(prompt=58 * desk.worker.info.block_tokens, new=1)
    for _ in range(STEPS_BESIDE_MAX):
        desk.step()
    assert desk.core.batch.keep_pages >= 58
    desk.step()
    assert list(prompts_of(desk))[-2:] == [1, 0]
    assert desk.core.batch.keep_pages >= 58


@pytest.mark.parametrize("paced", [True, False])
def test_a_deadline_is_measured_by_the_chunks_there_will_be(paced: bool) -> None:
    desk = Desk(NEVER if paced else Limits(pacing=None), step_tokens_max=64)
    desk.arrive(new=200)
    for _ in range(60):
        desk.step()
    late = desk.arrive(prompt=128, new=1, deadline_s=0.03)
    assert (late in desk.errors) is paced


def test_a_long_prompt_after_short_ones_is_not_refused_for_chunks_as_short() -> None:
    limits = Limits(plans_in_flight_max=1)
    desk = Desk(limits, step_tokens_max=4096, pages=2000, positions_max=4096)
    desk.arrive(new=250)
    for _ in range(60):
        desk.arrive(new=1)
        desk.step()
        desk.step()
    long = desk.arrive(prompt=2000, new=1, deadline_s=0.015)
    assert long not in desk.errors
    while not desk.tokens[long]:
        desk.step()
    assert [count for count in prompts_of(desk) if count > 3] == [128, 256, 512, 1024, 80]


@pytest.mark.parametrize("wrong", [{"target_s": 0.0}, {"target_s": -1.0}, {"stretch_max": 1.0}])
def test_a_step_cannot_be_paced_to_less_than_its_decodes_take(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Pacing(**wrong)
