"""One choice of an OpenAI stream: from its pieces to what its chunks carry; pure."""

from typing import Protocol

from adex_scheduler.engine import Piece
from adex_scheduler.front.replies_openai import (
    Echo,
    Json,
    call_of,
    chat_delta,
    chat_logprobs,
    finish_name,
    text_choice,
    text_with_marks,
)
from adex_scheduler.text.tokenizer import Tokenizer
from adex_scheduler.text.tool_calls import (
    CallArguments,
    CallBegun,
    CallEvent,
    Said,
    ToolCallReader,
)


class Choice(Protocol):
    """What a stream asks of each of its choices."""

    def push(self, piece: Piece) -> list[Json]:
        """The choices of the chunks this piece makes; none while its text is held back."""
        ...


class CompletionChoice:
    """A choice of /v1/completions."""

    def __init__(
        self, tokenizer: Tokenizer, index: int, logprobs: int | None, echo: Echo | None
    ) -> None:
        self._tokenizer = tokenizer
        self._index = index
        self._logprobs = logprobs
        self._echo = echo
        self._offset = 0

    def push(self, piece: Piece) -> list[Json]:
        """At most one chunk for each piece."""
        echo, self._echo = self._echo, None
        silent = not piece.text and echo is None
        if silent and piece.finish is None and self._logprobs is None:
            return []
        choice = text_choice(
            self._tokenizer,
            self._index,
            [piece],
            piece.text,
            self._logprobs,
            offset=self._offset,
            echo=echo,
        )
        self._offset += len(str(choice["text"]))
        return [choice]


class ChatChoice:
    """A choice of /v1/chat/completions: the role once, then texts and calls, then the end."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        index: int,
        reply_id: str,
        *,
        logprobs: bool,
        reader: ToolCallReader | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._index = index
        self._reply_id = reply_id
        self._logprobs = logprobs
        self._reader = reader
        self._begun = False

    def push(self, piece: Piece) -> list[Json]:
        """The deltas of this piece; its log probabilities stand on the first of them."""
        deltas: list[Json] = [] if self._reader is None else self._read(self._reader, piece)
        if self._reader is None and piece.text:
            deltas = [{"content": piece.text}]
        logprobs: Json | None = None
        if self._logprobs:
            logprobs = chat_logprobs(self._tokenizer, [piece])
            deltas = deltas or [{"content": ""}]
        choices: list[Json] = []
        if not self._begun:
            self._begun = True
            opening: Json = {"role": "assistant", "content": ""}
            choices.append(chat_delta(self._index, opening, None, None))
        for delta in deltas:
            choices.append(chat_delta(self._index, delta, logprobs, None))
            logprobs = None
        if piece.finish is not None:
            finish = finish_name(piece.finish, self._reader)
            choices.append(chat_delta(self._index, {}, None, finish))
        return choices

    def _read(self, reader: ToolCallReader, piece: Piece) -> list[Json]:
        events = reader.push(text_with_marks(piece))
        if piece.finish is not None:
            events += reader.flush()
        return [self._delta(event) for event in events]

    def _delta(self, event: CallEvent) -> Json:
        match event:
            case Said():
                return {"content": event.text}
            case CallBegun():
                call = call_of(event, self._reply_id, self._index)
                return {"tool_calls": [{"index": event.index, **call}]}
            case CallArguments():
                part: Json = {"index": event.index, "function": {"arguments": event.text}}
                return {"tool_calls": [part]}
