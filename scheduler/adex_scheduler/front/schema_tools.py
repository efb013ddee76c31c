"""Tools that a chat offers, and the grammar of a call that is demanded."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from adex_proto.errors import ValidationError
from adex_proto.grammar import Grammar
from adex_scheduler.front.body import refusal
from adex_scheduler.front.fields import (
    Json,
    RequestLimits,
    Table,
    Values,
    an_object,
    boolean,
    choice,
    custom,
    listed,
    nested,
    string,
)
from adex_scheduler.front.schema_grammar import schema_grammar

TOOL_NAME = re.compile(r"^[A-Za-z0-9_.-]{1,64}$")
MODES = ("none", "auto", "required")
# More tool calls than this in one text are a model that repeats itself.
CALLS_MAX = 32
# What schemas of several tools name by path, they name from the top of their common schema.
NAMED_PARTS = ("$defs", "definitions")

FUNCTION_SCHEMA = custom(
    "parameters",
    "The arguments' JSON Schema.",
    lambda field, value, _: an_object(field, value),
    {"type": "object"},
)


def _tool_name(field: str, value: object, _: RequestLimits) -> str:
    if not isinstance(value, str) or not TOOL_NAME.fullmatch(value):
        why = "must be 1 to 64 letters, digits, `_`, `-` or `.`"
        raise refusal(field, value, why, "Name the function by such a word")
    return value


OFFERED_NAME = custom(
    "name", "The function's name.", _tool_name, {"type": "string", "pattern": TOOL_NAME.pattern}
).demanded("Name the function")
OFFERED = Table(
    "OfferedFunction",
    OFFERED_NAME,
    string("description", "What it does."),
    FUNCTION_SCHEMA,
    boolean("strict", "Taken, without effect."),
)
KIND = choice("type", "What kind of tool.", {"function": "function"}).demanded('Send "function"')
OFFERED_FIELD = nested("function", "The function.", OFFERED).demanded("Send the function")
TOOL = Table("Tool", KIND, OFFERED_FIELD)


def _tools(field: str, value: object, limits: RequestLimits) -> tuple[Values, ...]:
    return tuple(
        TOOL.read(an_object(f"{field}[{index}]", item), limits, f"{field}[{index}]")
        for index, item in enumerate(listed(field, value, limits.tools_max))
    )


TOOLS = custom(
    "tools",
    "Functions the model may call, where its chat template has a place for them.",
    _tools,
    lambda limits: {"type": "array", "items": TOOL.schema(limits), "maxItems": limits.tools_max},
).otherwise(())


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether functions are called: `mode` none, auto or required, or just the one of a name."""

    mode: str
    name: str = ""


def _tool_choice(field: str, value: object, limits: RequestLimits) -> ToolChoice:
    if value in MODES:
        return ToolChoice(value)
    if not isinstance(value, dict):
        words = ", ".join(MODES)
        raise refusal(field, value, f"must be one of {words}, or name a function", "Send one")
    named = NAMED_TOOL.read(cast("dict[str, object]", value), limits, field)
    return ToolChoice("required", named[CHOSEN_FIELD][OFFERED_NAME])


CHOSEN_FIELD = nested(
    "function", "The function to call.", Table("ChosenFunction", OFFERED_NAME)
).demanded("Name the function")
NAMED_TOOL = Table("NamedTool", KIND, CHOSEN_FIELD)
TOOL_CHOICE = custom(
    "tool_choice",
    "Whether functions may, must or must not be called, or the one that must.",
    _tool_choice,
    lambda limits: {"anyOf": [{"enum": list(MODES)}, NAMED_TOOL.schema(limits)]},
).otherwise(ToolChoice("auto"))
PARALLEL_TOOL_CALLS = boolean(
    "parallel_tool_calls", "Whether one answer may hold several calls."
).otherwise(True)


def offered(values: Values) -> tuple[Values, ...]:
    """The tools the template is told of."""
    return values[TOOLS] if values[TOOL_CHOICE].mode != "none" else ()


def calls_max_of(values: Values) -> int:
    """How many tool calls one text may make."""
    if not offered(values):
        return 0
    if values[TOOL_CHOICE].mode == "required":
        return 1
    return CALLS_MAX if values[PARALLEL_TOOL_CALLS] else 1


def demanded_call(values: Values) -> Grammar | None:
    """The grammar of one call, as a JSON object, where a call is demanded.

    Raises ValidationError where there is nothing to call, or for a schema no grammar is made of.
    """
    chosen, field = values[TOOL_CHOICE], values.name_of(TOOL_CHOICE)
    if chosen.mode != "required":
        return None
    functions = {tool[OFFERED_FIELD][OFFERED_NAME]: tool[OFFERED_FIELD] for tool in values[TOOLS]}
    if chosen.name:
        functions = {name: one for name, one in functions.items() if name == chosen.name}
    if not functions:
        named = chosen.name or chosen.mode
        raise refusal(field, named, "names none of `tools`", "Offer the function in `tools`")
    shared: dict[str, Json] = {}
    calls = [_call_schema(name, function, shared) for name, function in functions.items()]
    schema: Json = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema_grammar(field, {**schema, **shared})


def _call_schema(name: str, function: Values, shared: dict[str, Json]) -> Json:
    """The schema of a call of this function; the parts it names go to `shared`."""
    arguments = function[FUNCTION_SCHEMA]
    if arguments is None:
        arguments = {"type": "object"}
    field = function.name_of(FUNCTION_SCHEMA)
    schema_grammar(field, arguments)
    for path in _paths(arguments):
        # Any other path would lead elsewhere from the top of the common schema.
        if not path.startswith(tuple(f"#/{word}/" for word in NAMED_PARTS)):
            why = "names a part that a demanded call cannot name"
            raise refusal(field, {"$ref": path}, why, "Name parts below `$defs` only")
    for word in NAMED_PARTS:
        parts = cast("Mapping[str, object]", arguments.get(word) or {})
        known = shared.setdefault(word, {}) if parts else {}
        for part, meaning in parts.items():
            if known.setdefault(part, meaning) != meaning:
                raise ValidationError(
                    f"`{field}.{word}.{part}` means something else in another tool",
                    field=field,
                    remedy="Give the parts of different tools different names",
                )
    plain = {word: value for word, value in arguments.items() if word not in NAMED_PARTS}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": plain},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _paths(schema: object) -> Iterator[str]:
    """What a schema, nested no deeper than was checked, names by path."""
    if isinstance(schema, list):
        for item in cast("list[object]", schema):
            yield from _paths(item)
    elif isinstance(schema, dict):
        for word, value in cast("dict[str, object]", schema).items():
            if word == "$ref" and isinstance(value, str):
                yield value
            else:
                yield from _paths(value)
