"""What a caller may ask of the sampler, and why a sequence may end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from adex_proto.errors import ValidationError
from adex_proto.grammar import Grammar

TOP_LOGPROBS_MAX = 20
LOGIT_BIAS_MAX = 300
STOP_TOKENS_MAX = 64
SEED_MAX = 2**64 - 1
# Above any vocabulary and any context; the wire and the tensors hold nothing beyond 2**63.
COUNT_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers a field takes: from `low`, or only above it, to `high`."""

    low: float
    high: float
    above: bool = False


# What each number among the sampling parameters may be, wherever it comes from.
RANGES: Mapping[str, Range] = {
    "max_new_tokens": Range(1, COUNT_MAX),
    "min_new_tokens": Range(0, COUNT_MAX),
    "temperature": Range(0.0, 100.0),
    "top_k": Range(0, COUNT_MAX),
    "top_p": Range(0.0, 1.0, above=True),
    "min_p": Range(0.0, 1.0),
    "typical_p": Range(0.0, 1.0, above=True),
    "repetition_penalty": Range(0.0, 100.0, above=True),
    "frequency_penalty": Range(-2.0, 2.0),
    "presence_penalty": Range(-2.0, 2.0),
    "seed": Range(0, SEED_MAX),
}
BIAS_RANGE = Range(-100.0, 100.0)
COUNT_RANGES: Mapping[str, Range] = {
    "logit_bias": Range(0, LOGIT_BIAS_MAX),
    "stop_token_ids": Range(0, STOP_TOKENS_MAX),
}


class FinishReason(Enum):
    """Why a sequence ended of itself."""

    LENGTH = "length"
    EOS = "eos_token"
    STOP = "stop_sequence"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """One sequence's sampling, validated where it is built.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `typical_p` 1 switch their filter
    off; penalties are off at 1 (repetition) and 0 (frequency, presence). `seed` is always given:
    the token drawn at each position is a function of it, the position and the logits alone.
    `logprobs` None reports none; n reports the chosen token's and the n most probable ones'.
    `prompt_logprobs` asks the same of the prompt's own tokens; such a prompt is computed whole.
    `stop_token_ids` end the sequence besides the model's own end tokens, which `ignore_eos`
    disables. A text under a `grammar` ends where the grammar lets it, by one of those end tokens.
    """

    max_new_tokens: int
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    grammar: Grammar | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in RANGES.items():
            _within(name, getattr(self, name), allowed)
        _within("min_new_tokens", self.min_new_tokens, Range(0, self.max_new_tokens))
        for name, allowed in COUNT_RANGES.items():
            _within(name, len(getattr(self, name)), allowed)
        for _, bias in self.logit_bias:
            _within("logit_bias", bias, BIAS_RANGE)
        for name in ("logprobs", "prompt_logprobs"):
            asked = getattr(self, name)
            if asked is not None:
                _within(name, asked, Range(0, TOP_LOGPROBS_MAX))
        if self.grammar is not None and self.ignore_eos:
            raise ValidationError(
                "`ignore_eos` and a grammar exclude each other: where the grammar is complete,"
                " nothing but an end token may follow",
                field="ignore_eos",
                remedy="Leave it out",
            )


def _within(field: str, value: float, allowed: Range) -> None:
    """Raise unless the value is finite and in the range."""
    low, high = allowed.low, allowed.high
    # An int too large for a float is in no range, and cannot be asked whether it is finite.
    in_range = low <= value <= high and math.isfinite(value)
    if in_range and not (allowed.above and value == low):
        return
    bounds = f"{'>' if allowed.above else '>='} {low:g} and <= {high:.10g}"
    raise ValidationError(
        f"`{field}` must be {bounds}, got {value!r:.100}",
        field=field,
        remedy=f"Send a value {bounds}",
    )
