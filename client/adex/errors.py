"""What a call may raise: one tree, by whose fault it is; the server's codes keep their names.

AdexError
├── CallerError                the request must change before it can succeed
│   ├── ValidationError        validation               a field or a combination of fields
│   ├── TemplateError          template_error           the chat template refuses the messages
│   ├── AdapterNotFound        adapter_not_found        no such adapter, or none you may see
│   ├── AdapterForbidden       adapter_forbidden        outside the places the server may read
│   ├── AdapterMalformed       adapter_malformed        files missing, damaged or inconsistent
│   ├── AdapterUnsupported     adapter_unsupported      a format or option not served
│   ├── AdapterMismatch        adapter_mismatch         made for another base model
│   ├── RankTooLarge           rank_too_large           rank above the server's limit
│   ├── AdapterTooLarge        adapter_too_large        more bytes than its budget can hold
│   ├── PinRefused             pin_refused              pins would keep more than their share
│   ├── Unauthorized           unauthorized             the credential is missing or refused
│   ├── RouteNotFound          route_not_found          the server has no such route
│   └── RequestTooLarge        request_too_large        more bytes than the server reads
├── CapacityError              the same request may succeed later
│   ├── Overloaded             overloaded               a queue is full
│   ├── DeadlineUnmeetable     deadline_unmeetable      the first token would come too late
│   ├── ShuttingDown           shutting_down            the server drains
│   ├── SourceUnavailable      source_unavailable       the adapter's source did not answer
│   ├── CacheFull              cache_full               the server's disk takes no more adapters
│   └── NotReady               not_ready                the server does not serve yet
├── ServerError                nothing the caller did
│   ├── WorkerLost             worker_lost              the worker went away in mid-request
│   ├── StepFailed             generation               a step failed for this sequence
│   └── ProtocolViolation      protocol                 the server's two sides disagree
└── TransportError             no whole answer arrived
    ├── ServerUnreachable      unreachable              nobody listens at the address
    ├── RequestTimeout         timeout                  no byte came in time
    ├── StreamBroken           stream_broken            the answer ended before its end
    └── ReplyMalformed         reply_malformed          the answer is not of this protocol
"""

from typing import ClassVar


class AdexError(Exception):
    """What went wrong in one sentence, with what the server told about it.

    `status` is the HTTP status, None when no answer came or the error arrived inside a stream;
    `retry_after_s` is how long the server asks to wait; `request_id` names the request in its logs.
    """

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        self.status = status
        self.request_id = request_id

    def __str__(self) -> str:
        """The message, with the remedy unless the server wrote it into the message already."""
        if self.remedy is None or self.remedy in self.message:
            return self.message
        return f"{self.message.rstrip('.')}. {self.remedy}"


class CallerError(AdexError):
    """The request must change before it can succeed."""


class ValidationError(CallerError):
    """A field is out of its range, of the wrong type, or at odds with another."""

    code = "validation"


class TemplateError(CallerError):
    """The model's chat template refuses these messages, or the model has none."""

    code = "template_error"


class AdapterNotFound(CallerError):
    """No adapter of that name exists where this caller may look."""

    code = "adapter_not_found"


class AdapterForbidden(CallerError):
    """The name points outside the places the server may read adapters from."""

    code = "adapter_forbidden"


class AdapterMalformed(CallerError):
    """The adapter's files are missing, damaged, or disagree with each other."""

    code = "adapter_malformed"


class AdapterUnsupported(CallerError):
    """The adapter is of a kind, or uses an option, that the server does not serve."""

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


class RouteNotFound(CallerError):
    """The address answers, but has no such route: perhaps it is another kind of server."""

    code = "route_not_found"


class RequestTooLarge(CallerError):
    """The request has more bytes than the server reads."""

    code = "request_too_large"


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
    """The disk that the server keeps adapters on takes no more of them."""

    code = "cache_full"


class NotReady(CapacityError):
    """The server, or something before it, does not serve yet."""

    code = "not_ready"


class ServerError(AdexError):
    """Nothing the caller did."""


class WorkerLost(ServerError):
    """The worker that held this sequence went away."""

    code = "worker_lost"


class StepFailed(ServerError):
    """The step that computed this sequence failed for it."""

    code = "generation"


class ProtocolViolation(ServerError):
    """The server's two sides disagree about state: a bug on its side."""

    code = "protocol"


class TransportError(AdexError):
    """No whole answer arrived."""


class ServerUnreachable(TransportError):
    """Nobody listens at the address, or the way there is closed."""

    code = "unreachable"


class RequestTimeout(TransportError):
    """No byte came within the client's timeout."""

    code = "timeout"


class StreamBroken(TransportError):
    """The answer ended before its end; what came before it is good."""

    code = "stream_broken"


class ReplyMalformed(TransportError):
    """The answer is not of this protocol: perhaps another kind of server."""

    code = "reply_malformed"


def _leaves(kind: type[AdexError]) -> list[type[AdexError]]:
    children = kind.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [kind]


ERRORS_BY_CODE: dict[str, type[AdexError]] = {leaf.code: leaf for leaf in _leaves(AdexError)}

# What a status alone can say, for answers that did not come from the server itself.
_ERRORS_BY_STATUS: dict[int, type[AdexError]] = {
    400: ValidationError,
    401: Unauthorized,
    403: Unauthorized,
    404: RouteNotFound,
    405: RouteNotFound,
    413: RequestTooLarge,
    422: ValidationError,
    429: Overloaded,
    503: NotReady,
    504: RequestTimeout,
}


def error_kind(codes: tuple[str, ...], status: int | None) -> type[AdexError]:
    """The class of an answer: by the first code the tree knows, then by status, then by hundred."""
    for code in codes:
        if code in ERRORS_BY_CODE:
            return ERRORS_BY_CODE[code]
    if status in _ERRORS_BY_STATUS:
        return _ERRORS_BY_STATUS[status]
    if status is not None and 400 <= status < 500:
        return CallerError
    return ServerError
