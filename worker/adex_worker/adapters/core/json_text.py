"""JSON from strangers: bounded, each key once, no NaN, one typed error for all faults."""

import json
import re
from typing import Any, NoReturn

from adex_proto.errors import AdapterMalformed

DEPTH_MAX = 32

# Marks one by one, for an expression that matches whole strings keeps a note of each character.
_MARK = re.compile(rb'\\.|["\[\]{}:]', re.DOTALL)


def parse_object(text: bytes, file: str, remedy: str, *, members_max: int) -> dict[str, Any]:
    """The JSON object in `text`; AdapterMalformed names `file` and what is wrong with it.

    `members_max` bounds the members of all objects together, before any of them takes memory.
    """
    excess = _excess(text, members_max)
    if excess is not None:
        raise AdapterMalformed(f"`{file}` {excess}", field=file, remedy=remedy)
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


def _excess(text: bytes, members_max: int) -> str | None:
    """What there is too much of, or None."""
    depth = members = 0
    inside = False
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark == b'"':
            inside = not inside
        elif inside:
            continue
        elif mark in (b"[", b"{"):
            depth += 1
            if depth > DEPTH_MAX:
                return f"nests deeper than {DEPTH_MAX} levels"
        elif mark in (b"]", b"}"):
            depth -= 1
        elif mark == b":":
            members += 1
            if members > members_max:
                return f"has more than {members_max} members"
    return None


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
