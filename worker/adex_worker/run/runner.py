"""Plan in, outcome out: one forward pass and one round of sampling, on one thread.

A sequence that cannot be served fails alone. A pass that raises fails its sequences and leaves the
runner ready for the next plan.
"""

import logging
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch, LoraBatch, SlotViews
from adex_proto.errors import AdexError, ProtocolViolation, StepFailed
from adex_proto.grammar import Grammar
from adex_proto.outcome import (
    PromptScores,
    SampledTokens,
    SequenceFailure,
    StepOutcome,
    TokenScore,
    WorkerInfo,
)
from adex_proto.plan import StepPlan
from adex_worker.run.arrays import BoolArray, IntArray, upload
from adex_worker.run.constraints import ConstraintTable, Masks
from adex_worker.run.inputs import PoolLimits, StepInputs, step_inputs
from adex_worker.run.sample import Sampled, sample
from adex_worker.run.sampling_table import Needs, SamplingTable
from adex_worker.run.scores import ScoredRows, prompt_scores, scored_rows, with_scored
from adex_worker.run.sequences import SequenceTable

_LOG = logging.getLogger(__name__)

# Sequences may wait on the worker between steps; this many times a step's worth is a leak.
_SEQUENCES_PER_STEP_SEQUENCE = 16
_NOT_FINITE = StepFailed("the model's logits are not finite")


class Forward(Protocol):
    """The model: logits [logit_rows, vocabulary] float32 for rows of any sequences."""

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None = None,
        logit_rows: Tensor | None = None,
    ) -> Tensor: ...


class RecordedDecodes(Protocol):
    """Steps of decodes that the device launches by itself."""

    def take(self, inputs: StepInputs) -> bool:
        """Whether `forward` can compute this step."""
        ...

    def forward(self, inputs: StepInputs) -> Tensor:
        """Logits [logit_rows, vocabulary] float32, good until the next call."""
        ...


class ResidentViews(SlotViews, Protocol):
    """The resident adapters by slot, which slots those are, and what tells the device of them."""

    @property
    def table(self) -> AdapterTable | None: ...

    def __contains__(self, slot: int) -> bool: ...


class Pages(Protocol):
    """What the runner asks of the device pool."""

    def holds_adapter(self, page: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class RunnerStatistics:
    """A snapshot: sequences known now, and totals since the start."""

    sequences: int
    steps: int
    rows: int
    tokens: int
    failures: int
    seconds: float


class Runner:
    """The step side of one worker. Not thread-safe: one thread calls `run` and `forget_all`."""

    def __init__(
        self,
        model: Forward,
        kv: Tensor,
        pages: Pages,
        slots: ResidentViews,
        info: WorkerInfo,
        constraints: ConstraintTable | None = None,
        graphs: RecordedDecodes | None = None,
    ) -> None:
        """`kv` is the pool as KV blocks, [pages, layers, 2, block_tokens, kv_heads, head_dim].

        Without `constraints` no sequence may have a grammar. `graphs` compute the steps they take.
        """
        self._model = model
        self._kv = kv
        self._slots = slots
        self._limits = PoolLimits(
            pages=info.pages,
            block_tokens=info.block_tokens,
            step_tokens_max=info.step_tokens_max,
            step_sequences_max=info.step_sequences_max,
            positions_max=info.positions_max,
            holds_adapter=pages.holds_adapter,
        )
        self._sequences = SequenceTable(
            vocabulary=info.vocabulary,
            positions_max=info.positions_max,
            sequences_max=_SEQUENCES_PER_STEP_SEQUENCE * info.step_sequences_max,
        )
        self._sampling = SamplingTable(vocabulary=info.vocabulary, eos_token_ids=info.eos_token_ids)
        self._constraints = constraints
        self._graphs = graphs
        self._steps = self._rows = self._tokens = self._failures = 0
        self._seconds = 0.0

    def forget_all(self) -> None:
        """Forget every sequence."""
        self._sequences.clear()
        self._sampling.clear()
        if self._constraints is not None:
            self._constraints.clear()

    def statistics(self) -> RunnerStatistics:
        return RunnerStatistics(
            len(self._sequences),
            self._steps,
            self._rows,
            self._tokens,
            self._failures,
            self._seconds,
        )

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepOutcome:
        """Carry out one plan. Never raises for what a plan or a pass does wrong."""
        started_s = time.perf_counter()
        for number in plan.finished:
            self._forget(number)
        failures = self._meet(plan)
        refused = {failure.sequence for failure in failures}
        spans = tuple(span for span in plan.spans if span.sequence not in refused)
        tokens = SampledTokens()
        scores: tuple[PromptScores, ...] = ()
        if spans or plan.decodes.sequences:
            inputs, unfit = step_inputs(
                spans, plan.decodes, self._sequences, self._limits, self._slots.__contains__
            )
            failures += unfit
            if inputs is not None:
                tokens, scores, failed = self._compute(plan.step, inputs)
                failures += failed
                if not tokens and not scores:
                    self._wait_for_device()
        if failures:
            self._sequences.fail([failure.sequence for failure in failures])
        seconds = time.perf_counter() - started_s
        self._steps += 1
        self._tokens += len(tokens)
        self._failures += len(failures)
        self._seconds += seconds
        return StepOutcome(plan.step, tokens, tuple(failures), seconds, scores)

    def _forget(self, number: int) -> None:
        row = self._sequences.remove(number)
        if row is not None:
            self._sampling.drop(row)
            if self._constraints is not None:
                self._constraints.drop(row)

    def _meet(self, plan: StepPlan) -> list[SequenceFailure]:
        failures: list[SequenceFailure] = []
        for new in plan.arrived:
            try:
                self._sampling.check(new.sequence, new.sampling)
                self._check_grammar(new.sequence, new.sampling.grammar)
                row = self._sequences.add(new)
            except ProtocolViolation as violation:
                failures.append(SequenceFailure(new.sequence, violation))
            else:
                prompt = self._sequences.prompt(row)
                self._sampling.set(row, new.sampling, prompt, new.output_start)
                if self._constraints is not None and new.sampling.grammar is not None:
                    output = new.token_ids[new.output_start :]
                    self._constraints.add(row, new.sampling.grammar, output)
        return failures

    def _check_grammar(self, sequence: int, grammar: Grammar | None) -> None:
        if grammar is not None and self._constraints is None:
            raise ProtocolViolation(f"sequence {sequence} has a grammar, and this worker none")

    def _compute(
        self, step: int, inputs: StepInputs
    ) -> tuple[SampledTokens, tuple[PromptScores, ...], list[SequenceFailure]]:
        try:
            scored = scored_rows(inputs, self._sequences, self._sampling)
            logits = self._logits(inputs, scored)
            self._sequences.computed[inputs.table_rows] = inputs.stops
            self._rows += len(inputs.token_ids)
            sampled = len(inputs.sampled)
            scores = () if scored is None else prompt_scores(logits[sampled:], scored)
            if not sampled:
                return SampledTokens(), scores, []
            tokens, failures = self._sample(logits[:sampled], inputs)
            return tokens, scores, failures
        except Exception as error:
            # Whatever a pass raises costs this step's sequences and nothing else.
            _LOG.exception("step %d failed", step)
            return SampledTokens(), (), self._all_failed(inputs, error)

    def _logits(self, inputs: StepInputs, scored: ScoredRows | None) -> Tensor:
        """[sampled and then scored rows, vocabulary] float32, of one forward pass."""
        if self._graphs is not None and scored is None and self._graphs.take(inputs):
            return self._graphs.forward(inputs)
        device, lora = self._kv.device, None
        if inputs.segments:
            lora = LoraBatch(inputs.segments, self._slots, table=self._slots.table)
        return self._model.forward(
            upload(inputs.token_ids, device),
            upload(inputs.positions, device),
            self._kv,
            inputs.attention(device),
            lora,
            upload(with_scored(inputs.logit_rows, scored), device),
        )

    def _wait_for_device(self) -> None:
        """An outcome frees pages, also for copies that do not queue behind the steps. Reading
        tokens has waited for the device; a step that yields none must wait too."""
        if self._kv.is_cuda:
            torch.cuda.current_stream(self._kv.device).synchronize()

    def _all_failed(self, inputs: StepInputs, error: Exception) -> list[SequenceFailure]:
        shown = (
            error
            if isinstance(error, AdexError)
            else StepFailed(f"the step failed inside the worker ({type(error).__name__})")
        )
        numbers = self._sequences.numbers[inputs.table_rows].tolist()
        return [SequenceFailure(number, shown) for number in numbers]

    def _sample(
        self, logits: Tensor, inputs: StepInputs
    ) -> tuple[SampledTokens, list[SequenceFailure]]:
        table, rows = self._sequences, inputs.sampled
        generated = table.known[rows] - table.output_start[rows]
        masks, errors = self._masks(rows)
        sampled = sample(logits, rows, generated, self._sampling, masks)
        failing = {int(row): _NOT_FINITE for row in rows[~sampled.finite]} | errors
        whole = np.array([row not in failing for row in rows.tolist()], np.bool_)
        table.append(rows[whole], sampled.token_ids[whole])
        needs = self._sampling.needs[rows]
        for index in np.flatnonzero(whole & (needs & Needs.PENALTY > 0)):
            self._sampling.note(int(rows[index]), int(sampled.token_ids[index]))
        constrained = whole & (needs & Needs.GRAMMAR > 0)
        if self._constraints is not None and constrained.any():
            self._constraints.note(rows[constrained], sampled.token_ids[constrained])
        tokens = SampledTokens(
            tuple(table.numbers[rows[whole]].tolist()),
            tuple(sampled.token_ids[whole].tolist()),
            self._scores(rows, whole, sampled),
        )
        failures = [SequenceFailure(int(table.numbers[row]), why) for row, why in failing.items()]
        return tokens, failures

    def _masks(self, rows: IntArray) -> tuple[Masks | None, dict[int, AdexError]]:
        """What the grammars of `rows` allow next, and by row why one allows nothing."""
        index = np.flatnonzero(self._sampling.needs[rows] & Needs.GRAMMAR)
        if self._constraints is None or not len(index):
            return None, {}
        return self._constraints.masks(rows[index], index)

    def _scores(self, rows: IntArray, whole: BoolArray, sampled: Sampled) -> dict[int, TokenScore]:
        """By sequence, the scores of the tokens that were to have them."""
        scores: dict[int, TokenScore] = {}
        logprobs = sampled.logprobs
        if logprobs is None:
            return scores
        for index, at in logprobs.index.items():
            if whole[index]:
                wanted = int(self._sampling.logprobs[rows[index]])
                top_ids, top = logprobs.top_ids[at, :wanted], logprobs.top[at, :wanted]
                alternatives = tuple(zip(top_ids.tolist(), top.tolist(), strict=True))
                number = int(self._sequences.numbers[rows[index]])
                scores[number] = TokenScore(float(logprobs.chosen[at]), alternatives)
        return scores
