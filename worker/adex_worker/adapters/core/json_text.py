"""JSON from strangers: bounded depth, no duplicate keys, no NaN, one typed error for all faults."""

import json
import re
from typing import Any, NoReturn

from adex_proto.errors import AdapterMalformed

DEPTH_MAX = 32

# Strings are matched whole so that brackets inside them do not count as nesting.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


def parse_object(text: bytes, file: str, remedy: str) -> dict[str, Any]:
    """The JSON object in `text`; AdapterMalformed names `file` and what is wrong with it."""
    if _depth(text) > DEPTH_MAX:
        raise AdapterMalformed(
            f"`{file}` nests deeper than {DEPTH_MAX} levels", field=file, remedy=remedy
        )
    try:
        value = json.loads(
            text.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_not_a_number
        )
    except (ValueError, RecursionError) as error:
        raise AdapterMalformed(
            f"`{file}` is not valid JSON: {str(error)[:200]}", field=file, remedy=remedy
        ) from error
    if not isinstance(value, dict):
        raise AdapterMalformed(
            f"`{file}` must hold a JSON object, got {type(value).__name__}",
            field=file,
            remedy=remedy,
        )
    return value


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        token = match.group()
        if token in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif token in (b"]", b"}"):
            depth -= 1
    return deepest


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:200]!r} appears twice")
            seen.add(key)
    return members


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")
