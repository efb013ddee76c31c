"""Every server's way of saying what a text must belong to comes out as one grammar."""

import json
from typing import Any

import pytest

from adex_proto.errors import ValidationError
from adex_proto.grammar import GRAMMAR_BYTES_MAX, Grammar, GrammarKind
from adex_scheduler.front.fields import RequestLimits
from adex_scheduler.front.schema_openai import parse_completion
from adex_scheduler.front.schema_tgi import parse_generate

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
OF_SCHEMA = (GrammarKind.JSON_SCHEMA, SCHEMA)
ANY_OBJECT = (GrammarKind.JSON_SCHEMA, {"type": "object"})


def grammar(**fields: Any) -> Grammar | None:
    wish = parse_completion({"prompt": "x", **fields}, RequestLimits(), seed=1).wish
    return wish.sampling.grammar


def read(found: Grammar | None) -> tuple[GrammarKind, object]:
    """The kind and the text, the latter parsed where it is JSON."""
    assert found is not None
    is_json = found.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.CHOICE)
    return found.kind, json.loads(found.text) if is_json else found.text


def refusal(**fields: Any) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        grammar(**fields)
    return caught.value


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("response_format", {"type": "json_object"}, ANY_OBJECT),
        ("response_format", {"type": "json_object", "schema": SCHEMA}, OF_SCHEMA),
        ("response_format", {"type": "json_schema", "schema": json.dumps(SCHEMA)}, OF_SCHEMA),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}},
            OF_SCHEMA,
        ),
        ("response_format", {"type": "json_schema", "value": SCHEMA}, OF_SCHEMA),
        ("response_format", {"type": "regex", "value": "a+"}, (GrammarKind.REGEX, "a+")),
        ("grammar", {"type": "json", "value": SCHEMA}, OF_SCHEMA),
        ("grammar", {"type": "json_schema", "value": {"name": "n", "schema": SCHEMA}}, OF_SCHEMA),
        ("grammar", {"type": "choice", "value": ["ä", "b"]}, (GrammarKind.CHOICE, ["ä", "b"])),
        ("schema", SCHEMA, OF_SCHEMA),
        ("guided_json", SCHEMA, OF_SCHEMA),
        ("guided_json", json.dumps(SCHEMA), OF_SCHEMA),
        ("guided_regex", "a+", (GrammarKind.REGEX, "a+")),
        ("guided_choice", ["yes", "no"], (GrammarKind.CHOICE, ["yes", "no"])),
        ("guided_grammar", 'start: "a"', (GrammarKind.LARK, 'start: "a"')),
        ("structured_outputs", {"json": SCHEMA, "regex": None}, OF_SCHEMA),
        ("structured_outputs", {"json_object": True}, ANY_OBJECT),
        ("structured_outputs", {"choice": ["a"]}, (GrammarKind.CHOICE, ["a"])),
    ],
)
def test_each_way_of_asking_means_one_grammar(field: str, value: Any, expected: Any) -> None:
    assert read(grammar(**{field: value})) == expected


def test_the_routes_of_tgi_read_the_same_fields() -> None:
    parameters = {"grammar": {"type": "json", "value": SCHEMA}}
    body = {"inputs": "x", "parameters": parameters}
    wish = parse_generate(body, RequestLimits(), seed=1, stream=False).wish
    assert read(wish.sampling.grammar) == OF_SCHEMA
    assert wish.grammar_field == "parameters.grammar"


def test_text_and_nothing_ask_for_nothing() -> None:
    assert grammar(response_format={"type": "text"}, guided_json=None) is None
    assert grammar(response_format={"type": "text"}, guided_regex="a") is not None


def test_two_grammars_exclude_each_other() -> None:
    error = refusal(guided_regex="a", structured_outputs={"regex": "a"})
    assert error.field == "structured_outputs"


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"nullable": True}, "guided_json.nullable"),
        ({"properties": {"a": {"contains": {}}}}, "guided_json.properties.a.contains"),
        ({"anyOf": [{}, {"uniqueItems": True}]}, "guided_json.anyOf[1].uniqueItems"),
        ({"items": {"if": {}}}, "guided_json.items.if"),
        ({"$defs": {"a": {"not": {}}}}, "guided_json.$defs.a.not"),
        ({"x-guidance": {"lenient": True}}, "guided_json.x-guidance"),
        ({"type": "string", "contentEncoding": "base64"}, "guided_json.contentEncoding"),
        ({"properties": ["a"]}, "guided_json.properties"),
        ({"items": 5}, "guided_json.items"),
    ],
)
def test_a_word_that_would_have_no_effect_is_refused_by_its_name(schema: Any, where: str) -> None:
    assert refusal(guided_json=schema).field == where


def test_notes_to_readers_and_names_that_look_like_words_are_no_obstacle() -> None:
    schema = {
        "title": "T",
        "description": "d",
        "x-order": 1,
        "properties": {"not": {"type": "string", "default": "", "examples": ["contains"]}},
        "enum": [{"if": 1}],
    }
    assert read(grammar(guided_json=schema)) == (GrammarKind.JSON_SCHEMA, schema)


def test_depth_size_and_halves_of_characters_are_refused_in_their_field() -> None:
    deep: Any = {"type": "integer"}
    for _ in range(100):
        deep = {"items": deep}
    assert "nested" in refusal(guided_json=deep).message
    assert refusal(guided_regex="a" * (GRAMMAR_BYTES_MAX + 1)).field == "guided_regex"
    assert refusal(guided_regex="").field == "guided_regex"
    assert refusal(guided_choice=["\ud800"]).field == "guided_choice"


def test_going_on_after_the_end_token_contradicts_a_grammar() -> None:
    assert refusal(guided_regex="a", ignore_eos=True).field == "ignore_eos"


def test_a_grammar_does_not_show_its_text_where_values_are_printed() -> None:
    assert "secret" not in repr(grammar(guided_choice=["secret"]))
