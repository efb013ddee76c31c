"""Steps that begin before the ones before them are read: the outcomes are the same."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _python_dispatch as torch_dispatch

from adex_kernels import dispatch
from adex_kernels.draw import DrawnRows
from adex_proto.errors import StepFailed
from adex_proto.outcome import SampledTokens, StepOutcome, WorkerInfo
from adex_proto.plan import Decodes, NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.views import ResidentSlots
from adex_worker.run import runner, sample
from adex_worker.run.arrays import Download
from adex_worker.run.lane import Beside, Lane
from adex_worker.run.last_tokens import last_tokens
from adex_worker.run.runner import Runner
from adex_worker.run.sample import Draws, Sampled
from adex_worker.run.sampling_table import SamplingTable
from adex_worker.run.steps import StepThread

VOCABULARY, PAGES, TOKENS = 40, 64, 16
STEPS = 14


class Chain:
    """Logits that depend on the token and its position; no number at all for some tokens."""

    def __init__(self, spoiled: int = -1) -> None:
        generator = torch.Generator().manual_seed(4)
        self._table = 3 * torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        self._spoiled = spoiled

    def prepare(self, *rest: Any) -> Callable[[Tensor], Tensor]:
        return lambda token_ids: self.forward(token_ids, *rest)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: Any,
        lora: Any = None,
        logit_rows: Tensor | None = None,
    ) -> Tensor:
        logits = self._table[token_ids] + positions.unsqueeze(1) % 3
        logits[token_ids == self._spoiled] = float("nan")
        return logits if logit_rows is None else logits[logit_rows]


def runner_of(model: Any, *, overlaps: bool, lane: Lane | None = None) -> Runner:
    page_bytes = kv_page_bytes(TOKENS, 1, 1, 8, torch.float32)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=torch.float32, device="cpu")
    info = WorkerInfo(
        model_id="m",
        architecture="a",
        dtype="float32",
        device="cpu",
        layers=1,
        vocabulary=VOCABULARY,
        positions_max=128,
        block_tokens=TOKENS,
        page_bytes=page_bytes,
        pages=PAGES,
        slots_max=4,
        host_bytes=1,
        disk_bytes=1,
        rank_max=8,
        step_tokens_max=64,
        step_sequences_max=8,
        eos_token_ids=(),
    )
    last = last_tokens(info, torch.device("cpu")) if overlaps else None
    kv = arena.kv(layers=1, block_tokens=TOKENS, kv_heads=1, head_dim=8)
    return Runner(model, kv, arena, ResidentSlots(), info, None, None, last, lane)


def in_turn(runner: Runner, plans: list[StepPlan]) -> list[StepOutcome]:
    return [runner.run(plan) for plan in plans]


def overlapped(runner: Runner, plans: list[StepPlan]) -> list[StepOutcome]:
    """As the step thread does it where plans are always at hand."""
    outcomes: list[StepOutcome] = []
    before = None
    for plan in plans:
        step = runner.begin(plan)
        if before is not None:
            outcomes.append(before.finish())
        step.choose()
        before = step
    assert before is not None
    return [*outcomes, before.finish()]


def plans_of(*wishes: SamplingParams) -> list[StepPlan]:
    """Prompts, decodes, a sequence that goes and one that comes in its place, and more decodes."""
    everyone = range(1, len(wishes) + 1)
    arrived = tuple(NewSequence(n, (n, n + 1, 7), 3, 0, wishes[n - 1]) for n in everyone)
    plans = [StepPlan(0, arrived, tuple(Span(n, 0, 3, True, (n,)) for n in everyone))]
    running = list(everyone)
    for step in range(1, STEPS):
        finished: tuple[int, ...] = ()
        new: tuple[NewSequence, ...] = ()
        spans: tuple[Span, ...] = ()
        if step == 5:
            gone = running.pop(0)
            finished, new = (gone,), (NewSequence(90, (9, 9), 2, 0, wishes[-1]),)
            spans = (Span(90, 0, 2, True, (30,)),)
        # Half of the decodes are written as spans, which is the same.
        decodes = Decodes(tuple(n for n in running if n != 90 or step > 5))
        plans.append(StepPlan(step, new, spans, finished, decodes))
        if step == 5:
            running.append(90)
    return plans


WISHES = {
    "greedy": SamplingParams(max_new_tokens=50),
    "drawn": SamplingParams(max_new_tokens=50, temperature=1.0, seed=5),
    "filtered": SamplingParams(max_new_tokens=50, temperature=1.3, top_k=7, top_p=0.8, seed=9),
    "penalised": SamplingParams(
        max_new_tokens=50, repetition_penalty=1.8, frequency_penalty=0.7, presence_penalty=0.4
    ),
    "told": SamplingParams(max_new_tokens=50, temperature=0.7, logprobs=3, seed=1),
}


def comparable(outcomes: list[StepOutcome]) -> list[StepOutcome]:
    return [replace(outcome, seconds=0.0) for outcome in outcomes]


@pytest.mark.parametrize("names", [[name] for name in WISHES] + [list(WISHES)])
def test_outcomes_are_those_of_steps_that_wait_for_each_other(names: list[str]) -> None:
    plans = plans_of(*(WISHES[name] for name in names))
    expected = in_turn(runner_of(Chain(), overlaps=False), plans)
    assert comparable(in_turn(runner_of(Chain(), overlaps=True), plans)) == comparable(expected)
    assert comparable(overlapped(runner_of(Chain(), overlaps=True), plans)) == comparable(expected)
    beside = runner_of(Chain(), overlaps=True, lane=Beside())
    assert comparable(overlapped(beside, plans)) == comparable(expected)
    assert all(len(outcome.tokens) for outcome in expected)


@pytest.mark.parametrize("names", [["greedy"], list(WISHES)])
def test_a_step_thread_beside_its_lane_has_the_same_outcomes(names: list[str]) -> None:
    plans = plans_of(*(WISHES[name] for name in names))
    expected = in_turn(runner_of(Chain(), overlaps=False), plans)
    steps = StepThread(runner_of(Chain(), overlaps=True, lane=Beside()))
    outcomes, done = list[StepOutcome](), threading.Event()

    def take(outcome: StepOutcome) -> None:
        outcomes.append(outcome)
        if len(outcomes) == len(plans):
            done.set()

    steps.start()
    for plan in plans:
        steps.submit(plan, take)
    assert done.wait(60)
    assert steps.stop(60)
    assert comparable(outcomes) == comparable(expected)


def test_a_pass_that_fails_on_the_lane_costs_its_sequences_and_the_next_ones_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory is left")

    model = Chain()
    running = runner_of(model, overlaps=True, lane=Beside())
    first, other = (NewSequence(n, (3, 4), 2, 0, WISHES["greedy"]) for n in (1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", fails)
        outcome = running.run(StepPlan(0, (first,), (Span(1, 0, 2, True, (1,)),)))
    assert [failure.sequence for failure in outcome.failures] == [1]
    assert not len(outcome.tokens)
    served = running.run(StepPlan(1, (other,), (Span(2, 0, 2, True, (2,)),), (1,)))
    assert served.tokens.sequences == (2,)
    assert not served.failures


def test_a_step_whose_tokens_cannot_be_chosen_is_told_of_when_its_pass_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Held(Chain):
        def forward(self, *rest: Any) -> Tensor:
            begun.set()
            assert released.wait(60)
            seen.append("computed")
            return super().forward(*rest)

    def fails(*_: Any) -> Any:
        raise RuntimeError("no masks")

    begun, released, seen = threading.Event(), threading.Event(), list[str]()
    running = runner_of(Held(), overlaps=True, lane=Beside())
    monkeypatch.setattr(running, "_masks", fails)
    arrived = NewSequence(1, (3, 4), 2, 0, WISHES["greedy"])
    step = running.begin(StepPlan(0, (arrived,), (Span(1, 0, 2, True, (1,)),)))
    assert begun.wait(60)

    def end() -> None:
        step.choose()
        seen.append(f"failed {[each.sequence for each in step.finish().failures]}")

    thread = threading.Thread(target=end)
    thread.start()
    # It may not end yet; who tells too early does so by then.
    thread.join(0.3)
    released.set()
    thread.join(60)
    assert seen == ["computed", "failed [1]"]


class NoQuestions(torch_dispatch.TorchDispatchMode):
    """Nothing asks the device for a number, or for how many there are, which waits for it."""

    WAITING = ("nonzero", "_local_scalar_dense", "is_nonzero", "masked_select", "unique")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        assert not any(name in str(func) for name in self.WAITING), func
        return func(*args, **(kwargs or {}))


def test_a_device_that_draws_by_itself_is_never_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Drawn rows are chosen as early as others: while the device is at their logits."""
    gpu = pytest.importorskip("adex_kernels.gpu.kernels", reason="there is no Triton here")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("the logits here are a CPU's")

    class Launched(gpu.TritonKernels):  # type: ignore[misc, name-defined]
        def draw_(self, *step: Tensor | DrawnRows) -> None:
            # The interpreter asks its tensors all the time.
            with torch_dispatch._disable_current_modes():
                super().draw_(*step)

    plans = plans_of(*WISHES.values())
    expected = in_turn(runner_of(Chain(), overlaps=False), plans)
    outcomes, before, ahead = list[StepOutcome](), None, runner_of(Chain(), overlaps=True)
    with pytest.raises(AssertionError, match=r"nonzero|_local_scalar_dense"), NoQuestions():
        sample_alone()
    monkeypatch.setattr(dispatch, "_KERNELS", {"cpu": Launched()})
    with NoQuestions():
        sample_alone()
    for plan in plans:
        step = ahead.begin(plan)
        if before is not None:
            outcomes.append(before.finish())
        with NoQuestions():
            step.choose()
        before = step
    assert before is not None
    outcomes.append(before.finish())
    assert comparable(outcomes) == comparable(expected)


def sample_alone() -> None:
    """A draw through filters, without the runner, which takes any error for the model's."""
    table = SamplingTable(vocabulary=VOCABULARY, eos_token_ids=())
    table.set(0, WISHES["filtered"], np.array([1]), 1)
    sample.sample(torch.randn(1, VOCABULARY), np.array([0]), np.array([0]), table)


def test_a_step_after_a_failed_one_fails_too_and_costs_nobody_else() -> None:
    plans = plans_of(WISHES["greedy"], WISHES["drawn"])
    told = in_turn(runner_of(Chain(), overlaps=False), plans)
    spoiled = dict(zip(told[2].tokens.sequences, told[2].tokens.token_ids, strict=True))[2]
    outcomes = overlapped(runner_of(Chain(spoiled), overlaps=True), plans)
    failed = [{failure.sequence for failure in outcome.failures} for outcome in outcomes]
    first = next(step for step, sequences in enumerate(failed) if 2 in sequences)
    assert first <= 3
    for outcome in outcomes[first:]:
        assert 2 not in outcome.tokens.sequences
        assert 2 in {failure.sequence for failure in outcome.failures}
    error = next(f.error for f in outcomes[first + 1].failures if f.sequence == 2)
    assert isinstance(error, StepFailed)
    assert str(error) == "the step before it failed"


def test_a_sequence_that_is_finished_while_its_step_runs_gives_its_row_to_another() -> None:
    running = runner_of(Chain(), overlaps=True)
    first = NewSequence(1, (3, 4), 2, 0, WISHES["penalised"])
    other = NewSequence(2, (5, 6, 7), 3, 0, WISHES["greedy"])
    began = running.begin(StepPlan(0, (first,), (Span(1, 0, 2, True, (1,)),)))
    began.choose()
    then = running.begin(StepPlan(1, (other,), (Span(2, 0, 3, True, (2,)),), (1,)))
    assert began.finish().tokens.sequences == (1,)
    then.choose()
    last = running.begin(StepPlan(2, (), (), (), Decodes((2,))))
    one = then.finish().tokens
    last.choose()
    two = last.finish().tokens
    alone = runner_of(Chain(), overlaps=False)
    expected: list[SampledTokens] = [
        alone.run(StepPlan(0, (other,), (Span(2, 0, 3, True, (2,)),))).tokens,
        alone.run(StepPlan(1, (), (), (), Decodes((2,)))).tokens,
    ]
    assert [one, two] == expected


class Unreadable(Draws):
    """Draws of a device that fails."""

    def read(self) -> Sampled:
        raise RuntimeError("an illegal memory access was encountered")


def test_a_step_that_cannot_be_read_fails_those_it_computed_and_not_who_has_their_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = runner_of(Chain(), overlaps=True)
    first = NewSequence(1, (3, 4), 2, 0, WISHES["greedy"])
    other = NewSequence(2, (5, 6, 7), 3, 0, WISHES["greedy"])
    began = running.begin(StepPlan(0, (first,), (Span(1, 0, 2, True, (1,)),)))
    with monkeypatch.context() as patch:
        patch.setattr(sample, "Draws", Unreadable)
        began.choose()
    then = running.begin(StepPlan(1, (other,), (Span(2, 0, 3, True, (2,)),), (1,)))
    assert [failure.sequence for failure in began.finish().failures] == [1]
    then.choose()
    outcome = then.finish()
    assert outcome.tokens.sequences == (2,)
    assert not outcome.failures


@pytest.mark.parametrize("where", ["forward", "sample"])
def test_a_step_that_fails_is_told_of_once_the_device_is_done_with_it(
    monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    waited: list[str] = []

    class Arrival(Download):
        def wait(self) -> None:
            waited.append(where)
            super().wait()

    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory is left")

    model = Chain()
    monkeypatch.setattr(runner, "Download", Arrival)
    if where == "forward":
        monkeypatch.setattr(model, "forward", fails)
    else:
        monkeypatch.setattr(runner, "sample", fails)
    first = NewSequence(1, (3, 4), 2, 0, WISHES["greedy"])
    plan = StepPlan(0, (first,), (Span(1, 0, 2, True, (1,)),))
    outcome = runner_of(model, overlaps=True).run(plan)
    assert [failure.sequence for failure in outcome.failures] == [1]
    assert waited
