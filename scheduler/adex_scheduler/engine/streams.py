"""One generation's text: from its tokens to the pieces its caller reads."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import AdexError, error_of
from adex_proto.outcome import PromptScores, SampledToken, TokenScore
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.adapters import AT_REST
from adex_scheduler.core.events import Arrived
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.engine.journey import Journey
from adex_scheduler.text.detokenize import Detokenizer, Vocabulary
from adex_scheduler.text.stops import StopMatcher

# Enough of a prompt for the detokenizer to know what the first new token continues.
_PROMPT_TAIL = 8


class TokenTexts(Vocabulary, Protocol):
    """What the engine needs of a tokenizer."""

    def token_text(self, token_id: int) -> str: ...


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate. `include_stop` keeps the stop string in the text."""

    request_id: str
    tenant: str
    key: AdapterKey | None
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    stops: tuple[str, ...] = ()
    include_stop: bool = True
    skip_special_tokens: bool = True
    credential: str = field(default="", repr=False)
    """What a credentialed key is resolved with."""
    deadline_s: float | None = None
    """How long the first token may take; see `core.events.Arrived`."""

    def arrived(self, number: int) -> Arrived:
        """What the core is told of it."""
        return Arrived(
            number, self.tenant, self.key, self.token_ids, self.sampling, self.deadline_s
        )


@dataclass(frozen=True, slots=True)
class Piece:
    """One token and what the caller learns by it.

    `token_text` is the token's own text; `text` what may be shown now, "" while characters or the
    beginning of a stop string are held back. `finish` is set on the last piece. The first piece has
    the `prompt_scores`, of all prompt tokens but the first, where they were asked for.
    """

    token: SampledToken
    token_text: str
    special: bool
    text: str
    finish: FinishReason | None
    prompt_scores: tuple[TokenScore, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One name and the version it means now. `last_used_s`: seconds since a request used it.

    `moving` says that it is on its way between tiers. `pins` counts the sequences that hold it on
    the device. `pinned` is the tier an operator keeps it in, ABSENT for none; `pin_error` is the
    code of what keeps the pin from holding.
    """

    key: AdapterKey
    digest: str
    tier: Tier
    bundle_bytes: int
    rank_max: int
    pins: int
    last_used_s: float
    moving: bool = False
    waiting: int = 0
    pinned: Tier = Tier.ABSENT
    pin_error: str = ""


def status_of(core: SchedulerCore, key: AdapterKey, now: float) -> AdapterStatus | None:
    """What the core knows of a name; None where it means nothing and is not pinned."""
    alias, pinned = core.residency.names.get(key), core.control.pins.get(key)
    adapter = core.tiers.adapters.get(alias.digest or "") if alias else None
    if adapter is None and pinned is None:
        return None
    return AdapterStatus(
        key=key,
        digest=adapter.digest if adapter else "",
        tier=adapter.tier if adapter else Tier.ABSENT,
        bundle_bytes=adapter.version.bundle_bytes if adapter else 0,
        rank_max=adapter.version.rank_max if adapter else 0,
        pins=adapter.pins if adapter else 0,
        last_used_s=max(now - adapter.used_at, 0.0) if adapter else 0.0,
        moving=bool(adapter and adapter.residence not in AT_REST),
        waiting=len(adapter.waiting) if adapter else 0,
        pinned=pinned.tier if pinned else Tier.ABSENT,
        pin_error=pinned.error.code if pinned and pinned.error else "",
    )


class Stream:
    """One caller's generation: its text state, the pieces it has not read, and how it ended.

    Its pieces are bounded by the length of the generation.
    """

    def __init__(
        self, request: EngineRequest, number: int, texts: TokenTexts, journey: Journey
    ) -> None:
        self.request = request
        self.number = number
        self.journey = journey
        self.finish: FinishReason | None = None
        self.error: AdexError | None = None
        self.pieces: deque[Piece] = deque()
        self.wake = asyncio.Event()
        self._scores: list[TokenScore] = []
        self._texts = texts
        self._detokenizer = Detokenizer(
            texts,
            request.token_ids[-_PROMPT_TAIL:],
            skip_special_tokens=request.skip_special_tokens,
        )
        self._matcher: StopMatcher | None = None
        if request.stops:
            self._matcher = StopMatcher(request.stops, include_stop=request.include_stop)

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.finish is not None or self.error is not None

    def score(self, scores: PromptScores) -> None:
        """Scores of further prompt tokens; those told before, to a former worker, are passed over.

        A prompt's first token has none, so that position 1 comes first.
        """
        told = 1 + len(self._scores)
        assert scores.start <= told, f"scores from {scores.start} leave a gap after {told}"
        self._scores.extend(scores.tokens[told - scores.start :])

    def push(self, token: SampledToken, finish: FinishReason | None) -> bool:
        """Make the token's piece. Returns: whether its text completed a stop string.

        That ends the stream as a stop, whatever else would have ended it with this token.
        """
        self.journey.generated += 1
        text = self._detokenizer.push(token.token_id)
        if finish is not None:
            text += self._detokenizer.flush()
        found = False
        if self._matcher is not None:
            text, found = self._matcher.push(text)
            if found:
                finish = FinishReason.STOP
            elif finish is not None:
                text += self._matcher.flush()
        own_text = self._texts.token_text(token.token_id)
        special = self._texts.is_special(token.token_id)
        scores = tuple(self._scores) if self._scores and self.journey.generated == 1 else ()
        self.pieces.append(Piece(token, own_text, special, text, finish, scores))
        self.finish = finish
        self.wake.set()
        return found

    def fail(self, error: AdexError) -> None:
        """End the stream with an error, after the pieces it has."""
        self.error = error
        self.wake.set()


def fresh(error: AdexError) -> AdexError:
    """A copy to raise: one error may end several requests, and a raised one keeps its traceback."""
    return error_of(
        error.code,
        error.message,
        field=error.field,
        remedy=error.remedy,
        retry_after_s=error.retry_after_s,
    )
