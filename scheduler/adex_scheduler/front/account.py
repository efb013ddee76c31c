"""What a door does when a request is over: measure it, trace it, and write its one line of log."""

import logging
import re
import uuid
from collections.abc import Mapping

from adex_scheduler.front.ports import Ended, Serving

ACCESS = logging.getLogger("adex.access")

# The kinds of generation as OpenTelemetry's conventions for generative models name them.
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/generate": "text_completion",
    "/generate_stream": "text_completion",
    "/": "text_completion",
    "/invocations": "text_completion",
    "/v1": "text_completion",
    "grpc:Generate": "text_completion",
    "grpc:GenerateStream": "text_completion",
    "grpc:Chat": "chat",
}
# W3C Trace Context.
CONTEXT_HEADERS = ("traceparent", "tracestate")
_CONTEXT_CHARACTERS_MAX = 1024
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def request_id_of(headers: Mapping[str, str]) -> str:
    """The caller's own name for the request where it is a sane one, or a new one."""
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def operation_of(method: str, endpoint: str) -> str:
    """What kind of generation the route is, "" for none."""
    return "" if method == "GET" else OPERATIONS.get(endpoint, "")


def context_of(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a trace that the caller has begun."""
    given = {name: headers.get(name, "") for name in CONTEXT_HEADERS}
    return {name: text for name, text in given.items() if 0 < len(text) <= _CONTEXT_CHARACTERS_MAX}


def close_account(serving: Serving, ended: Ended, *, level: int = logging.INFO) -> None:
    """Tell of one request everything that is told; never a prompt, a token or a credential."""
    seconds = ended.ended_s - ended.began_s
    serving.meters.request_answered(ended.endpoint, ended.code, seconds)
    trace_id = "" if serving.traces is None else serving.traces.request_ended(ended)
    if not ACCESS.isEnabledFor(level):
        return
    headline = f"{ended.method} {ended.endpoint} {ended.status} {ended.code}"
    fields: dict[str, object] = {}
    if ended.operation:
        first_s = ended.first_token_s
        fields |= {
            "adapter": ended.shown_adapter,
            "start": ended.runs[0].journey.start.value if ended.runs else "-",
            "prompt_tokens": ended.prompt_tokens,
            "new_tokens": ended.new_tokens,
            "queue_ms": round(ended.queue_s * 1000, 1),
            "first_token_ms": round((first_s - ended.began_s) * 1000, 1) if first_s else None,
        }
    fields |= {"total_ms": round(seconds * 1000, 1), "request": ended.request_id}
    if trace_id:
        fields["trace"] = trace_id
    told = " ".join(f"{name}={'-' if v is None else v}" for name, v in fields.items())
    ACCESS.log(level, "%s %s", headline, told, extra={"fields": {"message": headline, **fields}})
