"""One tree of errors with a stable code per leaf; the class says whose fault it is.

    AdexError
    ├── CallerError                the request must change before it can succeed
    │   ├── ValidationError        validation               a field or a combination of fields
    │   ├── TemplateError          template_error           the chat template refuses the messages
    │   ├── AdapterNotFound        adapter_not_found        no such adapter, or none you may see
    │   ├── AdapterForbidden       adapter_forbidden        outside the places this server may read
    │   ├── AdapterMalformed       adapter_malformed        files missing, damaged or inconsistent
    │   ├── AdapterUnsupported     adapter_unsupported      a format or option not served
    │   ├── AdapterMismatch        adapter_mismatch         made for another base model
    │   ├── RankTooLarge           rank_too_large           rank above the server's limit
    │   ├── AdapterTooLarge        adapter_too_large        more bytes than its budget can hold
    │   ├── PinRefused             pin_refused              pins would keep more than their share
    │   └── Unauthorized           unauthorized             the credential is missing or refused
    ├── CapacityError              the same request may succeed later
    │   ├── Overloaded             overloaded               a queue is full
    │   ├── DeadlineUnmeetable     deadline_unmeetable      the first token would come too late
    │   ├── ShuttingDown           shutting_down            the server drains
    │   ├── SourceUnavailable      source_unavailable       the adapter's source did not answer
    │   └── CacheFull              cache_full               the server's disk takes no more adapters
    └── ServerError                nothing the caller did
        ├── WorkerLost             worker_lost              the worker went away in mid-request
        ├── StepFailed             generation               a step failed for this sequence
        └── ProtocolViolation      protocol                 the two sides disagree: a bug of ours

Only the fronts turn these into statuses.
"""

from typing import ClassVar


class AdexError(Exception):
    """What went wrong, in one sentence, with the field and the remedy where there is one."""

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message}. {self.remedy}" if self.remedy else self.message


class CallerError(AdexError):
    """The request must change before it can succeed."""


class ValidationError(CallerError):
    """A field is out of its range, of the wrong type, or at odds with another."""

    code = "validation"


class TemplateError(CallerError):
    """The model's chat template refuses these messages, or the model has none."""

    code = "template_error"


class AdapterNotFound(CallerError):
    """No adapter of that name exists where this tenant may look."""

    code = "adapter_not_found"


class AdapterForbidden(CallerError):
    """The name points outside the places this server may read adapters from."""

    code = "adapter_forbidden"


class AdapterMalformed(CallerError):
    """The adapter's files are missing, damaged, or disagree with each other."""

    code = "adapter_malformed"


class AdapterUnsupported(CallerError):
    """The adapter is of a kind, or uses an option, that this server does not serve."""

    code = "adapter_unsupported"


class AdapterMismatch(CallerError):
    """The adapter was made for a base model of other shapes."""

    code = "adapter_mismatch"


class RankTooLarge(CallerError):
    """The adapter's rank exceeds the server's limit."""

    code = "rank_too_large"


class AdapterTooLarge(CallerError):
    """The adapter needs more bytes than the budget it must fit."""

    code = "adapter_too_large"


class PinRefused(CallerError):
    """Pins would keep more of a tier than their share of it."""

    code = "pin_refused"


class Unauthorized(CallerError):
    """The credential is missing, or may not do this."""

    code = "unauthorized"


class CapacityError(AdexError):
    """The same request may succeed later."""


class Overloaded(CapacityError):
    """A bounded queue is full."""

    code = "overloaded"


class DeadlineUnmeetable(CapacityError):
    """The first token cannot come by the request's deadline."""

    code = "deadline_unmeetable"


class ShuttingDown(CapacityError):
    """The server finishes what it has and takes nothing new."""

    code = "shutting_down"


class SourceUnavailable(CapacityError):
    """The place the adapter comes from did not answer."""

    code = "source_unavailable"


class CacheFull(CapacityError):
    """The disk that adapters are kept on takes no more of them."""

    code = "cache_full"


class ServerError(AdexError):
    """Nothing the caller did."""


class WorkerLost(ServerError):
    """The worker that held this sequence went away."""

    code = "worker_lost"


class StepFailed(ServerError):
    """The step that computed this sequence failed for it."""

    code = "generation"


class ProtocolViolation(ServerError):
    """Scheduler and worker disagree about state; always a bug, never hidden."""

    code = "protocol"


def _leaves(kind: type[AdexError]) -> list[type[AdexError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


ERRORS_BY_CODE: dict[str, type[AdexError]] = {leaf.code: leaf for leaf in _leaves(AdexError)}


def error_of(
    code: str,
    message: str,
    *,
    field: str | None = None,
    remedy: str | None = None,
    retry_after_s: float | None = None,
) -> AdexError:
    """The error that `code` names; a code of a newer peer becomes a plain ServerError."""
    kind = ERRORS_BY_CODE.get(code, ServerError)
    return kind(message, field=field, remedy=remedy, retry_after_s=retry_after_s)
