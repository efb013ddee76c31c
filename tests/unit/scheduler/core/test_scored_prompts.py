"""Prompts whose tokens are scored: every one of them, once and in order, whatever else happens."""

from adex_proto.plan import STEP_SCORED_MAX
from adex_proto.sampling import SamplingParams
from adex_scheduler.testing.desk import Desk

SCORED = SamplingParams(max_new_tokens=3, ignore_eos=True, prompt_logprobs=0)


def scores_of(prompt: list[int]) -> list[float]:
    """What the fake worker says of a prompt's tokens but the first."""
    return [-float(token) for token in prompt[1:]]


def test_every_prompt_token_but_the_first_is_scored() -> None:
    desk = Desk()
    prompts = [[7], [7, 8], list(range(1, 60)), list(range(3, 80))]
    numbers = [desk.arrive(None, prompt, sampling=SCORED) for prompt in prompts]
    desk.settle()
    assert [desk.scores.get(number, []) for number in numbers] == [scores_of(p) for p in prompts]
    assert all(desk.tokens[number] == desk.expected(number) for number in numbers)


def test_a_prompt_that_is_known_already_is_scored_all_the_same() -> None:
    desk = Desk()
    prompt = list(range(1, 40))
    desk.arrive(None, prompt)
    desk.settle()
    scored = desk.arrive(None, prompt, sampling=SCORED)
    desk.settle()
    assert desk.scores[scored] == scores_of(prompt)


def test_no_step_scores_more_than_a_bound_and_others_fill_it_up() -> None:
    desk = Desk(step_tokens_max=200, pages=400, positions_max=600)
    long = [1 + index % 90 for index in range(500)]
    first, second = (desk.arrive(None, long, sampling=SCORED) for _ in range(2))
    desk.arrive(None, 100)
    desk.settle()
    assert desk.scores[first] == desk.scores[second] == scores_of(long)
    for plan in desk.plans:
        scored = [span.count for span in plan.spans if span.sequence in (first, second)]
        assert sum(scored) <= STEP_SCORED_MAX
    assert max(plan.tokens for plan in desk.plans) > STEP_SCORED_MAX


def test_a_preempted_prompt_is_scored_again_without_a_gap() -> None:
    desk = Desk(pages=18)
    prompts = [[1 + index for index in range(20)], [50 - index for index in range(20)]]
    params = SamplingParams(max_new_tokens=30, ignore_eos=True, prompt_logprobs=0)
    numbers = [desk.arrive(None, prompt, sampling=params) for prompt in prompts]
    desk.settle()
    assert desk.core.batch.preemptions > 0
    assert [desk.scores[number] for number in numbers] == [scores_of(p) for p in prompts]
