"""A step over a model of our own making: what goes wrong with one sequence costs no other."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from adex_kernels.batch import AttentionBatch
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import StepOutcome, WorkerInfo
from adex_proto.plan import NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.views import ResidentSlots
from adex_worker.run.runner import Runner

VOCABULARY = 32
PAGES, BLOCK_TOKENS = 16, 16
GREEDY = SamplingParams(max_new_tokens=8)


@dataclass
class Successor:
    """The most probable token is the one after the last."""

    contexts: list[list[int]] = field(default_factory=list)

    def prepare(self, *rest: Any) -> Callable[[Tensor], Tensor]:
        return lambda token_ids: self.forward(token_ids, *rest)

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: Any = None,
        logit_rows: Tensor | None = None,
    ) -> Tensor:
        self.contexts.append(attention.context_lens)
        rows = token_ids if logit_rows is None else token_ids[logit_rows]
        return 9.0 * torch.nn.functional.one_hot((rows + 1) % VOCABULARY, VOCABULARY).float()


def runner_of(model: Any, *, eos: tuple[int, ...] = (2,), device: str = "cpu") -> Runner:
    page_bytes = kv_page_bytes(BLOCK_TOKENS, 1, 1, 8, torch.float32)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=torch.float32, device=device)
    info = WorkerInfo(
        model_id="m",
        architecture="a",
        dtype="float32",
        device=device,
        layers=1,
        vocabulary=VOCABULARY,
        positions_max=128,
        block_tokens=BLOCK_TOKENS,
        page_bytes=page_bytes,
        pages=PAGES,
        slots_max=4,
        host_bytes=1,
        disk_bytes=1,
        rank_max=8,
        step_tokens_max=64,
        step_sequences_max=8,
        eos_token_ids=eos,
    )
    kv = arena.kv(layers=1, block_tokens=BLOCK_TOKENS, kv_heads=1, head_dim=8)
    return Runner(model, kv, arena, ResidentSlots(), info)


def new(number: int, sampling: SamplingParams = GREEDY) -> NewSequence:
    return NewSequence(number, (5, 6, 7), 3, 0, sampling)


def tokens_of(outcome: StepOutcome) -> dict[int, int]:
    return {token.sequence: token.token_id for token in outcome.tokens}


def test_an_end_token_that_the_model_does_not_have_forbids_nothing_and_harms_nobody() -> None:
    runner = runner_of(Successor(), eos=(8, VOCABULARY, -1))
    short = SamplingParams(max_new_tokens=8, min_new_tokens=4)
    spans = (Span(1, 0, 3, True, (1,)), Span(2, 0, 3, True, (2,)))
    outcome = runner.run(StepPlan(0, (new(1, short), new(2)), spans))
    assert outcome.failures == ()
    assert tokens_of(outcome)[2] == 8
    assert tokens_of(outcome)[1] not in (8, VOCABULARY - 1)


@pytest.mark.parametrize("start", [2**63 - 2, 2**62, -(2**62)])
def test_a_span_beyond_all_positions_fails_its_own_sequence_alone(start: int) -> None:
    runner = runner_of(Successor())
    spans = (Span(1, start, 5, False, (1,)), Span(2, 0, 3, True, (2,)))
    outcome = runner.run(StepPlan(0, (new(1), new(2)), spans))
    assert tokens_of(outcome) == {2: 8}
    assert [failure.sequence for failure in outcome.failures] == [1]
    assert isinstance(outcome.failures[0].error, ProtocolViolation)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("samples", [True, False])
def test_an_outcome_says_that_the_device_has_finished_the_step(samples: bool) -> None:
    """The scheduler then gives its pages to page-ins, which run on a stream of their own."""
    cuda: Any = torch.cuda
    ended = cuda.Event()

    class Slow(Successor):
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            logits = super().forward(*arguments, **named)
            cuda._sleep(200_000_000)
            ended.record()
            return logits

    runner = runner_of(Slow(), device="cuda")
    runner.run(StepPlan(0, (new(1),), (Span(1, 0, 3, samples, (1,)),)))
    assert ended.query()
