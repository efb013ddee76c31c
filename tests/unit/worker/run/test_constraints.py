"""Sequences under a grammar: each gets what its grammar allows, whatever else it asks for."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from adex_kernels.batch import AttentionBatch
from adex_proto.errors import ProtocolViolation, StepFailed
from adex_proto.grammar import Grammar, GrammarKind
from adex_proto.outcome import StepOutcome, WorkerInfo
from adex_proto.plan import NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.views import ResidentSlots
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.run import constraints
from adex_worker.run.constraints import ConstraintTable
from adex_worker.run.runner import Runner

TOKENIZER = Path(__file__).parents[4] / "demo/model/tokenizer.json"
VOCABULARY, END, PAGES, BLOCK_TOKENS = 1708, 2, 16, 16
PROMPT = (5, 6, 7)
TOKENS = LLTokenizer(TOKENIZER.read_text("utf-8"), n_vocab=VOCABULARY, eos_token=[END])
# What the model would rather say: no grammar here allows it.
FAVOURITE = TOKENS.tokenize_str("~")[0]


@dataclass
class Stubborn:
    """Logits that depend on the position alone, with one favourite."""

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
        rows = positions if logit_rows is None else positions[logit_rows]
        noise = [
            torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(int(at))) for at in rows
        ]
        logits = torch.stack(noise)
        logits[:, FAVOURITE] = 20.0
        return logits


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, (END,))
    yield compiler
    compiler.close()


def runner_of(constraints: ConstraintTable | None) -> Runner:
    page_bytes = kv_page_bytes(BLOCK_TOKENS, 1, 1, 8, torch.float32)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=torch.float32, device="cpu")
    info = WorkerInfo(
        model_id="m",
        architecture="a",
        dtype="float32",
        device="cpu",
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
        eos_token_ids=(END,),
    )
    kv = arena.kv(layers=1, block_tokens=BLOCK_TOKENS, kv_heads=1, head_dim=8)
    return Runner(Stubborn(), kv, arena, ResidentSlots(), info, constraints)


@pytest.fixture
def runner(grammars: GrammarCompiler) -> Runner:
    return runner_of(ConstraintTable(grammars))


def under(text: str, **options: Any) -> SamplingParams:
    """Sampling under an expression."""
    grammar = Grammar(GrammarKind.REGEX, text)
    return SamplingParams(max_new_tokens=30, grammar=grammar, **options)


def arrival(number: int, sampling: SamplingParams, output: Sequence[int] = ()) -> NewSequence:
    return NewSequence(number, (*PROMPT, *output), len(PROMPT), 0, sampling)


def generate(
    runner: Runner, *wishes: SamplingParams, output: Sequence[int] = (), steps: int = 12
) -> tuple[list[list[int]], list[StepOutcome]]:
    """So many steps of all wishes in one batch, whatever comes; and what came."""
    known = len(PROMPT) + len(output)
    numbers = range(1, len(wishes) + 1)
    outcomes: list[StepOutcome] = []
    texts: dict[int, list[int]] = {number: list(output) for number in numbers}
    for step in range(steps):
        arrived = tuple(arrival(n, w, output) for n, w in zip(numbers, wishes, strict=True))
        start, count = (0, known) if step == 0 else (known + step - 1, 1)
        spans = tuple(Span(n, start, count, True, (n, n + 8) if step == 0 else ()) for n in numbers)
        outcome = runner.run(StepPlan(step, arrived if step == 0 else (), spans))
        outcomes.append(outcome)
        for token in outcome.tokens:
            texts[token.sequence].append(token.token_id)
    return list(texts.values()), outcomes


def said(token_ids: Sequence[int]) -> str:
    """The text before the end token, which must be there."""
    return TOKENS.decode_str(list(token_ids)[: list(token_ids).index(END)])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 1500},
        {"temperature": 1.0, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.5, "typical_p": 0.5},
        {"repetition_penalty": 1.7, "frequency_penalty": 1.0},
        {"logit_bias": ((FAVOURITE, 100.0),)},
        {"min_new_tokens": 20},
        {"temperature": 3.0, "min_new_tokens": 3, "logprobs": 2},
    ],
)
def test_whatever_else_is_asked_for_the_text_is_the_grammars(runner: Runner, options: Any) -> None:
    [token_ids], outcomes = generate(runner, under("[0-9]{4}-[0-9]{2}", **options))
    assert [outcome.failures for outcome in outcomes] == [()] * len(outcomes)
    text = said(token_ids)
    assert len(text) == 7
    assert text.replace("-", "").isdigit()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to cores")
def test_texts_are_constrained_also_where_cores_were_taken_away_meanwhile(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "sched_getaffinity", lambda _: {1 << 14})
        constraints = ConstraintTable(grammars)
    [token_ids], _ = generate(runner_of(constraints), under("[0-9]{3}"))
    assert said(token_ids).isdigit()


def test_where_more_may_follow_the_text_is_as_long_as_asked_for(runner: Runner) -> None:
    [token_ids], _ = generate(runner, under("[0-9]+", min_new_tokens=9, logit_bias=((END, 100.0),)))
    assert token_ids.index(END) == 9


def test_a_batch_holds_constrained_rows_beside_others_and_none_changes_another(
    runner: Runner, grammars: GrammarCompiler
) -> None:
    wishes = [
        under("[a-z]{5}", temperature=1.0, seed=4),
        SamplingParams(max_new_tokens=30),
        under("[0-9]{3}"),
        SamplingParams(max_new_tokens=30, temperature=1.0, seed=9),
    ]
    together, _ = generate(runner, *wishes)
    alone = [generate(runner_of(ConstraintTable(grammars)), wish)[0][0] for wish in wishes]
    assert together == alone
    assert set(together[1]) == {FAVOURITE}


def test_log_probabilities_are_the_models_own_not_the_grammars(runner: Runner) -> None:
    _, outcomes = generate(runner, under("[0-9]{3}", logprobs=1))
    [first] = outcomes[0].tokens
    assert first.alternatives[0][0] == FAVOURITE
    assert first.logprob is not None
    assert first.logprob < -10


def test_a_sequence_that_returns_goes_on_where_it_was(runner: Runner) -> None:
    wish = under("[0-9]{6}", temperature=1.0, seed=3)
    [whole], _ = generate(runner, wish)
    runner.forget_all()
    [again], _ = generate(runner, wish, output=whole[:3])
    assert said(again) == said(whole)


def test_a_row_whose_grammar_fails_it_fails_alone(runner: Runner) -> None:
    impossible = under("(a")
    astray = under("[0-9]{6}")
    wishes = [impossible, under("[0-9]{3}"), astray]
    arrived = [arrival(n, wish) for n, wish in enumerate(wishes, 1)]
    arrived[2] = replace(arrived[2], token_ids=(*PROMPT, FAVOURITE))
    spans = [Span(n, 0, len(new.token_ids), True, (n,)) for n, new in enumerate(arrived, 1)]
    outcome = runner.run(StepPlan(0, tuple(arrived), tuple(spans)))
    assert [token.sequence for token in outcome.tokens] == [2]
    errors = {failure.sequence: failure.error for failure in outcome.failures}
    assert sorted(errors) == [1, 3]
    assert "unclosed" in str(errors[1])
    assert isinstance(errors[3], StepFailed)


def test_a_worker_without_grammars_refuses_the_sequence_that_has_one() -> None:
    outcome = runner_of(None).run(
        StepPlan(0, (arrival(1, under("a")),), (Span(1, 0, 3, True, (1,)),))
    )
    assert isinstance(outcome.failures[0].error, ProtocolViolation)


def test_forgotten_rows_are_used_again_with_other_grammars(runner: Runner) -> None:
    generate(runner, under("[0-9]{3}"), steps=2)
    runner.run(StepPlan(2, (), (), finished=(1,)))
    [token_ids], _ = generate(runner, under("[a-c]{3}"))
    assert set(said(token_ids)) <= set("abc")


def test_masks_are_given_for_the_rows_that_have_a_grammar(grammars: GrammarCompiler) -> None:
    table = ConstraintTable(grammars)
    table.add(4, Grammar(GrammarKind.REGEX, "[01]"), ())
    masks, errors = table.masks(np.array([4]), np.array([2]))
    assert masks.index.tolist() == [2]
    assert not errors
    allowed = np.flatnonzero(np.unpackbits(masks.bits[0], bitorder="little"))
    assert sorted(TOKENS.decode_str([int(token)]) for token in allowed) == ["0", "1"]


def test_however_many_masks_are_lost_a_step_waits_for_all_of_them_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stuck:
        def prepare(self, grammar: Grammar) -> LLMatcher:
            assert never.wait(60.0)
            raise StepFailed("too late")

    never, waits = threading.Event(), list[float]()
    result = Future[None].result

    def noted(future: "Future[None]", timeout: float) -> None:
        waits.append(timeout)
        result(future, timeout)

    monkeypatch.setattr(constraints, "_MASK_S_MAX", 0.5)
    monkeypatch.setattr(Future, "result", noted)
    table = ConstraintTable(Stuck())
    rows = np.arange(8)
    for row in rows.tolist():
        table.add(row, Grammar(GrammarKind.REGEX, "[01]"), ())
    _, errors = table.masks(rows, rows)
    never.set()
    assert sorted(errors) == rows.tolist()
    assert sorted(waits, reverse=True) == waits
    assert waits[1:] == [0.0] * 7
