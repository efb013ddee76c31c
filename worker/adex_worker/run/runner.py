"""Plan in, outcome out: one forward pass and one round of sampling, on one thread.

A sequence that cannot be served fails alone. A pass that raises fails its sequences and leaves the
runner ready for the next plan.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch, LoraBatch, SlotViews
from adex_proto.errors import AdexError, ProtocolViolation, StepFailed
from adex_proto.grammar import Grammar
from adex_proto.outcome import (
    SampledTokens,
    SequenceFailure,
    StepOutcome,
    WorkerInfo,
)
from adex_proto.plan import StepPlan
from adex_worker.run.arrays import Download, IntArray, upload
from adex_worker.run.constraints import ConstraintTable, Masks
from adex_worker.run.inputs import PoolLimits, StepInputs, step_inputs
from adex_worker.run.lane import AtOnce, Lane
from adex_worker.run.last_tokens import keep_last, sequences_max, token_ids_of
from adex_worker.run.launched import Launched, token_scores
from adex_worker.run.sample import Sampled, sample
from adex_worker.run.sampling_table import Needs, SamplingTable
from adex_worker.run.scores import ScoredRows, prompt_scores, scored_rows, with_scored
from adex_worker.run.sequences import SequenceTable

_LOG = logging.getLogger(__name__)

_NOT_FINITE = StepFailed("the model's logits are not finite")
_SPOILED = StepFailed("the step before it failed")


class Forward(Protocol):
    """The model: logits [logit_rows, vocabulary] float32 for rows of any sequences."""

    def prepare(
        self,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None = None,
        logit_rows: Tensor | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """What takes the step from its token_ids [rows] to its logits, once."""
        ...


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
    """The step side of one worker. Not thread-safe: one thread calls it."""

    def __init__(
        self,
        model: Forward,
        kv: Tensor,
        pages: Pages,
        slots: ResidentViews,
        info: WorkerInfo,
        constraints: ConstraintTable | None = None,
        graphs: RecordedDecodes | None = None,
        last: Tensor | None = None,
        lane: Lane | None = None,
    ) -> None:
        """`kv` is the pool as KV blocks, [pages, layers, 2, block_tokens, kv_heads, head_dim].

        Without `constraints` no sequence may have a grammar. `graphs` compute the steps they take.
        `last` (see `last_tokens`) lets a step begin before the one before it is finished. Steps are
        computed on `lane`; without one, by whoever calls.
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
            sequences_max=sequences_max(info),
        )
        self._sampling = SamplingTable(vocabulary=info.vocabulary, eos_token_ids=info.eos_token_ids)
        self._constraints = constraints
        self._graphs, self._last, self._lane = graphs, last, lane or AtOnce()
        self._ended_s = 0.0
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

    def run(self, plan: StepPlan) -> StepOutcome:
        """Carry out one plan. Never raises for what a plan or a pass does wrong."""
        step = self.begin(plan)
        step.choose()
        return step.finish()

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> "RunningStep":
        """Launch the forward pass of a plan.

        The step before it must be chosen, and, without `last`, finished too.
        """
        launched = Launched(plan.step, time.perf_counter(), self._kv.device)
        if plan.finished or plan.arrived:
            # Tokens are being chosen by the tables that change now.
            self._lane.settle()
        for number in plan.finished:
            self._forget(number)
        launched.failures = self._meet(plan)
        refused = {failure.sequence for failure in launched.failures}
        spans = tuple(span for span in plan.spans if span.sequence not in refused)
        if spans or plan.decodes.sequences:
            inputs, unfit = step_inputs(
                spans, plan.decodes, self._sequences, self._limits, self._slots.__contains__
            )
            launched.failures += unfit
            if inputs is not None:
                self._begin(launched, inputs)
        refused = {failure.sequence for failure in launched.failures}
        self._sequences.fail(list(refused), plan.step)
        return RunningStep(self, launched)

    def choose(self, launched: Launched) -> None:
        """Choose the step's tokens on the device, by what was finished until now."""
        inputs, logits = launched.inputs, launched.logits
        launched.logits = None
        if inputs is None or logits is None:
            return
        try:
            masks, launched.errors = self._masks(inputs.sampled)
            choice = partial(self._choose, launched, inputs, logits, masks)
            launched.chosen = self._lane.submit(choice)
        except Exception as error:
            self._fail_all(launched, error)

    @torch.inference_mode()
    def _choose(
        self, launched: Launched, inputs: StepInputs, found: Future[Tensor], masks: Masks | None
    ) -> None:
        """On the lane: of the logits that were found there before."""
        logits, rows, scored = found.result(), inputs.sampled, launched.scored
        if scored is not None:
            launched.scores = prompt_scores(logits[len(rows) :], scored)
        if not len(rows):
            launched.arrival = Download(self._kv.device)
            return
        own = logits if len(logits) == len(rows) else logits[: len(rows)]
        draws = sample(own, rows, launched.generated, self._sampling, masks)
        launched.draws, launched.arrival = draws, draws.arrival
        if self._last is not None:
            keep_last(self._last, rows, draws.token_ids)

    def finish(self, launched: Launched) -> StepOutcome:
        """Wait for the step, and say what came of it: an outcome frees pages, also for copies that
        do not queue behind the steps."""
        tokens = SampledTokens()
        try:
            launched.wait()
            if launched.draws is not None:
                tokens = self._learn(launched, launched.draws.read())
        except Exception as error:
            tokens = SampledTokens()
            self._fail_all(launched, error)
        ended_s = time.perf_counter()
        # A step that was launched before the one before it had ended has not run all the while.
        seconds = ended_s - max(launched.started_s, self._ended_s)
        self._ended_s = ended_s
        self._steps += 1
        self._tokens += len(tokens)
        self._failures += len(launched.failures)
        self._seconds += seconds
        failures = tuple(launched.failures)
        return StepOutcome(launched.step, tokens, failures, seconds, launched.scores)

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

    def _begin(self, launched: Launched, inputs: StepInputs) -> None:
        table, rows = self._sequences, inputs.sampled
        launched.inputs, launched.sequences = inputs, table.numbers[inputs.table_rows]
        try:
            launched.scored = scored_rows(inputs, table, self._sampling)
            launched.logits = self._lane.submit(self._prepared(inputs, launched.scored))
        except Exception as error:
            self._fail_all(launched, error)
            return
        table.computed[inputs.table_rows] = inputs.stops
        self._rows += len(inputs.token_ids)
        launched.numbers = table.numbers[rows]
        launched.generated = table.known[rows] - table.output_start[rows]
        launched.needs, launched.wanted = self._sampling.needs[rows], self._sampling.logprobs[rows]
        table.expect(rows)

    def _prepared(self, inputs: StepInputs, scored: ScoredRows | None) -> Callable[[], Tensor]:
        """What finds, on the lane, the logits [sampled and then scored rows, vocabulary] float32 of
        one forward pass."""
        if self._graphs is not None and scored is None and self._graphs.take(inputs):
            return partial(self._graphs.forward, inputs)
        device, lora = self._kv.device, None
        if inputs.segments:
            lora = LoraBatch(inputs.segments, self._slots, table=self._slots.table)
        take = self._model.prepare(
            upload(inputs.positions, device),
            self._kv,
            inputs.attention(device),
            lora,
            upload(with_scored(inputs.logit_rows, scored), device),
        )
        return lambda: take(token_ids_of(inputs, self._last, device))

    def _fail_all(self, launched: Launched, error: Exception) -> None:
        """Whatever a pass raises costs its step's sequences and nothing else."""
        _LOG.error("step %d failed", launched.step, exc_info=error)
        # A pass that is still computed writes to pages which the outcome gives to others.
        self._lane.settle()
        shown = (
            error
            if isinstance(error, AdexError)
            else StepFailed(f"the step failed inside the worker ({type(error).__name__})")
        )
        numbers = launched.sequences.tolist()
        launched.failures += [SequenceFailure(number, shown) for number in numbers]
        launched.logits = launched.draws = None
        launched.scores = ()
        self._sequences.fail(numbers, launched.step)
        if launched.arrival is None:
            # What was launched until then still reads and writes the step's pages.
            launched.arrival = Download(self._kv.device)

    def _learn(self, launched: Launched, sampled: Sampled) -> SampledTokens:
        """Take the tokens in; those of sequences that went meanwhile are only told."""
        assert launched.inputs is not None
        table, rows, numbers = self._sequences, launched.inputs.sampled, launched.numbers
        here = table.rows_of(numbers.tolist()) == rows
        # It began before a step that failed was read.
        spoiled = here & table.failed_before(rows, launched.step)
        whole = sampled.finite & ~spoiled & ~np.isin(rows, list(launched.errors))
        for index in np.flatnonzero(~whole).tolist():
            otherwise = _SPOILED if spoiled[index] else _NOT_FINITE
            why = launched.errors.get(int(rows[index]), otherwise)
            launched.failures.append(SequenceFailure(int(numbers[index]), why))
        table.fail(numbers[~whole].tolist(), launched.step)
        known = whole & here
        table.learn(rows[known], sampled.token_ids[known])
        for index in np.flatnonzero(known & (launched.needs & Needs.PENALTY > 0)).tolist():
            self._sampling.note(int(rows[index]), int(sampled.token_ids[index]))
        constrained = known & (launched.needs & Needs.GRAMMAR > 0)
        if self._constraints is not None and constrained.any():
            self._constraints.note(rows[constrained], sampled.token_ids[constrained])
        return SampledTokens(
            tuple(numbers[whole].tolist()),
            tuple(sampled.token_ids[whole].tolist()),
            token_scores(launched, whole, sampled),
        )

    def _masks(self, rows: IntArray) -> tuple[Masks | None, dict[int, AdexError]]:
        """What the grammars of `rows` allow next, and by row why one allows nothing."""
        index = np.flatnonzero(self._sampling.needs[rows] & Needs.GRAMMAR)
        if self._constraints is None or not len(index):
            return None, {}
        return self._constraints.masks(rows[index], index)


class RunningStep:
    """A step of a runner, as the step thread sees it."""

    def __init__(self, runner: Runner, launched: Launched) -> None:
        self._runner, self._launched = runner, launched

    @property
    def waits(self) -> bool:
        return self._launched.waits

    @property
    def told(self) -> Future[None] | None:
        return self._launched.told

    def choose(self) -> None:
        self._runner.choose(self._launched)

    def wait(self) -> None:
        self._launched.wait()

    def finish(self) -> StepOutcome:
        return self._runner.finish(self._launched)
