"""What a worker answers: step outcomes and adapter events, in order."""

from dataclasses import dataclass

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError


@dataclass(frozen=True, slots=True)
class SampledToken:
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
    """How probable one token of a prompt was, and the most probable ones at its place."""

    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


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
    tokens: tuple[SampledToken, ...]
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
