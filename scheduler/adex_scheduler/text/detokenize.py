"""Incremental detokenisation: emit only whole characters, hold the rest.

A decoder treats the first token of a text specially (it drops the space that Llama's pieces begin
with) and may need several tokens for one character. So each token is decoded behind an anchor, a
token known to be ordinary text, whose own text is then cut off; tokens wait together while their
text ends inside a character. Decoding a token therefore never costs more than the few that wait.

The pieces joined equal the tokenizer's own decoding of all tokens, with one stated exception: a
byte-fallback run (`<0xE4>`, `<0xBD>`, ...) that turns out not to be UTF-8 after whole characters of
it were shown. The library then replaces the run from its beginning; here the shown characters stay
and each later byte of the run becomes U+FFFD, because text once sent cannot be taken back.
"""

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"
# Tokens that may wait for the end of a character. One character is at most four bytes, so only
# bytes that are no text at all wait longer; the bound keeps the work per token constant.
WAITING_TOKENS_MAX = 256
# How much of the prompt's end tells whether the first token continues a text.
PROMPT_TAIL_TOKENS = 8


class Vocabulary(Protocol):
    """What detokenisation needs to know of a tokenizer."""

    @property
    def anchor(self) -> tuple[int, ...]:
        """A token of ordinary text, to decode others behind; empty when there is none."""
        ...

    @property
    def anchor_text(self) -> str:
        """The anchor's own text."""
        ...

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        """The text of these tokens as the beginning of a text, special ones included."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which callers usually do not see."""
        ...

    def is_known(self, token_id: int) -> bool:
        """Whether the id names a token; a padded vocabulary has ids that name none."""
        ...

    def fallback_byte(self, token_id: int) -> int | None:
        """The byte a byte-fallback token stands for, or None for any other token."""
        ...


class Detokenizer:
    """One sequence's tokens to text, token by token.

    `prompt_ids` (its last few suffice) decide whether the first token begins a text or continues
    one: "Paris" or " Paris".
    """

    __slots__ = (
        "_broken",
        "_bytes",
        "_continues",
        "_shown",
        "_skip",
        "_vocabulary",
        "_waiting",
    )

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._vocabulary = vocabulary
        self._skip = skip_special_tokens
        tail = prompt_ids[-PROMPT_TAIL_TOKENS:]
        self._continues = any(not self._skips(token_id) for token_id in tail)
        self._waiting: list[int] = []
        # Characters of the waiting tokens' text that were shown already.
        self._shown = 0
        # Bytes of a byte-fallback run that do not make a whole character yet.
        self._bytes = bytearray()
        self._broken = False

    def push(self, token_id: int) -> str:
        """The text that this token makes certain; "" while a character is incomplete."""
        if self._skips(token_id):
            return ""
        byte = self._vocabulary.fallback_byte(token_id)
        if byte is not None:
            return self.flush_waiting() + self._push_byte(byte, token_id)
        run = self._end_run()
        self._waiting.append(token_id)
        text = self._decode(self._waiting)
        if not text.endswith(REPLACEMENT) or len(self._waiting) >= WAITING_TOKENS_MAX:
            fresh = text[self._shown :]
            self._settle()
            return run + fresh
        # Everything before the last replacement character is final: only the last up to three
        # bytes can still become part of a character, and they show as one replacement.
        fresh = text[self._shown : -1]
        self._shown = max(self._shown, len(text) - 1)
        return run + fresh

    def flush(self) -> str:
        """The text of what still waits, incomplete characters as U+FFFD."""
        return self._end_run() + self.flush_waiting()

    def flush_waiting(self) -> str:
        """The unshown text of tokens that wait for the end of a character."""
        if not self._waiting:
            return ""
        fresh = self._decode(self._waiting)[self._shown :]
        self._settle()
        return fresh

    def _settle(self) -> None:
        self._waiting.clear()
        self._shown = 0
        self._continues = True

    def _skips(self, token_id: int) -> bool:
        if not self._vocabulary.is_known(token_id):
            return True
        return self._skip and self._vocabulary.is_special(token_id)

    def _decode(self, token_ids: list[int]) -> str:
        if not self._continues:
            return self._vocabulary.decode_raw(token_ids)
        vocabulary = self._vocabulary
        return vocabulary.decode_raw([*vocabulary.anchor, *token_ids])[
            len(vocabulary.anchor_text) :
        ]

    def _push_byte(self, byte: int, token_id: int) -> str:
        """One byte of a byte-fallback run."""
        if self._broken:
            return REPLACEMENT
        self._bytes.append(byte)
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return ""
            self._broken = True
            text = REPLACEMENT * len(self._bytes)
        self._bytes.clear()
        if not self._continues:
            # What a decoder drops at the beginning of a text (a space), it drops from a byte too.
            text = self._decode([token_id]) if byte < 0x80 and not self._broken else text
            self._continues = True
        return text

    def _end_run(self) -> str:
        """Bytes left over when a byte-fallback run ends: each is a replacement character."""
        text = REPLACEMENT * len(self._bytes)
        if text:
            self._continues = True
        self._bytes.clear()
        self._broken = False
        return text
