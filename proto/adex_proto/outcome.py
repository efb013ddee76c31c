"""What a worker answers: step outcomes and adapter events, in order."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import compress
from typing import NamedTuple, Self

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError


class SampledToken(NamedTuple):
    """The token one sequence gained in a step.

    `logprob` and `alternatives` (token, logprob; most probable first) only where asked for; both
    are of the model's own distribution, before penalties, bias, temperature and filters.
    """

    sequence: int
    token_id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TokenScore:
    """How probable one token was, and the most probable ones at its place."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """The tokens that sequences gained in a step: `token_ids[i]` is that of `sequences[i]`.

    Columns, because every step has one for each sequence that runs; `scores`, by sequence, only
    where asked for.
    """

    sequences: tuple[int, ...] = ()
    token_ids: tuple[int, ...] = ()
    scores: dict[int, TokenScore] = field(default_factory=dict[int, TokenScore])

    @classmethod
    def of(cls, tokens: Iterable[SampledToken]) -> Self:
        """The same as columns."""
        rows = list(tokens)
        return cls(
            tuple([row.sequence for row in rows]),
            tuple([row.token_id for row in rows]),
            {
                r.sequence: TokenScore(r.logprob, r.alternatives)
                for r in rows
                if r.logprob is not None
            },
        )

    def __len__(self) -> int:
        return len(self.sequences)

    def __iter__(self) -> Iterator[SampledToken]:
        scores = self.scores
        for sequence, token_id in zip(self.sequences, self.token_ids, strict=True):
            score = scores.get(sequence) if scores else None
            if score is None:
                yield SampledToken(sequence, token_id)
            else:
                yield SampledToken(sequence, token_id, score.logprob, score.alternatives)

    def without(self, dropped: set[int]) -> Self:
        """The tokens of the other sequences."""
        if not dropped or dropped.isdisjoint(self.sequences):
            return self
        kept = [number not in dropped for number in self.sequences]
        return type(self)(
            tuple(compress(self.sequences, kept)),
            tuple(compress(self.token_ids, kept)),
            {number: score for number, score in self.scores.items() if number not in dropped},
        )


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Scores of a sequence's prompt tokens at the positions from `start` on.

    The first token of a prompt follows nothing and has none. A sequence that is computed again is
    scored again.
    """

    sequence: int
    start: int
    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True, slots=True)
class SequenceFailure:
    """A sequence the step could not serve; the others are unharmed."""

    sequence: int
    error: AdexError


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """The answer to one plan. `seconds` is how long the worker computed."""

    step: int
    tokens: SampledTokens = field(default_factory=SampledTokens)
    failures: tuple[SequenceFailure, ...] = ()
    seconds: float = 0.0
    scores: tuple[PromptScores, ...] = ()


@dataclass(frozen=True, slots=True)
class Fetched:
    """`key` now means `version`, and its bundle is on disk."""

    key: AdapterKey
    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class FetchFailed:
    """`key` could not be resolved, read, checked or converted."""

    key: AdapterKey
    error: AdexError


@dataclass(frozen=True, slots=True)
class Moved:
    """The bundle has arrived in `tier`."""

    digest: str
    tier: Tier


@dataclass(frozen=True, slots=True)
class MoveFailed:
    """The bundle did not arrive in `tier`; it is where it was before."""

    digest: str
    tier: Tier
    error: AdexError


@dataclass(frozen=True, slots=True)
class Evicted:
    """The bundle's copy in `tier` is gone and its bytes are free."""

    digest: str
    tier: Tier


AdapterEvent = Fetched | FetchFailed | Moved | MoveFailed | Evicted


@dataclass(frozen=True, slots=True)
class Held:
    """One bundle a worker already holds when a stream opens, in its nearest tier below DEVICE."""

    version: AdapterVersion
    tier: Tier


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker is and how much it can hold. Bytes and counts of this one worker.

    The device pool has `pages` pages of `page_bytes`; a KV block of `block_tokens` tokens fills
    exactly one page, an adapter a run of them.
    """

    model_id: str
    architecture: str
    dtype: str
    device: str
    layers: int
    vocabulary: int
    positions_max: int
    block_tokens: int
    page_bytes: int
    pages: int
    slots_max: int
    host_bytes: int
    disk_bytes: int
    rank_max: int
    step_tokens_max: int
    step_sequences_max: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word on every stream: what the worker is, and the bundles it holds."""

    info: WorkerInfo
    held: tuple[Held, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The worker lives; `step` is the last one it finished (-1: none)."""

    step: int
