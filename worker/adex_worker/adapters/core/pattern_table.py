"""`rank_pattern` and `alpha_pattern`: which key of the table speaks for a module."""

import re
from collections.abc import Callable, Iterable

from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.core.pattern import PATTERN_LENGTH_MAX, PatternRefused, SafePattern

PATTERNS_MAX = 4096
# A plain key costs one comparison; a rich one a simulation per module.
RICH_PATTERNS_MAX = 64
# Plain comparisons and states of simulations together: about a second at the very worst.
WORK_MAX = 2_000_000

# A key of these alone cannot make `re` backtrack: only the `(.*\\.)?` before it can move.
_PLAIN = re.compile(r"(?:[A-Za-z0-9_.-]|\\\.)+")


class PatternTable:
    """The keys of one pattern table, in the order of the config."""

    def __init__(self, keys: Iterable[str], *, field: str, file: str) -> None:
        """Raises AdapterUnsupported for a key outside the grammar or too many keys."""
        self._field, self._file = field, file
        self._matchers: list[tuple[str, Callable[[str], bool]]] = []
        self._rich: list[SafePattern] = []
        self._compared = 0
        for key in keys:
            if len(key) > PATTERN_LENGTH_MAX:
                raise self._refusal(key, f"is {len(key)} characters long")
            self._matchers.append((key, self._matcher(key)))
            if len(self._rich) > RICH_PATTERNS_MAX or len(self._matchers) > PATTERNS_MAX:
                raise self._refusal(key, "is one pattern too many")

    def key_for(self, path: str) -> str | None:
        """The first key that matches the module at `path`, as PEFT chooses it, or None."""
        self._compared += len(self._matchers)
        if self._compared + sum(pattern.work for pattern in self._rich) > WORK_MAX:
            raise AdapterUnsupported(
                f"`{self._field}` in `{self._file}` needs more than {WORK_MAX} comparisons",
                field=self._field,
                remedy="Merge its keys into fewer patterns",
            )
        return next((key for key, matches in self._matchers if matches(path)), None)

    def _matcher(self, key: str) -> Callable[[str], bool]:
        text = rf"(.*\.)?({key})$"
        if _PLAIN.fullmatch(key):
            compiled = re.compile(text)
            return lambda path: compiled.match(path) is not None
        try:
            pattern = SafePattern(text)
        except PatternRefused as reason:
            raise self._refusal(key, f"is not served: {reason}") from reason
        self._rich.append(pattern)
        return pattern.matches

    def _refusal(self, key: str, what: str) -> AdapterUnsupported:
        return AdapterUnsupported(
            f"`{self._field}` in `{self._file}`: the pattern {key[:100]!r} {what}",
            field=self._field,
            remedy=f"Use at most {PATTERNS_MAX} patterns of at most {PATTERN_LENGTH_MAX} characters"
            f" ({RICH_PATTERNS_MAX} with more than letters, digits, `_`, `-` and `.`),"
            " built from `.`, `.*`, `\\d`, classes, groups and `|`",
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
