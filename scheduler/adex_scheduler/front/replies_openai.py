"""Replies of the OpenAI routes as JSON values; pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

from adex_proto.outcome import TokenScore
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


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Json:
    """Tokens read and written; of those read, `cached_tokens` were known from before."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that its text begins with; `alone`: with nothing after it."""

    text: str
    token_ids: tuple[int, ...]
    alone: bool


def text_choice(
    tokenizer: Tokenizer,
    index: int,
    pieces: Sequence[Piece],
    text: str,
    logprobs: int | None,
    *,
    offset: int = 0,
    echo: Echo | None = None,
) -> Json:
    """One choice, or one chunk of it: `text` and the pieces it came with, after its echo."""
    finish = pieces[-1].finish if pieces else None
    told = Logprobs(tokenizer, logprobs or 0, offset)
    if echo is not None:
        told.add_prompt(echo.token_ids, pieces[0].prompt_scores)
        text = echo.text if echo.alone else echo.text + text
    if echo is None or not echo.alone:
        told.add_pieces(pieces)
    return {
        "index": index,
        "text": text,
        "logprobs": None if logprobs is None else told.value(),
        "finish_reason": None if finish is None else FINISH_NAMES[finish],
    }


class Logprobs:
    """The log probabilities of /v1/completions, token by token from `offset` of the text on."""

    def __init__(self, tokenizer: Tokenizer, alternatives: int, offset: int) -> None:
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._offset = offset
        self._tokens: list[str] = []
        self._logprobs: list[float | None] = []
        self._top: list[Json | None] = []
        self._offsets: list[int] = []

    def add_prompt(self, token_ids: Sequence[int], scores: Sequence[TokenScore]) -> None:
        """A prompt's tokens, of which the first follows nothing."""
        for token_id, score in zip(token_ids, (None, *scores), strict=False):
            logprob = None if score is None else finite_logprob(score.logprob)
            top = None if score is None else self._named(score.alternatives)
            text = self._tokenizer.token_text(token_id)
            self._add(text, logprob, top, 0 if self._tokenizer.is_special(token_id) else len(text))

    def add_pieces(self, pieces: Sequence[Piece]) -> None:
        """Generated tokens."""
        for piece in pieces:
            token = piece.token
            top = self._named(token.alternatives)
            text = self._tokenizer.token_text(token.token_id)
            self._add(text, finite_logprob(token.logprob), top, len(piece.text))

    def value(self) -> Json:
        """All of it, in OpenAI's four lists."""
        return {
            "tokens": self._tokens,
            "token_logprobs": self._logprobs,
            "top_logprobs": self._top if self._alternatives else None,
            "text_offset": self._offsets,
        }

    def _named(self, alternatives: Sequence[tuple[int, float]]) -> Json:
        return {
            self._tokenizer.token_text(token_id): finite_logprob(logprob)
            for token_id, logprob in alternatives[: self._alternatives]
        }

    def _add(self, text: str, logprob: float | None, top: Json | None, length: int) -> None:
        self._tokens.append(text)
        self._logprobs.append(logprob)
        self._top.append(top)
        self._offsets.append(self._offset)
        self._offset += length


def prompt_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], scores: Sequence[TokenScore], alternatives: int
) -> list[Json | None]:
    """vLLM's list: for each prompt token its own log probability and the most probable ones'."""
    told: list[Json | None] = [None]
    for token_id, score in zip(token_ids[1:], scores, strict=True):
        ranked = {
            other: (logprob, rank)
            for rank, (other, logprob) in enumerate(score.alternatives[:alternatives], 1)
        }
        own = {token_id: ranked.get(token_id, (score.logprob, None))}
        told.append(
            {
                str(one): {
                    "logprob": finite_logprob(logprob),
                    "rank": rank,
                    "decoded_token": tokenizer.token_text(one),
                }
                for one, (logprob, rank) in {**own, **ranked}.items()
            }
        )
    return told


def chat_choices(
    tokenizer: Tokenizer,
    reply_id: str,
    texts: Sequence[Gathered],
    readers: Sequence[ToolCallReader | None],
    *,
    logprobs: int | None,
) -> list[Json]:
    """The choices of /v1/chat/completions; each text is read for tool calls by its reader."""
    choices: list[Json] = []
    for index, (text, reader) in enumerate(zip(texts, readers, strict=True)):
        message = spoken(text) if reader is None else called(text, reader, reply_id, index)
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": None if logprobs is None else chat_logprobs(tokenizer, text.pieces),
                "finish_reason": finish_name(text.finish, reader),
            }
        )
    return choices


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
