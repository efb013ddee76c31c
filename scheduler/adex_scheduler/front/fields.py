"""Fields of request bodies, each declared once: its name, type, range, default and meaning.

A `Table` lists the fields of one JSON object. The same declarations read a body (`Table.read`),
which checks every field exactly once, and describe it (`Table.schema`) in JSON Schema 2020-12. A
missing field and an explicit null mean the same, because clients send both. Fields that no
declaration names have no effect and are kept by name, so that a reply can say so.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from adex_proto.errors import ValidationError
from adex_scheduler.front.body import KINDS, refusal, whole_text

Json = dict[str, object]
T = TypeVar("T")
D = TypeVar("D")
# Beyond this many characters nobody has meant a name, a token or a key.
WORD_CHARACTERS_MAX = 1024


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on single fields of a request."""

    stops_max: int = 16
    stop_characters_max: int = 512
    sequences_max: int = 16
    messages_max: int = 4096
    tools_max: int = 128


Check = Callable[[str, object, RequestLimits], T]
Schema = Callable[[RequestLimits], Json]


@dataclass(frozen=True, slots=True, eq=False)
class Field(Generic[T]):
    """One declared field. `check` judges a value that is not null and gives what it means.

    `schema` describes such a value. `missing` is the remedy where the field must be given.
    """

    name: str
    about: str
    check: Check[T]
    schema: Schema
    default: T
    missing: str = ""

    def otherwise(self: "Field[D | None]", default: D) -> "Field[D]":
        """The same field, with what is meant when it is not given."""
        check = cast("Check[D]", self.check)
        return Field(self.name, self.about, check, self.schema, default)

    def demanded(self: "Field[D | None]", remedy: str) -> "Field[D]":
        """The same field, which must be given."""
        check, nothing = cast("Check[D]", self.check), cast("D", None)
        return Field(self.name, self.about, check, self.schema, nothing, remedy)

    def described(self, limits: RequestLimits) -> Json:
        """The field's JSON Schema: null means that it is not given."""
        schema = dict(self.schema(limits))
        if not self.missing:
            schema = _nullable(schema)
        if self.about:
            schema["description"] = self.about
        if isinstance(self.default, bool | int | float | str):
            schema["default"] = self.default
        return schema


class Values:
    """The checked fields of one object; `raw` is the object as it came."""

    __slots__ = ("_found", "ignored", "path", "raw")

    def __init__(
        self, raw: Mapping[str, object], path: str, found: Mapping[str, Any], ignored: Sequence[str]
    ) -> None:
        self.raw = raw
        self.path = path
        self._found = found
        self.ignored = tuple(ignored)

    def __getitem__(self, field: Field[T]) -> T:
        """What was given, or the field's default."""
        found: T = self._found.get(field.name, field.default)
        return found

    def name_of(self, field: Field[Any]) -> str:
        """The field's full name, as errors call it."""
        return _joined(self.path, field.name)


class Table:
    """The fields of one kind of object; `name` is what the description calls it."""

    def __init__(self, name: str, *fields: Field[Any]) -> None:
        self.name = name
        self.fields = {field.name: field for field in fields}
        assert len(self.fields) == len(fields), f"{name} declares a field twice"

    def read(self, raw: Mapping[str, object], limits: RequestLimits, path: str = "") -> Values:
        """Every field checked. Raises ValidationError for the first that is wrong."""
        found: dict[str, Any] = {}
        ignored: list[str] = []
        for field in self.fields.values():
            value = raw.get(field.name)
            if value is not None:
                checked = field.check(_joined(path, field.name), value, limits)
                found[field.name] = checked
                if isinstance(checked, Values):
                    ignored += checked.ignored
            elif field.missing:
                name = _joined(path, field.name)
                raise ValidationError(f"`{name}` is missing", field=name, remedy=field.missing)
        for name, value in raw.items():
            if value is not None and name not in self.fields:
                ignored.append(_joined(path, name))
        return Values(raw, path, found, sorted(ignored))

    def schema(self, limits: RequestLimits) -> Json:
        """The object's JSON Schema."""
        described: Json = {
            "type": "object",
            "properties": {field.name: field.described(limits) for field in self.fields.values()},
        }
        required = [field.name for field in self.fields.values() if field.missing]
        return {**described, "required": required} if required else described


def custom(name: str, about: str, check: Check[T], schema: Json | Schema) -> Field[T | None]:
    """A field with a check of its own."""
    describe: Schema = schema if callable(schema) else lambda _: dict(schema)
    return Field(name, about, check, describe, None)


def string(name: str, about: str = "", *, least: int = 0, most: int = 0) -> Field[str | None]:
    """Whole text: no lone surrogates, which no encoding can carry. `most` 0: only the body's."""

    def check(field: str, value: object, _: RequestLimits) -> str:
        if not isinstance(value, str):
            raise _wrong(field, value, str)
        if len(value) < least:
            raise ValidationError(
                f"`{field}` cannot be empty", field=field, remedy="Send at least one character"
            )
        if most and len(value) > most:
            raise ValidationError(
                f"`{field}` has {len(value)} characters, more than {most}",
                field=field,
                remedy="Send a shorter one",
            )
        return whole_text(field, value)

    bounds: Json = {"minLength": least} if least else {}
    if most:
        bounds["maxLength"] = most
    return custom(name, about, check, {"type": "string", **bounds})


def boolean(name: str, about: str = "") -> Field[bool | None]:
    """True or false."""

    def check(field: str, value: object, _: RequestLimits) -> bool:
        if not isinstance(value, bool):
            raise _wrong(field, value, bool)
        return value

    return custom(name, about, check, {"type": "boolean"})


def integer(
    name: str, about: str = "", *, low: int | None = None, high: int | None = None
) -> Field[int | None]:
    """A whole number within the bounds; 5.0 is one, true is not."""

    def check(field: str, value: object, _: RequestLimits) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong(field, value, int)
        _within(field, value, low, high)
        return value

    return custom(name, about, check, {"type": "integer", **_bounds(low, high)})


def number(
    name: str,
    about: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: bool = False,
) -> Field[float | None]:
    """A finite number within the bounds; `above`: the lower bound itself is outside."""

    def check(field: str, value: object, _: RequestLimits) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise _wrong(field, value, float)
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise refusal(field, value, "must be finite", "Send a finite number")
        _within(field, found, low, high, above=above)
        return found

    return custom(name, about, check, {"type": "number", **_bounds(low, high, above=above)})


def choice(name: str, about: str, options: Mapping[str, str]) -> Field[str | None]:
    """One of the words in `options`, each with what it stands for."""

    def check(field: str, value: object, _: RequestLimits) -> str:
        if not isinstance(value, str) or value not in options:
            words = ", ".join(options)
            raise refusal(field, value, f"must be one of {words}", "Send one of these")
        return options[value]

    return custom(name, about, check, {"type": "string", "enum": list(options)})


def integers(
    name: str, about: str = "", *, low: int = 0, high: int, most: int
) -> Field[tuple[int, ...] | None]:
    """A list of at most `most` whole numbers within the bounds."""
    one = integer("item", low=low, high=high)

    def check(field: str, value: object, limits: RequestLimits) -> tuple[int, ...]:
        items = listed(field, value, most)
        return tuple([cast("int", one.check(field, item, limits)) for item in items])

    schema: Json = {"type": "array", "items": one.schema(RequestLimits()), "maxItems": most}
    return custom(name, about, check, schema)


def nested(name: str, about: str, table: Table) -> Field[Values | None]:
    """An object with fields of its own."""

    def check(field: str, value: object, limits: RequestLimits) -> Values:
        return table.read(an_object(field, value), limits, field)

    return custom(name, about, check, table.schema)


def an_object(field: str, value: object) -> Mapping[str, object]:
    """`value`, which must be an object."""
    if not isinstance(value, dict):
        raise _wrong(field, value, dict)
    return cast("dict[str, object]", value)


def listed(field: str, value: object, most: int) -> list[object]:
    """`value`, which must be a list of at most `most`."""
    if not isinstance(value, list):
        raise _wrong(field, value, list)
    items = cast("list[object]", value)
    if len(items) > most:
        raise ValidationError(
            f"`{field}` takes at most {most}. Given: {len(items)}",
            field=field,
            remedy=f"Send at most {most}",
        )
    return items


def refused(
    name: str, remedy: str, *, but: tuple[object, ...] = (), about: str = "Not served."
) -> Field[None]:
    """A field this server knows and does not serve: anything but null and `but` is an error."""

    def check(field: str, value: object, _: RequestLimits) -> None:
        if not any(type(value) is type(ok) and value == ok for ok in but):
            raise refusal(field, value, "is not served", remedy)

    return Field(name, about, check, lambda _: {"enum": [*but]}, None)


def idle(name: str) -> Field[None]:
    """A field that is taken and cannot change the text."""

    def check(field: str, value: object, limits: RequestLimits) -> None:
        del field, value, limits

    return Field(name, "Taken, without effect.", check, lambda _: {}, None)


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _nullable(schema: Json) -> Json:
    if "enum" in schema:
        without = {key: value for key, value in schema.items() if key != "type"}
        return {**without, "enum": [*cast("list[object]", schema["enum"]), None]}
    if isinstance(schema.get("type"), str):
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]} if schema else {}


def _bounds(low: float | None, high: float | None, *, above: bool = False) -> Json:
    bounds: Json = {}
    if low is not None:
        bounds["exclusiveMinimum" if above else "minimum"] = low
    if high is not None:
        bounds["maximum"] = high
    return bounds


def _within(
    field: str, value: float, low: float | None, high: float | None, *, above: bool = False
) -> None:
    high_enough = low is None or (value > low if above else value >= low)
    if high_enough and (high is None or value <= high):
        return
    bounds = " and ".join(
        text
        for text in (
            None if low is None else f"{'>' if above else '>='} {low:.20g}",
            None if high is None else f"<= {high:.20g}",
        )
        if text
    )
    raise refusal(field, value, f"must be {bounds}", f"Send a value {bounds}")


def _wrong(field: str, value: object, kind: type) -> ValidationError:
    wanted = KINDS[kind]
    return refusal(field, value, f"must be {wanted}", f"Send {wanted} or null")
