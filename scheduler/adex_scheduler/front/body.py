"""A request's body as one JSON object, and the errors that name what is wrong with it; pure."""

import json
from collections.abc import Mapping
from typing import cast

from adex_proto.errors import ValidationError

# Enough of a value to recognise it by; a prompt must not come back whole in an error.
SHOWN_CHARACTERS_MAX = 60
KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class MalformedBodyError(ValidationError):
    """The body is not a JSON object at all."""


def read_object(body: bytes) -> Mapping[str, object]:
    """The JSON object a request body holds. Raises MalformedBodyError."""
    try:
        value: object = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise MalformedBodyError(
            f"the body is not JSON: {reason}", remedy="Send one JSON object in UTF-8"
        ) from error
    if not isinstance(value, dict):
        raise MalformedBodyError(
            f"the body must be a JSON object, got {kind_of(value)}", remedy="Send one JSON object"
        )
    return cast("dict[str, object]", value)


def shown(value: object) -> str:
    """A value as errors quote it: short, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except RecursionError:
        # Reading goes deeper than writing, so that some values can come in and not go out.
        return f"{kind_of(value)}, nested too deeply"
    if len(text) > SHOWN_CHARACTERS_MAX:
        return f"{text[:SHOWN_CHARACTERS_MAX]}... ({kind_of(value)})"
    return text


def refusal(field: str, value: object, why: str, remedy: str) -> ValidationError:
    """The error that names field, value and remedy."""
    return ValidationError(f"`{field}` {why}, got {shown(value)}", field=field, remedy=remedy)


def whole_text(field: str, text: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(
            field, text[error.start : error.end], "holds half a character", "Send valid Unicode"
        ) from error
    return text


def kind_of(value: object) -> str:
    """What sort of JSON value it is, in words."""
    for kind, name in KINDS.items():
        if isinstance(value, kind):
            return name
    return "null"


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")
