"""A step between its launch and its outcome."""

from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from adex_proto.errors import AdexError
from adex_proto.outcome import PromptScores, SequenceFailure, TokenScore
from adex_worker.run.arrays import BoolArray, Download, IntArray
from adex_worker.run.inputs import StepInputs
from adex_worker.run.sample import Draws, Sampled
from adex_worker.run.scores import ScoredRows


def _none() -> IntArray:
    return np.zeros(0, np.int64)


@dataclass(slots=True)
class Launched:
    """A step that is under way.

    `sequences` are the numbers of all that it computes: their rows may change hands meanwhile.
    `numbers`, `generated` (tokens before this step's), `needs` and `wanted` (alternatives) are of
    the rows that sample, [sampled], as they were at its launch. `errors` are by table row.
    `logits`, until they are chosen from, and `chosen` are on the lane, which also sets `scores`,
    `draws` and `arrival`.
    """

    step: int
    started_s: float
    device: torch.device
    failures: list[SequenceFailure] = field(default_factory=list[SequenceFailure])
    inputs: StepInputs | None = None
    sequences: IntArray = field(default_factory=_none)
    scored: ScoredRows | None = None
    logits: Future[Tensor] | None = None
    chosen: Future[None] | None = None
    numbers: IntArray = field(default_factory=_none)
    generated: IntArray = field(default_factory=_none)
    needs: IntArray = field(default_factory=_none)
    wanted: IntArray = field(default_factory=_none)
    errors: dict[int, AdexError] = field(default_factory=dict[int, AdexError])
    scores: tuple[PromptScores, ...] = ()
    draws: Draws | None = None
    arrival: Download | None = None

    @property
    def waits(self) -> bool:
        """Whether the device may still be at it once its tokens are chosen."""
        if self.told is not None:
            return True
        return self.arrival is not None and self.device.type == "cuda"

    @property
    def told(self) -> Future[None] | None:
        """Is done when the step is; None where somebody has to wait for it, or nobody."""
        return None if self.chosen is None or self.chosen.done() else self.chosen

    def wait(self) -> None:
        """Return when the device is done with the step; any thread may call. Raises what failed."""
        if self.chosen is not None:
            self.chosen.result()
        if self.arrival is not None:
            self.arrival.wait()


def token_scores(launched: Launched, whole: BoolArray, sampled: Sampled) -> dict[int, TokenScore]:
    """By sequence, the scores of the tokens that were to have them."""
    scores: dict[int, TokenScore] = {}
    logprobs = sampled.logprobs
    if logprobs is None:
        return scores
    for index, at in logprobs.index.items():
        if whole[index]:
            wanted = int(launched.wanted[index])
            top_ids, top = logprobs.top_ids[at, :wanted], logprobs.top[at, :wanted]
            alternatives = tuple(zip(top_ids.tolist(), top.tolist(), strict=True))
            scores[int(launched.numbers[index])] = TokenScore(
                float(logprobs.chosen[at]), alternatives
            )
    return scores
