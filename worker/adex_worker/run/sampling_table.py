"""How each sequence is sampled, in columns over the same rows as the sequence table.

The columns are filled once, when a sequence arrives. `needs` says which operations a row takes part
in, so that a step performs only those that some row of it needs.
"""

from enum import IntFlag

import numpy as np

from adex_proto.errors import ProtocolViolation
from adex_proto.sampling import SamplingParams
from adex_worker.run.arrays import FloatArray, IntArray, UintArray, grown
from adex_worker.run.history import TokenHistory


class Needs(IntFlag):
    """What a row needs beyond the most probable token."""

    NOTHING = 0
    DRAW = 1
    FILTER = 2
    PENALTY = 4
    BIAS = 8
    MIN_TOKENS = 16
    LOGPROBS = 32
    GRAMMAR = 64


class SamplingTable:
    """Columns [rows] by table row, and what only some rows have in dictionaries by row.

    Attributes:
        needs: Needs as int64. `top_k` 0 is none; `logprobs` and
            `prompt_logprobs` how many alternatives, -1 for no logprobs.
        bias: token ids and what to add to their logits.
        end_ids: the tokens that end a sequence, for rows with min_new_tokens.
        history: the tokens so far, for rows with a penalty.
    """

    _FLOATS = ("temperature", "top_p", "min_p", "typical_p", "repetition", "frequency", "presence")
    _INTS = ("needs", "top_k", "min_new_tokens", "logprobs", "prompt_logprobs")

    def __init__(self, *, vocabulary: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        # Some models name end tokens that they do not have; those never come, and have no logit.
        self._eos_token_ids = tuple(token for token in eos_token_ids if 0 <= token < vocabulary)
        self.clear()

    def clear(self) -> None:
        """Forget every row."""
        self.temperature, self.top_p, self.min_p, self.typical_p = _floats(4)
        self.repetition, self.frequency, self.presence = _floats(3)
        self.needs, self.top_k, self.min_new_tokens = _ints(3)
        self.logprobs, self.prompt_logprobs = _ints(2)
        self.seed: UintArray = np.zeros(1, np.uint64)
        self.bias: dict[int, tuple[IntArray, FloatArray]] = {}
        self.end_ids: dict[int, IntArray] = {}
        self.history: dict[int, TokenHistory] = {}

    def check(self, sequence: int, sampling: SamplingParams) -> None:
        """Raise ProtocolViolation when the sampling names a token the model does not have."""
        for field, tokens in (
            ("logit_bias", [token for token, _ in sampling.logit_bias]),
            ("stop_token_ids", sampling.stop_token_ids),
        ):
            wrong = [token for token in tokens if not 0 <= token < self._vocabulary]
            if wrong:
                raise ProtocolViolation(
                    f"sequence {sequence}: `{field}` names token {wrong[0]}, outside the"
                    f" vocabulary of {self._vocabulary}",
                    field=field,
                )

    def set(
        self, row: int, sampling: SamplingParams, token_ids: IntArray, output_start: int
    ) -> None:
        """Fill a row. `token_ids` are all tokens so far, generated from `output_start` on."""
        self._grow_to(row + 1)
        self.temperature[row], self.top_k[row] = sampling.temperature, sampling.top_k
        self.top_p[row], self.min_p[row] = sampling.top_p, sampling.min_p
        self.typical_p[row], self.seed[row] = sampling.typical_p, sampling.seed
        self.repetition[row] = sampling.repetition_penalty
        self.frequency[row] = sampling.frequency_penalty
        self.presence[row] = sampling.presence_penalty
        self.min_new_tokens[row] = sampling.min_new_tokens
        self.logprobs[row] = -1 if sampling.logprobs is None else sampling.logprobs
        scored = sampling.prompt_logprobs
        self.prompt_logprobs[row] = -1 if scored is None else scored
        needs = _needs(sampling)
        if needs & Needs.PENALTY:
            self.history[row] = TokenHistory(token_ids, output_start)
        if needs & Needs.BIAS:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            self.bias[row] = np.array(ids, np.int64), np.array(biases, np.float64)
        if needs & Needs.MIN_TOKENS:
            eos = () if sampling.ignore_eos else self._eos_token_ids
            self.end_ids[row] = np.array([*eos, *sampling.stop_token_ids], np.int64)
        self.needs[row] = needs

    def drop(self, row: int) -> None:
        """Forget a row."""
        if self.needs[row]:
            for kept in (self.bias, self.end_ids, self.history):
                kept.pop(row, None)

    def note(self, row: int, token_id: int) -> None:
        """A row with a penalty has gained a token."""
        self.history[row].add(token_id)

    def _grow_to(self, rows: int) -> None:
        if rows > len(self.needs):
            for name in (*self._FLOATS, *self._INTS, "seed"):
                setattr(self, name, grown(getattr(self, name), max(rows, 2 * len(self.needs))))


def _needs(sampling: SamplingParams) -> Needs:
    needs = Needs.NOTHING
    if sampling.temperature > 0:
        needs |= Needs.DRAW
        top_k, top_p, min_p = sampling.top_k, sampling.top_p, sampling.min_p
        if top_k > 0 or top_p < 1 or min_p > 0 or sampling.typical_p < 1:
            needs |= Needs.FILTER
    penalties = (sampling.repetition_penalty - 1, sampling.frequency_penalty)
    if any(penalties) or sampling.presence_penalty:
        needs |= Needs.PENALTY
    if sampling.logit_bias:
        needs |= Needs.BIAS
    if sampling.min_new_tokens > 0:
        needs |= Needs.MIN_TOKENS
    if sampling.logprobs is not None:
        needs |= Needs.LOGPROBS
    if sampling.grammar is not None:
        needs |= Needs.GRAMMAR
    return needs


def _floats(count: int) -> list[FloatArray]:
    return [np.zeros(1, np.float64) for _ in range(count)]


def _ints(count: int) -> list[IntArray]:
    return [np.zeros(1, np.int64) for _ in range(count)]
