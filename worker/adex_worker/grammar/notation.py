"""Grammars in the notation of llguidance, which knows the tokens that may come next.

Nothing here is safe from a grammar made to do harm: some exhaust memory, take minutes, or overflow
the stack of whoever compiles them. So each is tried out first by a process that may die of it; see
`adex_worker.grammar.trial`.
"""

import json
from collections.abc import Sequence
from typing import assert_never

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from adex_proto.grammar import Grammar, GrammarKind

# JSON may be laid out, but not for ever: without a bound a weak model writes blanks to its end.
_BLANKS = r"[\x20\x0A\x0D\x09]{1,20}"
# What a schema itself may not change. Nothing is approximated: what cannot be kept is refused.
_JSON_OPTIONS = {"whitespace_pattern": _BLANKS, "lenient": False, "coerce_one_of": False}
# They let a grammar contain another language, or change how the whole is read.
_FOREIGN = ("%json", "%lark", "%llguidance", "%regex")
# Of one matcher. A lexer state takes up to 2 kB, fuel is a unit of work: some 14 000 in a
# millisecond of a step, 50 000 when the lexer is built.
_LIMITS = LLParserLimits(
    max_items_in_row=2000,
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,
    step_max_items=50_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
_REASON_CHARACTERS_MAX = 300


class GrammarError(Exception):
    """Why a grammar cannot be honoured, in words for who wrote it."""


def tokenizer_of(text: str, vocabulary: int, eos_token_ids: Sequence[int]) -> LLTokenizer:
    """The tokens of a tokenizer.json, for masks of `vocabulary` bits.

    Raises GrammarError for a tokenizer whose tokens have no bytes of their own, for one with more
    tokens than the model has logits, and where no token ends a text.
    """
    ends = [token for token in eos_token_ids if 0 <= token < vocabulary]
    if not ends:
        raise GrammarError("this model has no end token, by which a text under a grammar ends")
    try:
        return LLTokenizer(text, n_vocab=vocabulary, eos_token=ends)
    except ValueError as error:
        raise GrammarError(f"this model's tokenizer cannot be constrained: {error}") from error


def notation_of(grammar: Grammar) -> str:
    """The grammar as llguidance reads it. Raises GrammarError."""
    text = grammar.text
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            try:
                return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)  # type: ignore[arg-type]
            except ValueError as error:
                raise GrammarError(str(error)) from error
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(text)
        case GrammarKind.CHOICE:
            texts = [json.dumps(each, ensure_ascii=False) for each in json.loads(text)]
            return LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(_lark(text))
        case _:
            assert_never(grammar.kind)


def _lark(text: str) -> str:
    """Lark's notation, also of a grammar in llama.cpp's, which writes `::=`."""
    for word in _FOREIGN:
        if word in text:
            raise GrammarError(f"{word} is not served inside a grammar")
    if "::=" not in text:
        return text
    try:
        return str(any_to_lark(text))
    except Exception as error:  # the converter raises bare Exception
        raise GrammarError(_short(str(error)) or "nested too deeply") from error


def matcher_of(tokenizer: LLTokenizer, notation: str) -> LLMatcher:
    """A matcher at the beginning of a text. Raises GrammarError."""
    matcher = LLMatcher(tokenizer, notation, log_level=0, limits=_LIMITS)
    _check(matcher)
    return matcher


def mask_of(matcher: LLMatcher) -> bytes:
    """One bit for each token, the lowest of a byte first: whether it may come next.

    Where the grammar is complete and nothing can follow, those are the end tokens, and so they stay
    after one. Raises GrammarError where nothing may follow, or where the next token costs too much
    to find. Does not hold the interpreter's lock.
    """
    _check(matcher)
    mask = matcher.compute_bitmask()
    _check(matcher)
    return mask


def advance(matcher: LLMatcher, token_ids: Sequence[int]) -> None:
    """These tokens came. Raises GrammarError for one that might not.

    What comes after a text that is complete changes nothing: a step may be on its way by then.
    """
    _check(matcher)
    if matcher.is_stopped():
        return
    if not matcher.consume_tokens(list(token_ids)):
        _check(matcher)
        raise GrammarError("a token came that may not")


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(_short(matcher.get_error()))


def _short(reason: str) -> str:
    """The library's reason on one line, without what it leaves open."""
    if "NoExtensionBias" in reason:
        return "no text can satisfy it"
    line = " ".join(reason.replace("<non-verbose/>", "").split())
    return line if len(line) <= _REASON_CHARACTERS_MAX else f"{line[:_REASON_CHARACTERS_MAX]}..."
