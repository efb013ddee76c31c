"""JSON of the server to the types of `adex.types`; pure.

A field that is missing or of another kind makes the reply malformed and the message names it;
fields this version does not know are skipped, so that a newer server may say more.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

from adex.errors import ReplyMalformed
from adex.types import (
    AdapterCard,
    AdapterProgress,
    AdapterState,
    AlternativeToken,
    BestOfSequence,
    ChatChoice,
    ChatChoiceDelta,
    ChatCompletion,
    ChatCompletionChunk,
    ChatMessage,
    Details,
    ModelInfo,
    PromptToken,
    Response,
    StreamResponse,
    Token,
    ToolCall,
    ToolCallDelta,
    Usage,
)


class Fields:
    """One JSON object, read field by field with the kind each must have."""

    __slots__ = ("_values", "_where")

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise _malformed(where, "an object", value)
        self._values = cast("dict[str, Any]", value)
        self._where = where

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._values.get(name) is not None

    def text(self, name: str, default: str | None = None) -> str:
        """A string; `default` stands for a missing or null one."""
        value = self._values.get(name, default)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise _malformed(f"{self._where}.{name}", "a string", value)
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number; `default` stands for a missing or null one."""
        value = self._values.get(name, default)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            raise _malformed(f"{self._where}.{name}", "a whole number", value)
        return value

    def boolean(self, name: str, default: bool) -> bool:
        """True or false; `default` stands for a missing or null one."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise _malformed(f"{self._where}.{name}", "true or false", value)
        return value

    def number_or_none(self, name: str) -> float | None:
        """A number, or None where it is missing or null."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _malformed(f"{self._where}.{name}", "a number", value)
        return float(value)

    def text_or_none(self, name: str) -> str | None:
        """A string, or None where it is missing or null."""
        return self.text(name) if self.has(name) else None

    def integer_or_none(self, name: str) -> int | None:
        """A whole number, or None where it is missing or null."""
        return self.integer(name) if self.has(name) else None

    def object(self, name: str) -> "Fields":
        """The object under a name."""
        return Fields(self._values.get(name), f"{self._where}.{name}")

    def objects(self, name: str) -> list["Fields"]:
        """The objects listed under a name; none when it is missing or null."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise _malformed(f"{self._where}.{name}", "a list", value)
        items = cast("list[object]", value)
        return [Fields(item, f"{self._where}.{name}[{i}]") for i, item in enumerate(items)]

    def mapping_or_none(self, name: str) -> Mapping[str, Any] | None:
        """The object under a name as it is, or None where it is missing or null."""
        return self.object(name)._values if self.has(name) else None

    def others(self, *known: str) -> dict[str, Any]:
        """Every field but the known ones."""
        return {name: value for name, value in self._values.items() if name not in known}


def _malformed(where: str, wanted: str, value: object) -> ReplyMalformed:
    given = "nothing" if value is None else f"{value!r:.60}"
    return ReplyMalformed(
        f"the reply's `{where}` must be {wanted}, got {given}",
        field=where,
        remedy="Check that an adex server of this version answers at this address",
    )


def read_json(body: bytes | str, where: str) -> object:
    """The value a body holds.

    Raises: ReplyMalformed when it is not JSON.
    """
    try:
        return cast("object", json.loads(body))
    except ValueError as error:
        raise ReplyMalformed(
            f"the {where} is not JSON ({error})",
            remedy="Check that an adex server answers at this address",
        ) from error


def read_response(value: object, request_id: str | None = None) -> Response:
    """The reply of /generate; the one-element list that TGI's `/` gives is read as well."""
    if isinstance(value, list):
        items = cast("list[object]", value)
        value = items[0] if len(items) == 1 else items
    reply = Fields(value, "reply")
    details = _details(reply.object("details")) if reply.has("details") else None
    return Response(reply.text("generated_text"), details, request_id)


def read_stream_response(value: object, index: int) -> StreamResponse:
    """One event of /generate_stream; `index` stands for the one LoRAX does not send."""
    event = Fields(value, "event")
    return StreamResponse(
        index=event.integer("index", index),
        token=_token(event.object("token")),
        generated_text=event.text_or_none("generated_text"),
        details=_details(event.object("details")) if event.has("details") else None,
    )


def _token(token: Fields) -> Token:
    return Token(
        id=token.integer("id"),
        text=token.text("text"),
        logprob=token.number_or_none("logprob"),
        special=token.boolean("special", False),
        skipped=token.boolean("skipped", False),
        alternatives=_alternatives(token.objects("alternative_tokens")),
    )


def _alternatives(tokens: list[Fields]) -> tuple[AlternativeToken, ...]:
    return tuple(
        AlternativeToken(token.integer("id"), token.text("text"), token.number_or_none("logprob"))
        for token in tokens
    )


def _details(details: Fields) -> Details:
    # TGI calls the prompt's length `input_length`, LoRAX `prompt_tokens`.
    prompt_tokens = details.integer("prompt_tokens", details.integer("input_length", 0))
    return Details(
        finish_reason=details.text("finish_reason"),
        prompt_tokens=prompt_tokens,
        generated_tokens=details.integer("generated_tokens"),
        seed=details.integer_or_none("seed"),
        tokens=tuple(_token(token) for token in details.objects("tokens")),
        prefill=tuple(
            PromptToken(token.integer("id"), token.text("text"), token.number_or_none("logprob"))
            for token in details.objects("prefill")
        ),
        best_of_sequences=tuple(
            BestOfSequence(
                generated_text=other.text("generated_text"),
                finish_reason=other.text("finish_reason"),
                generated_tokens=other.integer("generated_tokens"),
                seed=other.integer_or_none("seed"),
                tokens=tuple(_token(token) for token in other.objects("tokens")),
            )
            for other in details.objects("best_of_sequences")
        ),
    )


def read_chat_completion(value: object, request_id: str | None = None) -> ChatCompletion:
    """The reply of /v1/chat/completions."""
    reply = Fields(value, "reply")
    choices: list[ChatChoice] = []
    for choice in reply.objects("choices"):
        message = choice.object("message")
        choices.append(
            ChatChoice(
                index=choice.integer("index", 0),
                message=ChatMessage(
                    message.text("role", "assistant"),
                    message.text("content", ""),
                    tuple(_tool_call(call) for call in message.objects("tool_calls")),
                ),
                finish_reason=choice.text_or_none("finish_reason"),
                logprobs=choice.mapping_or_none("logprobs"),
            )
        )
    if not choices:
        raise _malformed("reply.choices", "at least one choice", None)
    return ChatCompletion(
        id=reply.text("id", ""),
        created=reply.integer("created", 0),
        model=reply.text("model", ""),
        choices=tuple(choices),
        usage=_usage(reply),
        request_id=request_id,
    )


def read_chat_chunk(value: object) -> ChatCompletionChunk:
    """One event of a streamed /v1/chat/completions."""
    chunk = Fields(value, "event")
    choices: list[ChatChoiceDelta] = []
    for choice in chunk.objects("choices"):
        delta = choice.object("delta")
        choices.append(
            ChatChoiceDelta(
                index=choice.integer("index", 0),
                content=delta.text("content", ""),
                role=delta.text_or_none("role"),
                finish_reason=choice.text_or_none("finish_reason"),
                logprobs=choice.mapping_or_none("logprobs"),
                tool_calls=tuple(_tool_call_delta(call) for call in delta.objects("tool_calls")),
            )
        )
    return ChatCompletionChunk(
        id=chunk.text("id", ""),
        created=chunk.integer("created", 0),
        model=chunk.text("model", ""),
        choices=tuple(choices),
        usage=_usage(chunk),
    )


def _tool_call(call: Fields) -> ToolCall:
    function = call.object("function")
    return ToolCall(call.text("id", ""), function.text("name"), function.text("arguments", ""))


def _tool_call_delta(call: Fields) -> ToolCallDelta:
    function = call.object("function")
    return ToolCallDelta(
        index=call.integer("index", 0),
        id=call.text_or_none("id"),
        name=function.text_or_none("name"),
        arguments=function.text("arguments", ""),
    )


def _usage(reply: Fields) -> Usage | None:
    if not reply.has("usage"):
        return None
    usage = reply.object("usage")
    prompt, completion = usage.integer("prompt_tokens", 0), usage.integer("completion_tokens", 0)
    return Usage(prompt, completion, usage.integer("total_tokens", prompt + completion))


def read_adapter_cards(value: object) -> tuple[AdapterCard, ...]:
    """The adapters among the cards of /v1/models: those that have a parent."""
    return tuple(
        AdapterCard(
            id=card.text("id"),
            root=card.text_or_none("root"),
            parent=card.text("parent"),
            extra=card.others("id", "root", "parent", "object", "created", "owned_by"),
        )
        for card in Fields(value, "reply").objects("data")
        if card.has("parent")
    )


def read_adapter_states(value: object) -> tuple[AdapterState, ...]:
    """The reply of /v1/adapters."""
    return tuple(read_adapter_state(card) for card in Fields(value, "reply").objects("data"))


def read_adapter_state(card: Fields) -> AdapterState:
    """One adapter as /v1/adapters shows it."""
    return AdapterState(
        id=card.text("id"),
        tier=card.text("tier", "absent"),
        source=card.text_or_none("source"),
        root=card.text_or_none("root"),
        parent=card.text_or_none("parent"),
        bytes=card.integer_or_none("bytes"),
        rank=card.integer_or_none("rank"),
        digest=card.text_or_none("digest"),
        moving=card.boolean("moving", False),
        pins=card.integer("pins", 0),
        waiting=card.integer("waiting", 0),
        pinned=card.text_or_none("pinned"),
        pin_error=card.text_or_none("pin_error"),
        last_used_s=card.number_or_none("last_used_s"),
    )


def read_adapter_progress(value: object) -> AdapterProgress:
    """One event of a route under /v1/adapters."""
    event = Fields(value, "event")
    adapter = event.object("adapter") if event.has("adapter") else None
    return AdapterProgress(
        id=event.text("id"),
        tier=event.text("tier"),
        done=event.boolean("done", False),
        digest=event.text_or_none("digest"),
        bytes=event.integer_or_none("bytes"),
        adapter=None if adapter is None else read_adapter_state(adapter),
    )


def read_info(value: object) -> ModelInfo:
    """The reply of /info."""
    info = Fields(value, "reply")
    known = (
        "model_id",
        "model_dtype",
        "model_device_type",
        "max_input_length",
        "max_total_tokens",
        "version",
    )
    return ModelInfo(
        model_id=info.text("model_id"),
        model_dtype=info.text_or_none("model_dtype"),
        model_device_type=info.text_or_none("model_device_type"),
        max_input_length=info.integer_or_none("max_input_length"),
        max_total_tokens=info.integer_or_none("max_total_tokens"),
        version=info.text_or_none("version"),
        extra=info.others(*known),
    )
