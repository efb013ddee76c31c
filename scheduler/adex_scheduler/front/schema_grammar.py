"""What a text must belong to: every server's way of asking for it, made into one grammar.

    field                                        whose             asks for
    response_format                              OpenAI, LoRAX     any JSON object, or a schema's
    schema                                       LoRAX             a schema's JSON
    grammar                                      TGI               {"type", "value"}
    guided_json, _regex, _choice, _grammar       vLLM, older       one each
    structured_outputs                           vLLM              one of several, by name

One of them at most. A schema that holds a word which would have no effect is refused by the word's
name, so that a text which came through is valid in the eyes of whoever wrote the schema.
"""

import json
from collections.abc import Mapping, Sequence
from typing import cast

from adex_proto.errors import ValidationError
from adex_proto.grammar import GRAMMAR_BYTES_MAX, Grammar, GrammarKind
from adex_scheduler.front.body import refusal, whole_text
from adex_scheduler.front.fields import (
    Check,
    Field,
    Json,
    RequestLimits,
    Values,
    an_object,
    listed,
)

SCHEMA_DEPTH_MAX = 64
CHOICES_MAX = 4096
ANY_OBJECT: Json = {"type": "object"}

# Words of JSON Schema that are kept, and of those the ones below which schemas stand.
_OF_VALUES = frozenset(
    "$anchor $id $ref $schema const enum exclusiveMaximum exclusiveMinimum format maxItems"  # noqa: SIM905
    " maxLength maxProperties maximum minItems minLength minProperties minimum multipleOf pattern"
    " required type".split()
)
_OF_NAMED_SCHEMAS = frozenset(("$defs", "definitions", "patternProperties", "properties"))
_OF_SCHEMAS = frozenset(
    ("additionalItems", "additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems")
)
# Words that tell a reader something and constrain no value.
_NOTES = frozenset(
    "$comment default deprecated description discriminator example examples readOnly title"  # noqa: SIM905
    " writeOnly".split()
)
_TEXT: Json = {"type": "string", "minLength": 1, "maxLength": GRAMMAR_BYTES_MAX}
_TEXTS: Json = {
    "type": "array",
    "items": {"type": "string"},
    "minItems": 1,
    "maxItems": CHOICES_MAX,
}
_JSON_SCHEMA: Json = {"type": "object", "description": "A JSON Schema."}


def schema_grammar(field: str, schema: object) -> Grammar:
    """The grammar of a JSON Schema, given as an object or as its JSON text.

    Raises ValidationError for what is no schema, and for a word in it that would have no effect.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise refusal(field, schema, "must be a JSON Schema", "Send an object") from error
    checked = an_object(field, schema)
    _check_schema(checked, field, SCHEMA_DEPTH_MAX)
    return _grammar(field, GrammarKind.JSON_SCHEMA, json.dumps(checked, ensure_ascii=False))


def choice_grammar(field: str, texts: Sequence[str]) -> Grammar:
    """The grammar of exactly these texts."""
    return _grammar(field, GrammarKind.CHOICE, json.dumps(texts, ensure_ascii=False))


def grammar_of(values: Values) -> tuple[Grammar | None, str]:
    """The grammar that some field asks for, and the field's name; (None, "") where none does.

    Raises ValidationError where two do.
    """
    found = [(values[field], values.name_of(field)) for field in GRAMMAR_FIELDS if values[field]]
    if len(found) > 1:
        first, second = found[0][1], found[1][1]
        raise ValidationError(
            f"`{first}` and `{second}` exclude each other", field=second, remedy="Send one of them"
        )
    return found[0] if found else (None, "")


def _check_schema(schema: Mapping[str, object], path: str, depth: int) -> None:
    if depth == 0:
        raise ValidationError(
            f"`{path[:200]}` is nested more than {SCHEMA_DEPTH_MAX} deep",
            field=path[:200],
            remedy="Name parts of it in `$defs`",
        )
    for word, value in schema.items():
        here = f"{path}.{word}"
        if word in _OF_NAMED_SCHEMAS:
            for name, part in an_object(here, value).items():
                _check_part(part, f"{here}.{name}", depth)
        elif word in _OF_SCHEMAS and isinstance(value, list):
            for index, part in enumerate(cast("list[object]", value)):
                _check_part(part, f"{here}[{index}]", depth)
        elif word in _OF_SCHEMAS:
            _check_part(value, here, depth)
        elif word not in _OF_VALUES and not _is_note(word):
            raise ValidationError(
                f"`{here[:200]}` is a word that this server cannot honour in a schema",
                field=here[:200],
                remedy="Leave it out, or say it in other words",
            )


def _check_part(part: object, path: str, depth: int) -> None:
    if not isinstance(part, bool):
        _check_schema(an_object(path, part), path, depth - 1)


def _is_note(word: str) -> bool:
    # By convention what begins with x- is a note, but for what the compiler would obey.
    return word in _NOTES or (word.startswith("x-") and word != "x-guidance")


def _grammar(field: str, kind: GrammarKind, text: str) -> Grammar:
    try:
        return Grammar(kind, whole_text(field, text))
    except ValidationError as error:
        message = error.message.replace("`grammar`", f"`{field}`", 1)
        raise ValidationError(message, field=field, remedy=error.remedy) from None


def _json(field: str, value: object, _: RequestLimits) -> Grammar:
    return schema_grammar(field, value)


def _text(kind: GrammarKind) -> Check[Grammar]:
    def check(field: str, value: object, _: RequestLimits) -> Grammar:
        if not isinstance(value, str):
            raise refusal(field, value, "must be a string", "Send a string or null")
        return _grammar(field, kind, value)

    return check


def _choice(field: str, value: object, _: RequestLimits) -> Grammar:
    texts = listed(field, value, CHOICES_MAX)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise refusal(field, value, "must be a list of texts", "Send at least one text")
    return choice_grammar(field, cast("list[str]", texts))


def _any_object(field: str, value: object, _: RequestLimits) -> Grammar | None:
    if not isinstance(value, bool):
        raise refusal(field, value, "must be true or false", "Send true, or leave it out")
    return schema_grammar(field, ANY_OBJECT) if value else None


_regex, _lark = _text(GrammarKind.REGEX), _text(GrammarKind.LARK)
_VALUE_CHECKS: Mapping[str, Check[Grammar]] = {"regex": _regex, "choice": _choice, "lark": _lark}
_FORMATS = ("text", "json_object", "json_schema", "json", *_VALUE_CHECKS)
_SCHEMA_WORDS = ("json_schema", "schema", "value")


def _format(field: str, value: object, limits: RequestLimits) -> Grammar | None:
    """`{"type": ...}`; a schema stands in `json_schema`, in `schema` or in `value`."""
    wanted = an_object(field, value)
    kind = wanted.get("type")
    match kind:
        case "text":
            return None
        case str() if kind in _VALUE_CHECKS:
            _known(field, wanted, "type", "value")
            return _VALUE_CHECKS[kind](f"{field}.value", _given(field, wanted, "value"), limits)
        case "json_object" | "json" | "json_schema":
            _known(field, wanted, "type", *_SCHEMA_WORDS)
            given = [word for word in _SCHEMA_WORDS if wanted.get(word) is not None]
            if len(given) > 1:
                name = f"{field}.{given[1]}"
                raise refusal(name, wanted[given[1]], "is a second schema", "Send one")
            if given:
                return _titled(f"{field}.{given[0]}", wanted[given[0]])
            if kind == "json_object":
                return schema_grammar(field, ANY_OBJECT)
            raise _lacking(f"{field}.{'json_schema' if kind == 'json_schema' else 'value'}")
        case _:
            why = f"must be one of {', '.join(_FORMATS)}"
            raise refusal(f"{field}.type", kind, why, "Send one of these")


def _titled(field: str, value: object) -> Grammar:
    """A schema, bare or in an object with its name; no schema has a word `schema` of its own."""
    if not (isinstance(value, dict) and "schema" in value):
        return schema_grammar(field, value)
    titled = cast("dict[str, object]", value)
    # Strict or not, what comes is valid.
    _known(field, titled, "name", "description", "schema", "strict")
    for word, kind in (("name", str), ("description", str), ("strict", bool)):
        if not isinstance(titled.get(word), kind | None):
            why = "must be text" if kind is str else "must be true or false"
            raise refusal(f"{field}.{word}", titled[word], why, "Leave it out")
    return schema_grammar(f"{field}.schema", _given(field, titled, "schema"))


_STRUCTURED: Mapping[str, Check[Grammar | None]] = {
    "json": _json,
    "json_object": _any_object,
    "regex": _regex,
    "choice": _choice,
    "grammar": _lark,
}


def _structured(field: str, value: object, limits: RequestLimits) -> Grammar:
    wanted = an_object(field, value)
    _known(field, wanted, *_STRUCTURED)
    found = [
        grammar
        for word, check in _STRUCTURED.items()
        if wanted.get(word) is not None
        and (grammar := check(f"{field}.{word}", wanted[word], limits)) is not None
    ]
    if len(found) != 1:
        raise ValidationError(
            f"`{field}` must hold exactly one of {', '.join(_STRUCTURED)}",
            field=field,
            remedy="Send one of them",
        )
    return found[0]


def _given(field: str, wanted: Mapping[str, object], word: str) -> object:
    value = wanted.get(word)
    if value is None:
        raise _lacking(f"{field}.{word}")
    return value


def _lacking(field: str) -> ValidationError:
    return ValidationError(
        f"`{field}` is missing", field=field, remedy="Say what the text must belong to"
    )


def _known(field: str, wanted: Mapping[str, object], *words: str) -> None:
    """Refuse every other member: it would have no effect."""
    for word, value in wanted.items():
        if word not in words and value is not None and value is not False:
            remedy = f"Leave it out: {', '.join(words)} are read"
            raise refusal(f"{field}.{word}"[:200], value, "is not served", remedy)


_FORMAT_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "type": {"enum": list(_FORMATS)},
        "json_schema": {**_JSON_SCHEMA, "description": "`schema`, with a `name`."},
        "schema": _JSON_SCHEMA,
        "value": {"description": "A schema, an expression, texts or a grammar."},
    },
    "required": ["type"],
}


def _asking(
    name: str, about: str, check: Check[Grammar | None], schema: Json
) -> Field[Grammar | None]:
    """A field that asks for a grammar, or by its value for none."""
    return Field(name, about, check, lambda _: dict(schema), None)


GRAMMAR_FIELDS: tuple[Field[Grammar | None], ...] = (
    _asking("response_format", "What the text must belong to.", _format, _FORMAT_SCHEMA),
    _asking("grammar", "TGI's word for `response_format`.", _format, _FORMAT_SCHEMA),
    _asking("schema", "A JSON Schema of the text.", _json, _JSON_SCHEMA),
    _asking("guided_json", "A JSON Schema of the text.", _json, _JSON_SCHEMA),
    _asking("guided_regex", "What the whole text matches.", _regex, _TEXT),
    _asking("guided_choice", "The texts to choose from.", _choice, _TEXTS),
    _asking("guided_grammar", "A context-free grammar, in Lark or GBNF.", _lark, _TEXT),
    _asking(
        "structured_outputs",
        "One of `json`, `json_object`, `regex`, `choice` and `grammar`.",
        _structured,
        {
            "type": "object",
            "properties": {
                "json": _JSON_SCHEMA,
                "json_object": {"type": "boolean"},
                "regex": _TEXT,
                "choice": _TEXTS,
                "grammar": _TEXT,
            },
        },
    ),
)
