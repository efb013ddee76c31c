"""Grammars are compiled, kept, and refused; one made to do harm harms a process of its own."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from adex_proto.errors import Overloaded, ServerError, ValidationError
from adex_proto.grammar import Grammar, GrammarKind
from adex_worker.grammar import compiler as compiler_module
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.grammar.notation import advance, mask_of

TOKENIZER = Path(__file__).parents[4] / "demo/model/tokenizer.json"
VOCABULARY, END = 1708, 2


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, (END,))
    yield compiler
    compiler.close()


@pytest.fixture(scope="module")
def tokens() -> LLTokenizer:
    return LLTokenizer(TOKENIZER.read_text("utf-8"), n_vocab=VOCABULARY, eos_token=[END])


def schema(**words: Any) -> Grammar:
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(words))


def regex(text: str) -> Grammar:
    return Grammar(GrammarKind.REGEX, text)


def lark(text: str) -> Grammar:
    return Grammar(GrammarKind.LARK, text)


def chain(links: int, **words: Any) -> Grammar:
    """A schema in which each definition needs the next."""
    parts: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(links)}
    return schema(**{"$ref": "#/$defs/d0", "$defs": {**parts, f"d{links}": words}})


def accepts(matcher: LLMatcher, tokens: LLTokenizer, text: str) -> bool:
    """Whether the text is one of the grammar's, whole."""
    copy, ids = matcher.deep_copy(), tokens.tokenize_str(text)
    return copy.validate_tokens([*ids, END]) == len(ids) + 1


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        (regex("[ab]{2}"), ["ab"], ["a", "abb", ""]),
        (Grammar(GrammarKind.CHOICE, '["ä🙂", "b\\n\\"c"]'), ["ä🙂", 'b\n"c'], ["c", "ä"]),
        (lark('start: "a" start "b" | "x"'), ["x", "aaxbb"], ["aaxb"]),
        (lark('root ::= "yes" | "no" [0-9]'), ["yes", "no3"], ["no"]),
        (schema(type="integer", minimum=3, maximum=11), ["3", "11"], ["12", "2", "x"]),
        (schema(type="object"), ["{}", '{"a": [1]}', '{\n  "a": null\n}'], ["[]", "{,}"]),
    ],
)
def test_a_grammar_takes_its_texts_and_no_others(
    grammars: GrammarCompiler,
    tokens: LLTokenizer,
    grammar: Grammar,
    texts: list[str],
    others: list[str],
) -> None:
    matcher = grammars.prepare(grammar)
    assert [text for text in texts if not accepts(matcher, tokens, text)] == []
    assert [text for text in others if accepts(matcher, tokens, text)] == []


def test_blanks_between_the_parts_of_json_end(grammars: GrammarCompiler, tokens: Any) -> None:
    matcher = grammars.prepare(schema(type="object"))
    assert accepts(matcher, tokens, "{" + " " * 20 + "}")
    assert not accepts(matcher, tokens, "{" + " " * 21 + "}")


HOSTILE = {
    "compiles for minutes": schema(type="integer", multipleOf=999983),
    "one token takes seconds": regex("a" + "{2}" * 200),
    "overflows the stack by references": chain(1500, type="integer"),
    "overflows the stack by rules": lark(
        "start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(3000)) + '\nr3000: "a"'
    ),
    "doubles at every rule": lark(
        "start: r0\n" + "\n".join(f"r{i}: r{i + 1} r{i + 1}" for i in range(900)) + '\nr900: "a"'
    ),
    "too many properties": schema(
        type="object", properties={f"p{i}": {"type": "string"} for i in range(2000)}
    ),
    "expressions without end": regex("(a?){5000}a{5000}"),
    "a reference to itself": schema(**{"$ref": "#"}),
    "a reference abroad": schema(**{"$ref": "http://127.0.0.1:1/schema"}),
    "a file of ours": schema(**{"$ref": "file:///etc/passwd"}),
    "nothing is allowed": schema(type="string", minLength=5, maxLength=2),
    "brackets without end": lark("start: " + "(" * 9000 + '"a"' + ")" * 9000),
    "brackets without end, in the other notation": lark("root ::= " + "(" * 9000 + "a"),
    "a language within": lark('start: %json {"multipleOf": 999983}'),
    "an unknown format": schema(type="string", format="ferrous"),
    "no JSON": Grammar(GrammarKind.JSON_SCHEMA, "{"),
    "no expression": regex("(a"),
    "no grammar": lark("start: ("),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_honoured_is_refused_and_the_next_one_is_served(
    grammars: GrammarCompiler, tokens: LLTokenizer, name: str
) -> None:
    with pytest.raises(ValidationError, match=r"cannot be honoured: .{5,}") as caught:
        grammars.prepare(HOSTILE[name])
    assert caught.value.field == "grammar"
    assert len(caught.value.message) < 500
    assert accepts(grammars.prepare(regex(f"a|{len(name)}")), tokens, "a")


def test_a_refusal_is_remembered_and_costs_nothing_again(grammars: GrammarCompiler) -> None:
    with pytest.raises(ValidationError, match="unclosed") as first:
        grammars.prepare(regex("(b"))
    with pytest.raises(ValidationError, match="unclosed") as second:
        grammars.find(regex("(b"))
    assert second.value is not first.value


def test_a_process_that_was_killed_is_replaced(grammars: GrammarCompiler) -> None:
    grammars.prepare(regex("k0"))
    process = grammars._jail._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValidationError):
        grammars.prepare(regex("k1"))
    grammars.prepare(regex("k2"))


def test_where_no_process_starts_it_is_no_fault_of_the_grammars(tmp_path: Path) -> None:
    compiler = GrammarCompiler(tmp_path / "missing.json", VOCABULARY, (END,))
    for _ in range(2):
        with pytest.raises(ServerError, match="cannot compile"):
            compiler.prepare(regex("a"))


@pytest.mark.parametrize(("vocabulary", "ends"), [(100, (END,)), (VOCABULARY, ())])
def test_a_tokenizer_that_cannot_be_constrained_says_why(
    vocabulary: int, ends: tuple[int, ...]
) -> None:
    compiler = GrammarCompiler(TOKENIZER, vocabulary, ends)
    with pytest.raises(ValidationError, match=r"vocab size|no end token"):
        compiler.prepare(regex("a"))
    compiler.close()


def test_the_longest_unused_grammars_go_when_their_texts_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler_module, "KEPT_BYTES_MAX", 12)
    monkeypatch.setattr(compiler_module, "KEPT_BYTES_EACH", 1)
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, (END,))
    first, second, third = regex("a" * 5), regex("b" * 5), regex("c" * 5)
    compiler.prepare(first)
    compiler.prepare(second)
    compiler.find(first)
    compiler.prepare(third)
    kept = [compiler.find(each) is not None for each in (first, second, third)]
    compiler.close()
    assert kept == [True, False, True]


def test_small_grammars_are_not_kept_without_number(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "KEPT_BYTES_MAX", 3 * compiler_module.KEPT_BYTES_EACH)
    small = [regex(letter) for letter in "vwxyz"]
    for each in small:
        grammars.prepare(each)
    kept = [grammars.find(each) is not None for each in small]
    assert kept == [False, False, True, True, True]


def test_more_new_grammars_than_may_wait_are_turned_away(
    grammars: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "WAITING_MAX", 1)
    begun, ended = threading.Event(), threading.Event()
    compile_one = grammars._compile

    def slowly(grammar: Grammar) -> LLMatcher:
        begun.set()
        assert ended.wait(30)
        return compile_one(grammar)

    monkeypatch.setattr(grammars, "_compile", slowly)
    waiting = threading.Thread(target=grammars.prepare, args=(regex("w1"),))
    waiting.start()
    assert begun.wait(30)
    with pytest.raises(Overloaded):
        grammars.prepare(regex("w2"))
    ended.set()
    waiting.join(30)
    assert grammars.find(regex("w1")) is not None


def test_a_complete_text_may_only_end_however_often_it_is_asked(grammars: GrammarCompiler) -> None:
    matcher = grammars.prepare(regex("a")).deep_copy()
    [a] = [i for i in range(VOCABULARY) if mask_of(matcher)[i // 8] >> i % 8 & 1]
    advance(matcher, [a])
    only_end = mask_of(matcher)
    assert only_end[END // 8] == 1 << END % 8
    assert sum(byte.bit_count() for byte in only_end) == 1
    advance(matcher, [END])
    assert mask_of(matcher) == only_end
