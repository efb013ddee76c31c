"""Every error's place in HTTP: status, headers and the two shapes of body.

    error                       TGI routes    /v1 routes    Retry-After
    body is not JSON            400           400
    validation, template_error  422           400
    adapter_not_found           404           404
    adapter_forbidden           403           403
    unauthorized                401           401
    pin_refused                 409           409
    other adapter_*, rank_too_large  422      400
    overloaded                  429           429           yes
    deadline_unmeetable         503           503           yes
    shutting_down               503           503           yes
    source_unavailable          503           503           yes
    cache_full                  503           503           yes
    worker_lost                 503           503           yes
    generation                  424           500
    protocol, anything else     500           500

TGI routes answer {"error": text, "error_type": code}, /v1 routes {"error": {"message", "type",
"param", "code"}}; `code` is the error's own stable code in both, but the status on vLLM's runtime
routes. Where the failing field is known,
TGI bodies carry it as "field".
"""

import math
from collections.abc import Mapping
from enum import Enum

from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    AdexError,
    CallerError,
    CapacityError,
    Overloaded,
    PinRefused,
    StepFailed,
    Unauthorized,
    ValidationError,
    WorkerLost,
)
from adex_scheduler.front.body import MalformedBodyError

RETRY_AFTER_DEFAULT_S = 1.0
# The routes by which adapters are named while the server runs.
RUNTIME_PATHS = (
    "/adapters",
    "/v1/load_lora_adapter",
    "/v1/lora_adapter/",
    "/v1/unload_lora_adapter",
)


class Family(Enum):
    """Whose shapes a route answers in."""

    TGI = "tgi"
    OPENAI = "openai"
    VLLM = "vllm"
    """Those of vLLM's runtime routes, where an error's `code` is the status."""


def family_of(path: str) -> Family | None:
    """Whose shapes the route at `path` answers in; None where the body decides."""
    if path == "/invocations":
        return None
    if path.startswith(RUNTIME_PATHS):
        return Family.VLLM
    return Family.OPENAI if path.startswith(("/v1/", "/detokenize")) else Family.TGI


def status_of(error: AdexError, family: Family) -> int:
    """The HTTP status of an error; see the table above."""
    openai = family is not Family.TGI
    match error:
        case MalformedBodyError():
            return 400
        case AdapterNotFound():
            return 404
        case AdapterForbidden():
            return 403
        case Unauthorized():
            return 401
        case PinRefused():
            return 409
        case CallerError():
            return 400 if openai else 422
        case Overloaded():
            return 429
        case CapacityError() | WorkerLost():
            return 503
        case StepFailed():
            return 500 if openai else 424
        case _:
            return 500


def body_of(error: AdexError, family: Family) -> dict[str, object]:
    """The JSON body of an error, which is also its event in a stream."""
    if family is Family.OPENAI:
        return {
            "error": {
                "message": str(error),
                "type": _openai_type(status_of(error, family)),
                "param": error.field,
                "code": error.code,
            }
        }
    if family is Family.VLLM:
        return _vllm_body(str(error), _vllm_type(error), status_of(error, family))
    text = str(error)
    if isinstance(error, ValidationError) and not isinstance(error, MalformedBodyError):
        text = f"Input validation error: {text}"
    elif isinstance(error, StepFailed):
        text = f"Request failed during generation: {text}"
    body: dict[str, object] = {"error": text, "error_type": error.code}
    if error.field is not None:
        body["field"] = error.field
    return body


def headers_of(error: AdexError, family: Family) -> Mapping[str, str]:
    """`Retry-After` in whole seconds where the same request may succeed later."""
    if status_of(error, family) not in (429, 503):
        return {}
    seconds = RETRY_AFTER_DEFAULT_S if error.retry_after_s is None else error.retry_after_s
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def plain_body(message: str, code: str, status: int, family: Family) -> dict[str, object]:
    """The body for what is no AdexError: an unknown route, a method, a size."""
    if family is Family.OPENAI:
        kind = _openai_type(status)
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}
    if family is Family.VLLM:
        return _vllm_body(message, "BadRequestError", status)
    return {"error": message, "error_type": code}


def _vllm_body(message: str, kind: str, status: int) -> dict[str, object]:
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _vllm_type(error: AdexError) -> str:
    match error:
        case AdapterNotFound():
            return "NotFoundError"
        case Unauthorized():
            return "Unauthorized"
        case ValidationError():
            return "InvalidUserInput"
        case CallerError():
            return "BadRequestError"
        case CapacityError():
            return "ServiceUnavailableError"
        case _:
            return "InternalServerError"


def _openai_type(status: int) -> str:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case 503:
            return "service_unavailable_error"
        case _:
            return "invalid_request_error" if status < 500 else "server_error"
