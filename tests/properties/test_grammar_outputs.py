"""Whatever is written under a schema is valid in the eyes of jsonschema, an independent judge."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from adex_proto.errors import ValidationError
from adex_scheduler.front.schema_grammar import choice_grammar, schema_grammar
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.grammar.notation import advance, mask_of

TOKENIZER = Path(__file__).parents[2] / "demo/model/tokenizer.json"
VOCABULARY, END = 1708, 2
TOKENS = LLTokenizer(TOKENIZER.read_text("utf-8"), n_vocab=VOCABULARY, eos_token=[END])
TOKENS_MAX = 400

NAMES = st.sampled_from(["a", "b", "naïve", "if", "x y"])
VALUES = st.none() | st.booleans() | st.integers(-5, 5) | st.text('aä"\\\n', max_size=3)
COUNTS = st.integers(0, 3)


def optional(**words: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=words)


def texts() -> st.SearchStrategy[dict[str, Any]]:
    # Bounded, so that a random writer comes to an end.
    lengths = st.tuples(COUNTS, COUNTS).map(lambda n: {"minLength": n[0], "maxLength": sum(n)})
    patterns = st.sampled_from(["^[a-c]{1,3}$", "^(x|yz)$", "^\\d{2}$"]).map(
        lambda p: {"pattern": p}
    )
    # Not those with a time: their leap seconds are any minute's, which RFC 3339 does not forbid.
    formats = st.sampled_from(["date", "ipv4", "uuid"]).map(lambda f: {"format": f})
    return st.one_of(lengths, patterns, formats).map(lambda words: {"type": "string", **words})


def numbers() -> st.SearchStrategy[dict[str, Any]]:
    bounds = st.tuples(st.integers(-50, 50), st.integers(0, 60))
    ranges = bounds.map(lambda b: {"minimum": b[0], "maximum": b[0] + b[1]})
    steps = st.sampled_from([{}, {"multipleOf": 1}, {"multipleOf": 7}])
    whole = st.builds(lambda r, s: {"type": "integer", **r, **s}, ranges, steps)
    return whole | ranges.map(lambda r: {"type": "number", **r})


def composed(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    lists = st.builds(
        lambda item, least, more: {
            "type": "array",
            "items": item,
            "minItems": least,
            "maxItems": least + more,
        },
        parts,
        COUNTS,
        COUNTS,
    )
    tuples = st.lists(parts, min_size=1, max_size=3).map(
        lambda items: {
            "type": "array",
            "prefixItems": items,
            "items": False,
            "minItems": len(items),
        }
    )
    objects = st.builds(
        lambda members, needed, extra: {
            "type": "object",
            "properties": members,
            "required": [name for name in members if name in needed],
            "additionalProperties": extra,
        },
        st.dictionaries(NAMES, parts, max_size=3),
        st.sets(NAMES),
        st.just(False) | st.just({"type": "boolean"}),
    )
    either = st.lists(parts, min_size=1, max_size=3).map(lambda options: {"anyOf": options})
    return lists | tuples | objects | either


SCHEMAS = st.recursive(
    st.one_of(
        texts(),
        numbers(),
        st.just({"type": ["boolean", "null"]}),
        st.lists(VALUES, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        VALUES.map(lambda value: {"const": value}),
    ),
    composed,
    max_leaves=6,
)


@pytest.fixture(scope="module")
def grammars() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER, VOCABULARY, (END,))
    yield compiler
    compiler.close()


def written(grammars: GrammarCompiler, grammar: Any, seed: int) -> str | None:
    """A text by a writer that knows nothing but the masks; None where it came to no end."""
    matcher, chance = grammars.prepare(grammar).deep_copy(), random.Random(seed)
    token_ids: list[int] = []
    for _ in range(TOKENS_MAX):
        mask = mask_of(matcher)
        allowed = [i for i in range(VOCABULARY) if mask[i // 8] >> i % 8 & 1]
        token = END if END in allowed else chance.choice(allowed)
        if token == END:
            return TOKENS.decode_str(token_ids)
        token_ids.append(token)
        advance(matcher, [token])
    return None


@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(SCHEMAS, st.integers(0, 2**16))
def test_every_text_under_a_schema_is_valid(
    grammars: GrammarCompiler, schema: Any, seed: int
) -> None:
    try:
        text = written(grammars, schema_grammar("schema", schema), seed)
    except ValidationError as refused:
        # A range without a multiple of seven in it, and the like.
        if "cannot be honoured" not in refused.message:
            raise
        return
    if text is not None:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.validate(
            json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=checker
        )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=5).filter(
        lambda texts: all(text.isprintable() for text in texts)
    ),
    st.integers(0, 2**16),
)
def test_every_text_under_a_choice_is_one_of_it(
    grammars: GrammarCompiler, texts: list[str], seed: int
) -> None:
    assert written(grammars, choice_grammar("choice", texts), seed) in texts


def test_a_tree_of_any_depth_is_a_tree(grammars: GrammarCompiler) -> None:
    schema = {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "leaf": {"type": "integer", "minimum": 0, "maximum": 9},
                    "trees": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2},
                },
                "required": ["leaf"],
                "additionalProperties": False,
            }
        },
    }
    found = [written(grammars, schema_grammar("schema", schema), seed) for seed in range(30)]
    whole = [text for text in found if text is not None]
    assert len(whole) > 20
    for text in whole:
        jsonschema.validate(json.loads(text), schema)
