"""Compiled grammars, kept while they are used; a new one is tried out first."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from llguidance import LLMatcher, LLTokenizer

from adex_proto.errors import AdexError, Overloaded, ServerError, ValidationError
from adex_proto.grammar import Grammar
from adex_worker.grammar.jail import Jail, JailError
from adex_worker.grammar.notation import GrammarError, mask_of, matcher_of, tokenizer_of

_LOG = logging.getLogger(__name__)

# A compiled grammar takes some hundred times the memory of its text.
KEPT_BYTES_MAX = 2**20
# However short its text, it takes some 40 kB.
KEPT_BYTES_EACH = 512
# Reasons are short, so that more of them can be remembered.
REFUSED_MAX = 256
WAITING_MAX = 32


class GrammarCompiler:
    """The grammars of one model. Safe to share between threads."""

    def __init__(self, tokenizer: Path, vocabulary: int, eos_token_ids: Sequence[int]) -> None:
        """`tokenizer` is the model's tokenizer.json; it is read when it is first needed."""
        self._path = tokenizer
        self._vocabulary = vocabulary
        self._eos_token_ids = tuple(eos_token_ids)
        self._jail = Jail(tokenizer, vocabulary, eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._books = threading.Lock()
        self._compiling = threading.Lock()
        self._waiting = 0
        self._kept: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._kept_bytes = 0
        self._refused: OrderedDict[Grammar, str] = OrderedDict()

    def find(self, grammar: Grammar) -> LLMatcher | None:
        """The grammar's matcher, to be copied; None for a grammar that has to be compiled.

        Never waits. Raises ValidationError for a grammar that was refused before.
        """
        with self._books:
            if grammar in self._refused:
                self._refused.move_to_end(grammar)
                raise _refusal(self._refused[grammar])
            if grammar in self._kept:
                self._kept.move_to_end(grammar)
            return self._kept.get(grammar)

    def prepare(self, grammar: Grammar) -> LLMatcher:
        """The grammar's matcher, to be copied, compiled where it has to be. Blocks meanwhile.

        Raises ValidationError for what cannot be honoured, Overloaded where too many wait, and
        ServerError where no process can be started to try it out.
        """
        matcher = self.find(grammar)
        if matcher is not None:
            return matcher
        with self._books:
            if self._waiting >= WAITING_MAX:
                raise Overloaded(
                    f"{self._waiting} new grammars are being compiled", retry_after_s=1.0
                )
            self._waiting += 1
        try:
            with self._compiling:
                # Whoever waited before may have brought the same grammar.
                return self.find(grammar) or self._compile(grammar)
        finally:
            with self._books:
                self._waiting -= 1

    def close(self) -> None:
        """End the process that tries grammars out."""
        with self._compiling:
            self._jail.close()

    def _compile(self, grammar: Grammar) -> LLMatcher:
        try:
            notation = self._jail.try_out(grammar)
            if self._tokenizer is None:
                text = self._path.read_text(encoding="utf-8")
                self._tokenizer = tokenizer_of(text, self._vocabulary, self._eos_token_ids)
            matcher = matcher_of(self._tokenizer, notation)
            # What the first mask teaches a matcher, its copies know too.
            mask_of(matcher)
        except JailError as error:
            _LOG.error("grammars cannot be tried out: %s", error)
            raise ServerError("the worker cannot compile grammars now") from error
        except GrammarError as error:
            self._refuse(grammar, str(error))
            raise _refusal(str(error)) from error
        self._keep(grammar, matcher)
        return matcher

    def _keep(self, grammar: Grammar, matcher: LLMatcher) -> None:
        with self._books:
            self._kept[grammar] = matcher
            self._kept_bytes += _kept_bytes(grammar)
            while self._kept_bytes > KEPT_BYTES_MAX and len(self._kept) > 1:
                oldest, _ = self._kept.popitem(last=False)
                self._kept_bytes -= _kept_bytes(oldest)

    def _refuse(self, grammar: Grammar, reason: str) -> None:
        with self._books:
            self._refused[grammar] = reason
            if len(self._refused) > REFUSED_MAX:
                self._refused.popitem(last=False)


def _kept_bytes(grammar: Grammar) -> int:
    return max(len(grammar.text), KEPT_BYTES_EACH)


def _refusal(reason: str) -> AdexError:
    return ValidationError(
        f"`grammar` cannot be honoured: {reason}",
        field="grammar",
        remedy="Send one without it, or a simpler one",
    )
