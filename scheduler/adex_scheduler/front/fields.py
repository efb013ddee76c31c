"""One JSON object read field by field; what is wrong is named with its value and a remedy.

A missing field and an explicit null mean the same everywhere, because clients send both. Fields
nobody asked for are kept by name, so that a reply can say what had no effect.
"""

import json
import math
from collections.abc import Mapping
from typing import Self, cast

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
            f"the body must be a JSON object, got {_kind(value)}", remedy="Send one JSON object"
        )
    return cast("dict[str, object]", value)


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON number")


def shown(value: object) -> str:
    """A value as errors quote it: short, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=True, default=repr)
    except RecursionError:
        # Reading goes deeper than writing, so that some values can come in and not go out.
        return f"{_kind(value)}, nested too deeply"
    if len(text) > SHOWN_CHARACTERS_MAX:
        return f"{text[:SHOWN_CHARACTERS_MAX]}... ({_kind(value)})"
    return text


def refusal(field: str, value: object, why: str, remedy: str) -> ValidationError:
    """The error that names field, value and remedy."""
    return ValidationError(f"`{field}` {why}, got {shown(value)}", field=field, remedy=remedy)


class Fields:
    """The fields of one object. `path` is where it stands in the body, for errors."""

    def __init__(self, values: Mapping[str, object], path: str = "") -> None:
        self._values = values
        self._path = path
        self._asked: set[str] = set()

    def value(self, name: str) -> object | None:
        """The bare value; None where it is missing or null."""
        self._asked.add(name)
        return self._values.get(name)

    def names(self) -> tuple[str, ...]:
        """The names of all fields, in the order they were sent."""
        return tuple(self._values)

    def name_of(self, name: str) -> str:
        """The field's full name, as errors call it."""
        return f"{self._path}.{name}" if self._path else name

    def string(self, name: str) -> str | None:
        """A string that is whole text: no lone surrogates, which no encoding can carry."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self._wrong(name, value, str)
        return whole_text(self.name_of(name), value)

    def boolean(self, name: str) -> bool | None:
        """True, false or None."""
        value = self.value(name)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(name, value, bool)

    def integer(self, name: str, low: int | None = None, high: int | None = None) -> int | None:
        """A whole number within the bounds; 5.0 is one, true is not."""
        value = self.value(name)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self._wrong(name, value, int)
        self._bounded(name, value, low, high)
        return value

    def number(
        self, name: str, low: float | None = None, high: float | None = None
    ) -> float | None:
        """A finite number within the bounds."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, value, float)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise refusal(self.name_of(name), value, "must be finite", "Send a finite number")
        self._bounded(name, number, low, high)
        return number

    def strings(self, name: str, *, or_one: bool = False) -> tuple[str, ...] | None:
        """A list of strings; with `or_one` a bare string counts as a list of it."""
        value = self.value(name)
        if value is None:
            return None
        if or_one and isinstance(value, str):
            value = [value]
        if not isinstance(value, list):
            raise self._wrong(name, value, list)
        items = cast("list[object]", value)
        for item in items:
            if not isinstance(item, str):
                raise refusal(
                    self.name_of(name), value, "must be a list of strings", "Send only strings"
                )
        return tuple(
            whole_text(self.name_of(name), item) for item in items if isinstance(item, str)
        )

    def integers(self, name: str) -> tuple[int, ...] | None:
        """A list of whole numbers."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong(name, value, list)
        items = cast("list[object]", value)
        found = [item for item in items if isinstance(item, int) and not isinstance(item, bool)]
        if len(found) != len(items):
            raise refusal(
                self.name_of(name), value, "must be a list of whole numbers", "Send whole numbers"
            )
        return tuple(found)

    def nested(self, name: str) -> Self | None:
        """The object under `name`."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self._wrong(name, value, dict)
        return type(self)(cast("dict[str, object]", value), self.name_of(name))

    def objects(self, name: str) -> list[Self] | None:
        """The objects listed under `name`."""
        value = self.value(name)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self._wrong(name, value, list)
        found: list[Self] = []
        for index, item in enumerate(cast("list[object]", value)):
            path = f"{self.name_of(name)}[{index}]"
            if not isinstance(item, dict):
                raise refusal(path, item, "must be an object", "Send an object")
            found.append(type(self)(cast("dict[str, object]", item), path))
        return found

    def refuse(self, name: str, *, but: tuple[object, ...] = (), remedy: str) -> None:
        """Refuse a field this server does not serve, unless it is null or one of `but`."""
        value = self.value(name)
        if value is None or any(type(value) is type(ok) and value == ok for ok in but):
            return
        raise refusal(self.name_of(name), value, "is not served", remedy)

    def unasked(self) -> tuple[str, ...]:
        """Names of non-null fields that nobody read: they have no effect."""
        return tuple(
            sorted(
                self.name_of(name)
                for name, value in self._values.items()
                if value is not None and name not in self._asked
            )
        )

    def _bounded(self, name: str, value: float, low: float | None, high: float | None) -> None:
        if (low is None or value >= low) and (high is None or value <= high):
            return
        bounds = " and ".join(
            text
            for text in (
                None if low is None else f">= {low:g}",
                None if high is None else f"<= {high:g}",
            )
            if text
        )
        raise refusal(self.name_of(name), value, f"must be {bounds}", f"Send a value {bounds}")

    def _wrong(self, name: str, value: object, kind: type) -> ValidationError:
        wanted = KINDS[kind]
        return refusal(self.name_of(name), value, f"must be {wanted}", f"Send {wanted} or null")


def whole_text(field: str, text: str) -> str:
    """`text`, unless it holds half of a surrogate pair, which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise refusal(
            field, text[error.start : error.end], "holds half a character", "Send valid Unicode"
        ) from error
    return text


def _kind(value: object) -> str:
    for kind, name in KINDS.items():
        if isinstance(value, kind):
            return name
    return "null"
