"""Build a request, read its answer, tell whether to ask again: no sockets, no clock, no chance."""

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

from adex.errors import (
    AdexError,
    ServerUnreachable,
    StreamBroken,
    ValidationError,
    error_kind,
)
from adex.reply import (
    Fields,
    read_adapter_progress,
    read_chat_chunk,
    read_json,
    read_stream_response,
)
from adex.sse import SseParser
from adex.types import (
    AdapterAction,
    AdapterProgress,
    ChatCompletionChunk,
    ChatSampling,
    Message,
    Sampling,
    StreamResponse,
)

# A server that asks for more patience than this is told to the caller instead of waited for.
RETRY_AFTER_S_MAX = 60.0
_RETRY_FIRST_S = 0.5
_RETRY_S_MAX = 8.0
_ERROR_TEXT_CHARACTERS_MAX = 300

Event = TypeVar("Event")


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request; `path` follows the client's base address.

    The body may hold an adapter's credential, so neither is shown when the request is printed.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    body: bytes | None = field(default=None, repr=False)


_ASK_JSON = {"accept": "application/json"}

MODELS = Request("GET", "/v1/models", _ASK_JSON)
INFO = Request("GET", "/info", _ASK_JSON)
HEALTH = Request("GET", "/health")

# The names of `Sampling` that the routes of TGI and LoRAX spell differently.
_GENERATE_NAMES = {"stop_sequences": "stop"}
# The names of `ChatSampling` that the OpenAI route spells differently.
_CHAT_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_sequences": "stop",
    "ignore_eos_token": "ignore_eos",
    "top_n_tokens": "top_logprobs",
}
# The parameters that take a pydantic model besides.
_FORMATS = ("response_format", "grammar")
# What people write who come from another client.
_OTHER_NAMES = {
    "max_tokens": "max_new_tokens",
    "max_completion_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "stop": "stop_sequences",
    "ignore_eos": "ignore_eos_token",
    "top_logprobs": "top_n_tokens",
    "return_k_alternatives": "top_n_tokens",
    "model": "adapter_id",
}


def generate_request(
    prompt: str,
    *,
    stream: bool,
    adapter_id: str | None,
    adapter_source: str | None,
    api_token: str | None,
    details: bool,
    sampling: Sampling,
) -> Request:
    """POST /generate or /generate_stream.

    Raises: ValidationError for a value JSON cannot carry, TypeError for an unknown parameter.
    """
    parameters = _named(cast("Mapping[str, object]", sampling), Sampling, _GENERATE_NAMES)
    parameters |= _given(adapter_id=adapter_id, adapter_source=adapter_source, api_token=api_token)
    parameters["details"] = details
    path = "/generate_stream" if stream else "/generate"
    return _post(path, {"inputs": prompt, "parameters": parameters}, stream)


def chat_request(
    messages: Sequence[Message],
    *,
    stream: bool,
    adapter_id: str | None,
    adapter_source: str | None,
    api_token: str | None,
    sampling: ChatSampling,
) -> Request:
    """POST /v1/chat/completions; without an adapter the model field is left to the server.

    Raises: ValidationError for a value JSON cannot carry, TypeError for an unknown parameter.
    """
    body: dict[str, object] = {"messages": list(messages), "stream": stream}
    body |= _given(model=adapter_id, adapter_source=adapter_source, api_token=api_token)
    body |= _named(cast("Mapping[str, object]", sampling), ChatSampling, _CHAT_NAMES)
    if "top_logprobs" in body:
        body["logprobs"] = True
    if stream:
        body["stream_options"] = {"include_usage": True}
    return _post("/v1/chat/completions", body, stream)


def adapters_request(api_token: str | None) -> Request:
    """GET /v1/adapters; `api_token` shows the adapters that are its own."""
    shown = {"x-api-token": api_token} if api_token else {}
    return Request("GET", "/v1/adapters", {**_ASK_JSON, **shown})


def control_request(
    action: AdapterAction,
    adapter_id: str,
    *,
    adapter_source: str | None,
    api_token: str | None,
    tier: str | None = None,
    disk: bool | None = None,
) -> Request:
    """POST of an action under /v1/adapters, told as it goes."""
    body: dict[str, object] = {"adapter_id": adapter_id, "stream": True}
    body |= _given(adapter_source=adapter_source, api_token=api_token, tier=tier, disk=disk)
    return _post(f"/v1/adapters/{action}", body, True)


def _given(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _named(given: Mapping[str, object], kind: type, names: Mapping[str, str]) -> dict[str, object]:
    """The given parameters under the names of a route, without those that are None."""
    known = kind.__annotations__
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            other = _OTHER_NAMES.get(name) or (near[0] if near else None)
            hint = f"; did you mean {other!r}?" if other else ""
            raise TypeError(f"no sampling parameter is named {name!r}{hint}")
    return {
        names.get(name, name): _format(value) if name in _FORMATS else value
        for name, value in given.items()
        if value is not None
    }


def _format(value: object) -> object:
    """What a text must belong to, as the routes read it."""
    schema_of = getattr(value, "model_json_schema", None)
    if schema_of is None:
        return value
    named = {"name": str(getattr(value, "__name__", "text")), "schema": schema_of()}
    return {"type": "json_schema", "json_schema": named}


def _post(path: str, body: Mapping[str, object], stream: bool) -> Request:
    try:
        encoded = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise ValidationError(
            f"the request cannot be written as JSON ({error})",
            remedy="Send finite numbers, valid text, lists and mappings",
        ) from error
    accept = "text/event-stream" if stream else "application/json"
    return Request("POST", path, {"content-type": "application/json", "accept": accept}, encoded)


def error_of_reply(status: int, headers: Mapping[str, str], body: bytes) -> AdexError:
    """The error that an answer outside 200 stands for; header names are lower case."""
    retry_after_s = _retry_after_s(headers)
    request_id = headers.get("x-request-id")
    try:
        value = read_json(body, "error")
        error = error_of_value(value, status, retry_after_s, request_id)
    except AdexError:
        # Not the server's own words: a proxy's page, or a framework's plain text.
        error = None
    if error is not None:
        return error
    text = " ".join(body.decode("utf-8", errors="replace").split())[:_ERROR_TEXT_CHARACTERS_MAX]
    kind = error_kind((), status)
    message = f"the server answered {status}" + (f": {text}" if text else "")
    return kind(message, retry_after_s=retry_after_s, status=status, request_id=request_id)


def error_of_value(
    value: object,
    status: int | None = None,
    retry_after_s: float | None = None,
    request_id: str | None = None,
) -> AdexError | None:
    """The error a JSON value stands for, None when it is not one.

    Reads `{"error": text, "error_type": code}` of TGI and LoRAX, and OpenAI's
    `{"error": {"message", "type", "code", "param"}}`.
    """
    if not isinstance(value, dict) or not cast("dict[str, object]", value).get("error"):
        return None
    reply = Fields(cast("object", value), "error")
    inner = cast("dict[str, Any]", value)["error"]
    outer: dict[str, Any] = reply.others("error")
    told: dict[str, Any] = outer | (
        cast("dict[str, Any]", inner) if isinstance(inner, dict) else {"message": str(inner)}
    )
    codes = tuple(str(told[name]) for name in ("error_type", "code", "type") if told.get(name))
    if retry_after_s is None and isinstance(told.get("retry_after_s"), int | float):
        retry_after_s = float(told["retry_after_s"])
    if status is None and isinstance(told.get("http_status_code"), int):
        status = int(told["http_status_code"])
    field_name = told.get("field") or told.get("param")
    return error_kind(codes, status)(
        str(told.get("message") or "the server gave no reason"),
        field=str(field_name) if field_name else None,
        remedy=str(told["remedy"]) if told.get("remedy") else None,
        retry_after_s=retry_after_s,
        status=status,
        request_id=request_id,
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, as the headers say; a date is not understood, for lack of a clock."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            wait_s = float(headers[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if math.isfinite(wait_s) and wait_s >= 0:
            return wait_s
    return None


def retry_wait_s(
    error: AdexError, *, attempt: int, retries_max: int, chance: float
) -> float | None:
    """Seconds to wait before asking again, None to give the error to the caller.

    Asked only before the first byte of an answer. What the server asks for is honoured up to
    RETRY_AFTER_S_MAX; otherwise the wait doubles, and `chance` in [0, 1) takes up to a quarter
    off it, so that callers refused together do not come back together.

    Args:
        attempt: how many times it was asked already, from 1.
    """
    refused = error.status in (429, 503)
    if attempt > retries_max or not (refused or isinstance(error, ServerUnreachable)):
        return None
    if error.retry_after_s is None:
        return min(_RETRY_S_MAX, _RETRY_FIRST_S * 2.0 ** (attempt - 1)) * (1 - chance / 4)
    return error.retry_after_s if error.retry_after_s <= RETRY_AFTER_S_MAX else None


@dataclass(slots=True)
class EventStream(Generic[Event]):
    """The body of a streamed answer, in whatever chunks it comes.

    `read` makes an event of its JSON and its number from 1; `ends` tells whether one is the last.
    """

    read: Callable[[object, int], Event]
    ends: Callable[[Event], bool]
    _sse: SseParser = field(default_factory=SseParser)
    _events: int = 0
    _finished: bool = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """The events that `chunk` completes, in order.

        Raises: the error the server put into the stream, after the events before it;
            ReplyMalformed.
        """
        for event in self._sse.feed(chunk):
            if event.data == "[DONE]":
                self._finished = True
                continue
            value = read_json(event.data, "event")
            error = error_of_value(value)
            if error is not None:
                raise error
            self._events += 1
            piece = self.read(value, self._events)
            self._finished = self._finished or self.ends(piece)
            yield piece

    def close(self) -> None:
        """The body has ended.

        Raises: StreamBroken when it did before its last event.
        """
        if not self._finished:
            raise StreamBroken(
                f"the answer broke off after {self._events} events",
                remedy="Send the request again; the server's log says why it stopped",
            )


def generate_stream() -> EventStream[StreamResponse]:
    """Reads the body of /generate_stream: the event with the whole text is the last."""
    return EventStream(read_stream_response, lambda event: event.generated_text is not None)


def control_stream() -> EventStream[AdapterProgress]:
    """Reads the body of an action under /v1/adapters: the event that is `done` is the last."""
    return EventStream(lambda value, _: read_adapter_progress(value), lambda event: event.done)


def chat_stream() -> EventStream[ChatCompletionChunk]:
    """Reads the body of a streamed /v1/chat/completions: `[DONE]` is the end."""
    return EventStream(lambda value, _: read_chat_chunk(value), lambda _: False)
