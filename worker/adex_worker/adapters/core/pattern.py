"""Module patterns of an adapter's config, matched as PEFT matches them but in bounded time.

PEFT resolves `rank_pattern` and `alpha_pattern` with `re.match(rf"(.*\\.)?({key})$", path)`; the
first key that matches wins. The keys come from strangers and `re` backtracks, so a hostile key
could hold a thread for years. Here the same text is compiled to an automaton and simulated, one set
of states per character, so the cost is at most (pattern length) times (path length).

Grammar: characters, `.`, escapes of punctuation, `\\d \\w \\s` and their complements, classes
`[a-z0-9]` and `[^...]`, groups `( )` and `(?: )`, `|`, `*`, `+`, `?`, `^`, `$`. Anything else is
refused by name.
"""

import string
from collections.abc import Callable
from dataclasses import dataclass, field

PATTERN_LENGTH_MAX = 256

_DIGITS = frozenset(string.digits)
_WORD = frozenset(string.ascii_letters + string.digits + "_")
_SPACE = frozenset(string.whitespace)
_ESCAPED_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_NODES_MAX = 4 * PATTERN_LENGTH_MAX

CharTest = Callable[[str], bool]


@dataclass(slots=True)
class _Automaton:
    """Thompson's automaton: `jumps` cost no character and may hold only at an edge of the text."""

    steps: list[tuple[CharTest, int] | None] = field(default_factory=list)
    jumps: list[list[tuple[int, str]]] = field(default_factory=list)

    def node(self) -> int:
        self.steps.append(None)
        self.jumps.append([])
        return len(self.steps) - 1

    def closure(self, states: set[int], *, at_start: bool, at_end: bool) -> frozenset[int]:
        """`states` and all that can be reached from them without a character."""
        reached, pending = set(states), list(states)
        while pending:
            for target, edge in self.jumps[pending.pop()]:
                holds = not edge or (at_start if edge == "^" else at_end)
                if holds and target not in reached:
                    reached.add(target)
                    pending.append(target)
        return frozenset(reached)


class PatternRefused(ValueError):  # noqa: N818 -- it says what happened
    """The text is not a pattern of the grammar; the argument says why."""


class _Parser:
    """Recursive descent over one pattern; each rule answers (first node, last node)."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self.automaton = _Automaton()

    def parse(self) -> tuple[int, int]:
        ends = self._alternatives()
        if self._at < len(self._text):
            raise PatternRefused("unbalanced parenthesis")
        return ends

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        if not char:
            raise PatternRefused("it ends too early")
        self._at += 1
        return char

    def _link(self, source: int, target: int, edge: str = "") -> None:
        self.automaton.jumps[source].append((target, edge))

    def _alternatives(self) -> tuple[int, int]:
        first, last = self.automaton.node(), self.automaton.node()
        while True:
            start, stop = self._sequence()
            self._link(first, start)
            self._link(stop, last)
            if self._peek() != "|":
                return first, last
            self._take()

    def _sequence(self) -> tuple[int, int]:
        first = last = self.automaton.node()
        while self._peek() not in ("", "|", ")"):
            start, stop = self._repeated()
            self._link(last, start)
            last = stop
        return first, last

    def _repeated(self) -> tuple[int, int]:
        start, stop = self._atom()
        sign = self._peek()
        if sign in ("*", "+", "?"):
            self._take()
            first, last = self.automaton.node(), self.automaton.node()
            self._link(first, start)
            self._link(stop, last)
            if sign != "+":
                self._link(first, last)
            if sign != "?":
                self._link(stop, start)
            start, stop = first, last
            if self._peek() in ("*", "+", "?"):
                raise PatternRefused("lazy, possessive or multiple repeats are not served")
        if self._peek() == "{":
            raise PatternRefused("counted repeats `{m,n}` are not served")
        return start, stop

    def _atom(self) -> tuple[int, int]:
        char = self._take()
        if char == "(":
            return self._group()
        if char in ("^", "$"):
            first, last = self.automaton.node(), self.automaton.node()
            self._link(first, last, char)
            if self._peek() in ("*", "+", "?"):
                raise PatternRefused("an anchor cannot repeat")
            return first, last
        if char in ("*", "+", "?"):
            raise PatternRefused("nothing to repeat")
        if char in ("{", "}"):
            raise PatternRefused("counted repeats `{m,n}` are not served")
        return self._step(self._char_test(char))

    def _step(self, test: CharTest) -> tuple[int, int]:
        first, last = self.automaton.node(), self.automaton.node()
        if last > _NODES_MAX:
            raise PatternRefused("it is too long")
        self.automaton.steps[first] = (test, last)
        return first, last

    def _group(self) -> tuple[int, int]:
        self._depth += 1
        if self._depth > 16:
            raise PatternRefused("groups nest deeper than 16")
        if self._peek() == "?":
            self._take()
            if self._take() != ":":
                raise PatternRefused("only `(` and `(?:` groups are served")
        ends = self._alternatives()
        if self._take() != ")":
            raise PatternRefused("unbalanced parenthesis")
        self._depth -= 1
        return ends

    def _char_test(self, char: str) -> CharTest:
        if char == ".":
            return lambda c: c != "\n"
        if char == "[":
            return self._class()
        if char == "\\":
            return self._escape(self._take())
        return char.__eq__

    def _escape(self, char: str) -> CharTest:
        if char in _ESCAPED_CLASSES:
            return _ESCAPED_CLASSES[char].__contains__
        if char.lower() in _ESCAPED_CLASSES:
            excluded = _ESCAPED_CLASSES[char.lower()]
            return lambda c: c not in excluded
        if char.isalnum() or not char.isascii():
            raise PatternRefused(f"the escape `\\{char}` is not served")
        return char.__eq__

    def _class(self) -> CharTest:
        negated = self._peek() == "^"
        if negated:
            self._take()
        members: set[str] = set()
        while (char := self._take()) != "]" or not members:
            if char == "]":
                raise PatternRefused("a character class cannot begin with `]`")
            if char == "\\":
                char = self._take()
                if char in _ESCAPED_CLASSES:
                    members |= _ESCAPED_CLASSES[char]
                    continue
                if char.isalnum() or not char.isascii():
                    raise PatternRefused(f"the escape `\\{char}` is not served")
            members |= self._range(char)
        found = frozenset(members)
        return (lambda c: c not in found) if negated else found.__contains__

    def _range(self, low: str) -> set[str]:
        if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("", "]"):
            return {low}
        self._take()
        high = self._take()
        if not (low.isalnum() and high.isalnum() and low.isascii() and high.isascii()):
            raise PatternRefused(f"the range `{low}-{high}` is not served")
        if low > high:
            raise PatternRefused(f"the range `{low}-{high}` is empty")
        return {chr(code) for code in range(ord(low), ord(high) + 1)}


class SafePattern:
    """One compiled text; `matches(path)` says whether `re.match(text, path)` finds anything.

    Sets of states are remembered, so that paths which share their beginnings are quick. `work`
    counts the states visited so far: a bound on it is a bound on time.
    """

    def __init__(self, text: str) -> None:
        """Raises PatternRefused, which says why, for a text outside the grammar."""
        parser = _Parser(text)
        first, self._last = parser.parse()
        self._automaton = parser.automaton
        self._starts = {
            empty: self._automaton.closure({first}, at_start=True, at_end=empty)
            for empty in (False, True)
        }
        self._moves: dict[tuple[frozenset[int], str, bool], frozenset[int]] = {}
        self.work = 0

    def matches(self, path: str) -> bool:
        states = self._starts[not path]
        for index, char in enumerate(path):
            if self._last in states:
                return True
            if not states:
                return False
            move = states, char, index == len(path) - 1
            if move not in self._moves:
                self._moves[move] = self._moved(*move)
            states = self._moves[move]
        return self._last in states

    def _moved(self, states: frozenset[int], char: str, at_end: bool) -> frozenset[int]:
        stepped: set[int] = set()
        for state in states:
            step = self._automaton.steps[state]
            if step is not None and step[0](char):
                stepped.add(step[1])
        reached = self._automaton.closure(stepped, at_start=False, at_end=at_end)
        self.work += len(states) + len(reached)
        return reached
