"""Plan in, outcome out: one forward pass and one round of sampling, on one thread.

A sequence that cannot be served fails alone. A pass that raises fails its sequences and leaves the
runner ready for the next plan.
"""

import logging
import time
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adex_kernels.batch import AttentionBatch, LoraBatch, SlotViews
from adex_proto.errors import AdexError, ProtocolViolation, StepFailed
from adex_proto.outcome import SampledToken, SequenceFailure, StepOutcome, WorkerInfo
from adex_proto.plan import StepPlan
from adex_worker.run.inputs import PoolLimits, StepInputs, step_inputs
from adex_worker.run.sample import Sampled, sample
from adex_worker.run.sampling_table import Needs, SamplingTable
from adex_worker.run.sequences import SequenceTable

_LOG = logging.getLogger(__name__)

# Sequences may wait on the worker between steps; this many times a step's worth is a leak.
_SEQUENCES_PER_STEP_SEQUENCE = 16


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


class ResidentViews(SlotViews, Protocol):
    """The resident adapters by slot, and which slots those are."""

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
        self, model: Forward, kv: Tensor, pages: Pages, slots: ResidentViews, info: WorkerInfo
    ) -> None:
        """`kv` is the pool as KV blocks, [pages, layers, 2, block_tokens, kv_heads, head_dim]."""
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
        self._steps = self._rows = self._tokens = self._failures = 0
        self._seconds = 0.0

    def forget_all(self) -> None:
        """Forget every sequence."""
        self._sequences.clear()
        self._sampling.clear()

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
        tokens: tuple[SampledToken, ...] = ()
        if spans:
            inputs, unfit = step_inputs(
                spans, self._sequences, self._limits, self._slots.__contains__, self._kv.device
            )
            failures += unfit
            if inputs is not None:
                tokens, failed = self._compute(plan.step, inputs)
                failures += failed
                if not tokens:
                    self._wait_for_device()
        if failures:
            self._sequences.fail([failure.sequence for failure in failures])
        seconds = time.perf_counter() - started_s
        self._steps += 1
        self._tokens += len(tokens)
        self._failures += len(failures)
        self._seconds += seconds
        return StepOutcome(plan.step, tokens, tuple(failures), seconds)

    def _forget(self, number: int) -> None:
        row = self._sequences.remove(number)
        if row is not None:
            self._sampling.drop(row)

    def _meet(self, plan: StepPlan) -> list[SequenceFailure]:
        failures: list[SequenceFailure] = []
        for new in plan.arrived:
            try:
                self._sampling.check(new.sequence, new.sampling)
                row = self._sequences.add(new)
            except ProtocolViolation as violation:
                failures.append(SequenceFailure(new.sequence, violation))
            else:
                prompt = self._sequences.prompt(row)
                self._sampling.set(row, new.sampling, prompt, new.output_start)
        return failures

    def _compute(
        self, step: int, inputs: StepInputs
    ) -> tuple[tuple[SampledToken, ...], list[SequenceFailure]]:
        try:
            lora = LoraBatch(inputs.segments, self._slots) if inputs.segments else None
            logits = self._model.forward(
                inputs.token_ids,
                inputs.positions,
                self._kv,
                inputs.attention,
                lora,
                inputs.logit_rows,
            )
            self._sequences.computed[inputs.table_rows] = inputs.stops
            self._rows += len(inputs.token_ids)
            if not len(inputs.sampled):
                return (), []
            return self._sample(logits, inputs)
        except Exception as error:
            # Whatever a pass raises costs this step's sequences and nothing else.
            _LOG.exception("step %d failed", step)
            return (), self._all_failed(inputs, error)

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
    ) -> tuple[tuple[SampledToken, ...], list[SequenceFailure]]:
        table, rows = self._sequences, inputs.sampled
        generated = table.known[rows] - table.output_start[rows]
        sampled = sample(logits, rows, generated, self._sampling)
        finite = sampled.finite
        table.append(rows[finite], sampled.token_ids[finite])
        for index in (self._sampling.needs[rows] & Needs.PENALTY).nonzero()[0]:
            if finite[index]:
                self._sampling.note(int(rows[index]), int(sampled.token_ids[index]))
        numbers = table.numbers[rows].tolist()
        token_ids, whole = sampled.token_ids.tolist(), finite.tolist()
        tokens = tuple(
            self._token(index, number, token_ids[index], int(rows[index]), sampled)
            for index, number in enumerate(numbers)
            if whole[index]
        )
        error = StepFailed("the model's logits are not finite")
        failures = [
            SequenceFailure(number, error)
            for number, is_whole in zip(numbers, whole, strict=True)
            if not is_whole
        ]
        return tokens, failures

    def _token(
        self, index: int, number: int, token_id: int, row: int, sampled: Sampled
    ) -> SampledToken:
        logprobs = sampled.logprobs
        at = None if logprobs is None else logprobs.index.get(index)
        if logprobs is None or at is None:
            return SampledToken(number, token_id)
        wanted = int(self._sampling.logprobs[row])
        top_ids, top = logprobs.top_ids[at, :wanted], logprobs.top[at, :wanted]
        alternatives = tuple(zip(top_ids.tolist(), top.tolist(), strict=True))
        return SampledToken(number, token_id, float(logprobs.chosen[at]), alternatives)
