"""May this request enter at all? Lengths and queue bounds; a refusal names both numbers."""

from dataclasses import dataclass

from adex_proto.errors import (
    AdexError,
    DeadlineUnmeetable,
    Overloaded,
    ShuttingDown,
    ValidationError,
)
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.limits import Limits

RETRY_AFTER_S_MAX = 60.0
# How much one finish moves the estimate.
_SMOOTHING = 0.1


@dataclass(slots=True)
class Pace:
    """How often a place in the queue comes free. Idle times do not count."""

    seconds_per_finish: float = 0.0
    _finished_at: float | None = None

    def begin(self, now: float) -> None:
        """A request has come to an idle worker."""
        self._finished_at = now

    def note_finish(self, now: float) -> None:
        """One more sequence has finished."""
        if self._finished_at is not None:
            gap = now - self._finished_at
            self.seconds_per_finish += _SMOOTHING * (gap - self.seconds_per_finish)
        self._finished_at = now


def queue_refusal(
    *,
    limits: Limits,
    waiting: int,
    waiting_tenant: int,
    draining: bool,
    seconds_per_finish: float,
) -> AdexError | None:
    """Why one more request may not wait now, or None."""
    if draining:
        return ShuttingDown("The server is finishing its work and takes no new requests")
    full = waiting >= limits.waiting_max
    if full or waiting_tenant >= limits.waiting_tenant_max:
        count, bound = (
            (waiting, limits.waiting_max) if full else (waiting_tenant, limits.waiting_tenant_max)
        )
        whose = "" if full else " for this tenant"
        return Overloaded(
            f"{count} requests are waiting{whose}, at most {bound} may",
            remedy="Try again later",
            retry_after_s=min(max(seconds_per_finish * count, 1.0), RETRY_AFTER_S_MAX),
        )
    return None


def deadline_refusal(expected_s: float, deadline_s: float) -> AdexError | None:
    """Why a first token that is expected in `expected_s` cannot be promised, or None."""
    if expected_s <= deadline_s:
        return None
    return DeadlineUnmeetable(
        f"The first token is expected in {expected_s:.3g} s, the request allows {deadline_s:g} s",
        remedy="Try again later, or allow more time",
        retry_after_s=min(max(expected_s - deadline_s, 1.0), RETRY_AFTER_S_MAX),
    )


def length_refusal(
    token_ids: tuple[int, ...], new: int, *, info: WorkerInfo, limits: Limits
) -> AdexError | None:
    """Why a prompt and `new` tokens after it can never be served by this worker, or None."""
    prompt = len(token_ids)
    if prompt == 0:
        return ValidationError("The prompt has no tokens", field="inputs", remedy="Send some text")
    if limits.prompt_tokens_max is not None and prompt > limits.prompt_tokens_max:
        return ValidationError(
            f"The prompt has {prompt} tokens, at most {limits.prompt_tokens_max} are served",
            field="inputs",
            remedy="Shorten the prompt",
        )
    if prompt + new > info.positions_max:
        return ValidationError(
            f"{prompt} prompt tokens and {new} new ones exceed the {info.positions_max} positions "
            "of the model",
            field="max_new_tokens",
            remedy=f"Shorten the prompt, or ask for {max(info.positions_max - prompt, 0)} or fewer",
        )
    blocks = -(-(prompt + new - 1) // info.block_tokens)
    if blocks > info.pages:
        return ValidationError(
            f"{prompt} prompt tokens and {new} new ones take {blocks} blocks, the device has "
            f"{info.pages}",
            field="max_new_tokens",
            remedy="Shorten the prompt, or ask for fewer new tokens",
        )
    if min(token_ids) < 0 or max(token_ids) >= info.vocabulary:
        return ValidationError(
            f"Token ids must lie in [0, {info.vocabulary})", field="inputs", remedy="Correct them"
        )
    return None
