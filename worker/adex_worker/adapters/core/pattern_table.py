"""`rank_pattern` and `alpha_pattern`: which key of the table speaks for a module.

PEFT resolves them with `re.match(rf"(.*\\.)?({key})$", path)`; the first key that matches wins. The
keys come from strangers and `re` backtracks, so a hostile key could hold a thread for years. RE2
matches the same language in time linear in the path, and refuses what it cannot (look-around, back
references) when the key is read.
"""

from collections.abc import Iterable
from typing import Protocol

import re2  # pyright: ignore[reportMissingTypeStubs]

from adex_proto.errors import AdapterMalformed, AdapterUnsupported

PATTERN_LENGTH_MAX = 256
PATTERNS_MAX = 4096
# Keys times modules: some seconds at the very worst.
COMPARISONS_MAX = 2_000_000
# Bytes of automaton a key may need; repetitions of repetitions are refused by it.
_PATTERN_BYTES_MAX = 1 << 20
# What `re` and RE2 read differently: a repetition without a lower bound, a named class.
_AMBIGUOUS = ("{,", "[[")


class _Pattern(Protocol):
    """A compiled key."""

    def match(self, path: str, /) -> object | None: ...


class PatternTable:
    """The keys of one pattern table, in the order of the config."""

    def __init__(self, keys: Iterable[str], *, field: str, file: str) -> None:
        """Raises AdapterUnsupported for a key that RE2 does not serve, or too many keys."""
        self._field, self._file = field, file
        self._patterns: list[tuple[str, _Pattern]] = []
        self._compared = 0
        for key in keys:
            if len(key) > PATTERN_LENGTH_MAX:
                raise self._refusal(key, f"is {len(key)} characters long")
            if len(self._patterns) == PATTERNS_MAX:
                raise self._refusal(key, "is one pattern too many")
            self._patterns.append((key, self._compiled(key)))

    def key_for(self, path: str) -> str | None:
        """The first key that matches the module at `path`, as PEFT chooses it, or None."""
        self._compared += len(self._patterns)
        if self._compared > COMPARISONS_MAX:
            raise AdapterUnsupported(
                f"`{self._field}` in `{self._file}` needs more than {COMPARISONS_MAX} comparisons",
                field=self._field,
                remedy="Merge its keys into fewer patterns",
            )
        return next((key for key, pattern in self._patterns if pattern.match(path)), None)

    def _compiled(self, key: str) -> _Pattern:
        for text in _AMBIGUOUS:
            if text in key:
                raise self._refusal(key, f"is not served: `{text}` has several meanings")
        options = re2.Options()
        options.log_errors = False
        options.max_mem = _PATTERN_BYTES_MAX
        try:
            compiled: _Pattern = re2.compile(rf"(.*\.)?({key})$", options)
        except re2.error as error:
            reason = error.args[0]
            shown = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
            raise self._refusal(key, f"is not served: {shown}") from error
        return compiled

    def _refusal(self, key: str, what: str) -> AdapterUnsupported:
        return AdapterUnsupported(
            f"`{self._field}` in `{self._file}`: the pattern {key[:100]!r} {what}",
            field=self._field,
            remedy=f"Use at most {PATTERNS_MAX} patterns of at most {PATTERN_LENGTH_MAX} characters"
            " in RE2's syntax, which has no look-around and no back references",
        )


def pattern_numbers(value: object, *, field: str, file: str) -> dict[str, float]:
    """The pattern table `value` as key -> number; AdapterMalformed when it is anything else."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _not_a_table(field, file, type(value).__name__)
    table: dict[str, float] = {}
    for key, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise _not_a_table(field, file, f"{str(key)[:100]!r}: {number!r:.100}")
        table[str(key)] = number
    return table


def _not_a_table(field: str, file: str, got: str) -> AdapterMalformed:
    return AdapterMalformed(
        f"`{field}` in `{file}` must map patterns to numbers, got {got}",
        field=field,
        remedy="Save the adapter again with PEFT",
    )
