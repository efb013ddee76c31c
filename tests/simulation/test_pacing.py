"""On simulated machines: what pacing does for those who decode, and what it costs the others."""

from dataclasses import replace

import pytest

from adex_scheduler.core.limits import PACING, Pacing
from adex_scheduler.simulate.loop import Course
from adex_scheduler.simulate.machine import Machine, StepCost, read_machine
from adex_scheduler.simulate.result import Figures
from adex_scheduler.simulate.systems import SIMULATED_LIMITS, simulate
from adex_scheduler.simulate.trace import TracedRequest
from adex_scheduler.simulate.workloads import Load, zipf

H200 = read_machine("h200-llama-8b")
# With the step compiled for it.
CPU = replace(
    read_machine("cpu-2-core-88m"),
    step=StepCost(0.0035, 0.005, 0.00036, 0.0, 0.0, 0.0, 1.6e-10),
)


def with_long_prompts(trace: list[TracedRequest]) -> list[TracedRequest]:
    return [
        replace(one, prompt_tokens=8 * one.prompt_tokens, output_tokens=1 + one.output_tokens // 4)
        for one in trace
    ]


READERS = with_long_prompts(zipf(Load(100, 8.0, 30.0, seed=1, ranks=(16,))))
TALKERS = zipf(Load(20, 20.0, 60.0, seed=1, ranks=(8,)))


def figures(
    machine: Machine,
    trace: list[TracedRequest],
    pacing: Pacing | None,
    *,
    streams: int | None = None,
    from_s: float = 5.0,
) -> Figures:
    course = Course(streams, until_s=60.0 if streams else 1e9)
    limits = replace(SIMULATED_LIMITS, pacing=pacing)
    return simulate("adex", machine, trace, course=course, limits=limits).figures(from_s=from_s)


@pytest.mark.parametrize("target_s", [0.010, 0.015])
def test_a_target_is_kept_within_a_tenth(target_s: float) -> None:
    unpaced, paced = (figures(H200, READERS, one) for one in (None, Pacing(target_s)))
    assert unpaced.token_gap_p99_s > 0.035
    assert paced.token_gap_p99_s < 1.1 * target_s
    assert paced.finished == unpaced.finished


def test_long_prompts_are_felt_half_as_much_by_default_and_wait_hardly_longer() -> None:
    unpaced, paced = (figures(H200, READERS, one) for one in (None, PACING))
    assert paced.token_gap_p99_s < 0.6 * unpaced.token_gap_p99_s
    assert paced.ttft_p99_s < 1.1 * unpaced.ttft_p99_s


@pytest.mark.parametrize("streams", [8, 32, 96])
def test_the_default_costs_a_full_server_next_to_nothing(streams: int) -> None:
    # With 32 callers all steps have prompts: what decodes take alone is never seen by itself.
    unpaced, paced = (
        figures(CPU, TALKERS, one, streams=streams, from_s=20.0) for one in (None, PACING)
    )
    assert paced.output_tokens_per_s > 0.98 * unpaced.output_tokens_per_s
    assert paced.token_gap_p99_s < 0.75 * unpaced.token_gap_p99_s
