"""Replies of the OpenAI routes as JSON values; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from adex_proto.sampling import FinishReason
from adex_scheduler.engine import Piece
from adex_scheduler.front.generation import Gathered
from adex_scheduler.front.sse import finite_logprob
from adex_scheduler.text.tokenizer import Tokenizer
from adex_scheduler.text.tool_calls import (
    SPECIAL_MARKS,
    CallArguments,
    CallBegun,
    Said,
    ToolCallReader,
)

Json = dict[str, object]
FINISH_NAMES = {
    FinishReason.LENGTH: "length",
    FinishReason.EOS: "stop",
    FinishReason.STOP: "stop",
}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What stands on every reply and chunk of one request."""

    id: str
    created: int
    model: str
    fingerprint: str

    def fields(self, kind: str) -> Json:
        """The envelope's fields for an object of `kind`."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


def usage(prompt_tokens: int, completion_tokens: int) -> Json:
    """Tokens read and written."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def completion(
    tokenizer: Tokenizer,
    envelope: Envelope,
    texts: Sequence[Gathered],
    *,
    prompt_tokens: int,
    generated: int,
    logprobs: int | None,
) -> Json:
    """The reply of /v1/completions; more may have been generated than is answered."""
    choices = [
        text_choice(tokenizer, index, text.pieces, text.text, logprobs, offset=0)
        for index, text in enumerate(texts)
    ]
    return {
        **envelope.fields("text_completion"),
        "choices": choices,
        "usage": usage(prompt_tokens, generated),
    }


def text_choice(
    tokenizer: Tokenizer,
    index: int,
    pieces: Sequence[Piece],
    text: str,
    logprobs: int | None,
    *,
    offset: int,
) -> Json:
    """One choice, or one chunk of it: `text` and the pieces it came with."""
    finish = pieces[-1].finish if pieces else None
    return {
        "index": index,
        "text": text,
        "logprobs": None
        if logprobs is None
        else _text_logprobs(tokenizer, pieces, logprobs, offset),
        "finish_reason": None if finish is None else FINISH_NAMES[finish],
    }


def _text_logprobs(
    tokenizer: Tokenizer, pieces: Sequence[Piece], logprobs: int, offset: int
) -> Json:
    offsets: list[int] = []
    for piece in pieces:
        offsets.append(offset)
        offset += len(piece.text)
    return {
        "tokens": [tokenizer.token_text(piece.token.token_id) for piece in pieces],
        "token_logprobs": [finite_logprob(piece.token.logprob) for piece in pieces],
        "top_logprobs": [
            {
                tokenizer.token_text(token_id): finite_logprob(logprob)
                for token_id, logprob in piece.token.alternatives
            }
            for piece in pieces
        ]
        if logprobs
        else None,
        "text_offset": offsets,
    }


def chat(
    tokenizer: Tokenizer,
    envelope: Envelope,
    texts: Sequence[Gathered],
    readers: Sequence[ToolCallReader | None],
    *,
    prompt_tokens: int,
    logprobs: int | None,
) -> Json:
    """The reply of /v1/chat/completions; each text is read for tool calls by its reader."""
    choices: list[Json] = []
    for index, (text, reader) in enumerate(zip(texts, readers, strict=True)):
        message = spoken(text) if reader is None else called(text, reader, envelope.id, index)
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": None if logprobs is None else chat_logprobs(tokenizer, text.pieces),
                "finish_reason": finish_name(text.finish, reader),
            }
        )
    generated = sum(len(text.pieces) for text in texts)
    return {
        **envelope.fields("chat.completion"),
        "choices": choices,
        "usage": usage(prompt_tokens, generated),
    }


def spoken(text: Gathered) -> Json:
    """The message of a text in which no calls are looked for."""
    return {"role": "assistant", "content": text.text}


def called(text: Gathered, reader: ToolCallReader, reply_id: str, choice: int) -> Json:
    """The message of a text that may hold tool calls; content is null where it is calls alone."""
    events = [event for piece in text.pieces for event in reader.push(text_with_marks(piece))]
    content = ""
    calls: list[Json] = []
    for event in (*events, *reader.flush()):
        match event:
            case Said():
                content += event.text
            case CallBegun():
                calls.append(call_of(event, reply_id, choice))
            case CallArguments():
                function = cast("dict[str, str]", calls[event.index]["function"])
                function["arguments"] += event.text
    message: Json = {"role": "assistant", "content": content}
    if calls:
        message["content"] = content if content.strip() else None
        message["tool_calls"] = calls
    return message


def call_of(call: CallBegun, reply_id: str, choice: int) -> Json:
    """A tool call that has begun: its arguments are still empty."""
    name = f"{reply_id}/{choice}/{call.index}"
    # Nine letters and digits: some models' templates take no other form back.
    identity = sha256(name.encode()).hexdigest()[:9]
    return {
        "id": identity,
        "type": "function",
        "function": {"name": call.name, "arguments": ""},
    }


def text_with_marks(piece: Piece) -> str:
    """The piece's text, or its token's own where that is special and marks a call."""
    mark = piece.token_text.strip()
    return mark if piece.special and mark in SPECIAL_MARKS else piece.text


def finish_name(finish: FinishReason, reader: ToolCallReader | None = None) -> str:
    """OpenAI's word for the reason of an end."""
    if reader is not None and reader.calls and finish is not FinishReason.LENGTH:
        return "tool_calls"
    return FINISH_NAMES[finish]


def chat_delta(index: int, delta: Json, logprobs: Json | None, finish: str | None) -> Json:
    """One choice of one chunk."""
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def chat_logprobs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Json:
    """The log probabilities of these tokens and of the most probable ones beside them."""
    content: list[Json] = []
    for piece in pieces:
        top = [
            _chat_logprob(tokenizer, token_id, logprob)
            for token_id, logprob in piece.token.alternatives
        ]
        entry = _chat_logprob(tokenizer, piece.token.token_id, piece.token.logprob)
        content.append({**entry, "top_logprobs": top})
    return {"content": content, "refusal": None}


def _chat_logprob(tokenizer: Tokenizer, token_id: int, logprob: float | None) -> Json:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": finite_logprob(logprob),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
