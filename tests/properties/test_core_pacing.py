"""Prompts beside decodes are cut to what a step is expected to have time for, and never starve."""

from hypothesis import given, settings
from hypothesis import strategies as st

from adex_scheduler.core.limits import Limits, Pacing
from adex_scheduler.core.step_time import StepTime, prompt_tokens_min
from adex_scheduler.testing.desk import Desk

STEPS = st.lists(
    st.tuples(st.integers(0, 256), st.integers(0, 4096), st.floats(0.0, 10.0)), max_size=60
)
PACINGS = st.one_of(
    st.builds(Pacing, st.floats(1e-6, 1.0)),
    st.builds(Pacing, st.none(), st.floats(1.01, 20.0)),
)


def learned(steps: list[tuple[int, int, float]]) -> StepTime:
    step_time = StepTime()
    for decodes, prompt_tokens, seconds in steps:
        if decodes or prompt_tokens:
            step_time.observe(decodes, prompt_tokens, seconds)
    return step_time


@given(STEPS, st.integers(1, 256), st.floats(1e-6, 1.0))
def test_no_chunk_is_expected_to_take_longer_than_the_target(
    steps: list[tuple[int, int, float]], decodes: int, target_s: float
) -> None:
    step_time = learned(steps)
    room = step_time.prompt_room(decodes, 1, Pacing(target_s))
    assert room == 0 or step_time.seconds(decodes, room) <= target_s * (1 + 1e-9)
    most = max([prompt_tokens for _, prompt_tokens, _ in steps], default=0)
    assert room <= 2 * max(most, 256), "more than was ever seen the like of"


@given(STEPS, st.integers(1, 256), st.floats(1e-6, 1.0), st.floats(1.0, 10.0))
def test_a_longer_target_never_leaves_less_room(
    steps: list[tuple[int, int, float]], decodes: int, target_s: float, longer: float
) -> None:
    step_time = learned(steps)
    less = step_time.prompt_room(decodes, 1, Pacing(target_s))
    assert less <= step_time.prompt_room(decodes, 1, Pacing(target_s * longer))


@given(STEPS, st.integers(1, 256), st.floats(1.01, 20.0), st.integers(1, 500), st.integers(0, 500))
def test_more_prompts_never_leave_less_room(
    steps: list[tuple[int, int, float]], decodes: int, stretch: float, prompts: int, more: int
) -> None:
    step_time, pacing = learned(steps), Pacing(stretch_max=stretch)
    less = step_time.prompt_room(decodes, prompts, pacing)
    assert less <= step_time.prompt_room(decodes, prompts + more, pacing)


@settings(max_examples=60)
@given(
    PACINGS,
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 30)), min_size=1, max_size=12),
    st.lists(st.booleans(), max_size=60),
)
def test_paced_or_not_everybody_gets_the_same_and_prompts_what_there_is_time_for(
    pacing: Pacing, requests: list[tuple[int, int]], arrivals: list[bool]
) -> None:
    desk = Desk(Limits(pacing=pacing), pages=200, step_tokens_max=64, step_sequences_max=8)
    least, seen, numbers, to_come = prompt_tokens_min(64), 0, list[int](), list(requests)
    for arrives in [*arrivals, *[True] * len(requests)]:
        if arrives and to_come:
            prompt, new = to_come.pop()
            numbers.append(desk.arrive(prompt=prompt, new=new))
        elif desk.worker.plans:
            desk.step()
        for plan in desk.plans[seen:]:
            decodes, prompts = len(plan.decodes.sequences), sum(s.count for s in plan.spans)
            # However many prompts waited, it was fewer than that.
            room = desk.core.step_time.prompt_room(decodes, 500, pacing) if decodes else 64
            assert prompts <= max(room, least)
            assert not prompts or decodes + prompts <= 64
        seen = len(desk.plans)
    desk.settle()
    assert len(numbers) == len(requests)
    for number in numbers:
        assert desk.tokens[number] == desk.expected(number)
