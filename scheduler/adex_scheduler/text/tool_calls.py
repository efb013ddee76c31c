"""Tool calls in generated text, read as it comes; pure.

Models write a call as a JSON object with the function's name and its arguments, and differ in what
stands around it. A call is told as soon as its name and the beginning of its arguments are known,
and the arguments are passed on as they are written. What turns out to be no call is text.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from typing import cast


class CallForm(Enum):
    """How a family of models marks its calls.

    TAGGED: each between <tool_call> and </tool_call> (Hermes, Qwen). LISTED: after [TOOL_CALLS], a
    list of objects, or a name followed by its arguments (Mistral). BARE: the whole text is one
    object, or several after each other (Llama 3).
    """

    TAGGED = "tagged"
    LISTED = "listed"
    BARE = "bare"


@dataclass(frozen=True, slots=True)
class Said:
    """Text that is no part of a call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """A call of the function `name`; `index` counts the calls of one text."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """A further part of a call's arguments, as JSON text."""

    index: int
    text: str


CallEvent = Said | CallBegun | CallArguments

OPENINGS = {
    CallForm.TAGGED: "<tool_call>",
    CallForm.LISTED: "[TOOL_CALLS]",
    CallForm.BARE: "<|python_tag|>",
}
# What stands between the calls, besides white space.
SEPARATORS = {CallForm.TAGGED: "", CallForm.LISTED: "[,]", CallForm.BARE: ",;"}
CLOSING_TAG = "</tool_call>"
# Some models have special tokens for these, which would be left out of a text.
SPECIAL_MARKS = frozenset({*OPENINGS.values(), CLOSING_TAG, "[ARGS]", "[CALL_ID]"})
ARGUMENT_KEYS = ("arguments", "parameters")
# A name that grows beyond this is none.
NAME_CHARACTERS_MAX = 256
SPACE = " \t\r\n"
# A call up to its arguments, where the name comes first; and a name before bare arguments.
HEAD = re.compile(
    r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=["{])'
)
NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")


def call_form_of(template: str) -> CallForm:
    """The form that a chat template's own text shows to the model."""
    if "[TOOL_CALLS]" in template:
        return CallForm.LISTED
    return CallForm.TAGGED if "<tool_call>" in template else CallForm.BARE


class _Balance:
    """Where a JSON value ends, read a character at a time."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = self._escaped = False

    def feed(self, character: str) -> bool:
        """Whether the object, list or string is complete with this character."""
        if self._quoted:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._quoted = False
                return self._depth == 0
            return False
        if character == '"':
            self._quoted = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False


class _Place(Enum):
    """Where in the text the reader is."""

    TEXT = "text"
    BETWEEN = "between calls"
    HEAD = "before a call's arguments"
    ARGUMENTS = "in a call's arguments"
    TAIL = "after a call's arguments"


class ToolCallReader:
    """The calls and the text in one generation.

    `names` are the functions offered: an object in BARE form that names none of them is an answer
    in JSON. Calls beyond `calls_max` are left out.
    """

    def __init__(self, form: CallForm, names: Collection[str], *, calls_max: int) -> None:
        self._form = form
        self._names = frozenset(names)
        self._calls_max = calls_max
        self._place = _Place.TEXT
        self._held = ""
        self._opening = ""
        self._scanned = 0
        self._balance = _Balance()
        self._keyed = False
        self._plain = False
        self._calls = 0
        self._events: list[CallEvent] = []

    @property
    def calls(self) -> int:
        """How many calls have begun."""
        return min(self._calls, self._calls_max)

    def push(self, text: str) -> list[CallEvent]:
        """What this further text tells."""
        self._held += text
        while self._held and self._advance():
            pass
        return self._take()

    def flush(self) -> list[CallEvent]:
        """What is left when the generation has ended: a call that never began is text."""
        between = self._place is _Place.BETWEEN
        if between and not self._held.strip(SPACE + SEPARATORS[self._form]):
            self._held = self._opening = ""
        if between or self._place in (_Place.TEXT, _Place.HEAD):
            self._say(self._opening + self._held)
        self._held = self._opening = ""
        return self._take()

    def _take(self) -> list[CallEvent]:
        events, self._events = self._events, []
        return events

    def _say(self, text: str) -> None:
        # White space around calls is their form, not an answer.
        if text and (self._calls == 0 or text.strip()):
            self._events.append(Said(text))

    def _advance(self) -> bool:
        """Read on from what is held; whether anything changed."""
        match self._place:
            case _Place.TEXT:
                return self._in_text()
            case _Place.BETWEEN:
                return self._between()
            case _Place.HEAD:
                return self._in_head()
            case _Place.ARGUMENTS:
                return self._in_arguments()
            case _Place.TAIL:
                return self._in_tail()

    def _in_text(self) -> bool:
        if self._plain:
            self._say(self._held)
            self._held = ""
            return False
        if self._form is CallForm.BARE:
            return self._at_the_beginning()
        opening = OPENINGS[self._form]
        text, found, rest = self._held.partition(opening)
        if not found:
            kept = _overlap(self._held, opening)
            if self._calls and not self._held.strip():
                kept = len(self._held)
            self._say(self._held[: len(self._held) - kept])
            self._held = self._held[len(self._held) - kept :]
            return False
        self._say(text)
        self._held, self._opening, self._place = rest, found, _Place.BETWEEN
        return True

    def _at_the_beginning(self) -> bool:
        """In BARE form only a text that begins with a call holds any."""
        begun, opening = self._held.lstrip(SPACE), OPENINGS[self._form]
        if begun.startswith(opening):
            self._held, self._place = begun.removeprefix(opening), _Place.BETWEEN
        elif begun.startswith("{"):
            self._held, self._place = begun, _Place.BETWEEN
        elif opening.startswith(begun):
            return False
        else:
            self._plain = True
        return True

    def _between(self) -> bool:
        held = self._held.lstrip(SPACE + SEPARATORS[self._form])
        if held.startswith("{"):
            self._held = held
            self._begin(_Place.HEAD)
            return True
        if self._form is CallForm.TAGGED and CLOSING_TAG.startswith(held[: len(CLOSING_TAG)]):
            if len(held) < len(CLOSING_TAG):
                return False
            self._held, self._opening = held.removeprefix(CLOSING_TAG), ""
            self._place = _Place.TEXT
            return True
        if not held:
            return False
        if self._form is CallForm.LISTED and len(held) <= NAME_CHARACTERS_MAX:
            named = NAMED.match(held)
            if named is None:
                return False
            self._held = held[named.end() :]
            self._call(named[1], keyed=False)
            return True
        self._say(self._opening)
        self._opening = ""
        self._place, self._plain = _Place.TEXT, self._form is CallForm.BARE
        return True

    def _begin(self, place: _Place, depth: int = 0) -> None:
        self._place, self._scanned, self._balance = place, 0, _Balance(depth)

    def _call(self, name: str, *, keyed: bool) -> None:
        if self._calls < self._calls_max:
            self._events.append(CallBegun(self._calls, name))
        self._keyed, self._opening = keyed, ""
        self._begin(_Place.ARGUMENTS)

    def _pass_on(self, text: str) -> None:
        if self._calls < self._calls_max:
            self._events.append(CallArguments(self._calls, text))

    def _scan(self) -> bool:
        """Read what is new of the value; whether it is complete, up to `_scanned`."""
        while self._scanned < len(self._held):
            self._scanned += 1
            if self._balance.feed(self._held[self._scanned - 1]):
                return True
        return False

    def _in_head(self) -> bool:
        head = HEAD.match(self._held)
        if head is not None and self._offered(name := _unquoted(head[1])):
            self._held = self._held[head.end() :]
            self._call(name, keyed=True)
            return True
        if not self._scan():
            return False
        text, self._held = self._held[: self._scanned], self._held[self._scanned :]
        self._place = _Place.BETWEEN
        call = _whole_call(text)
        if call is not None and self._offered(call[0]):
            self._call(call[0], keyed=False)
            self._pass_on(call[1])
            self._calls += 1
            self._place = _Place.BETWEEN
        else:
            self._say(self._opening + text)
            self._opening = ""
            if self._form is CallForm.BARE:
                self._place, self._plain = _Place.TEXT, True
        return True

    def _offered(self, name: str) -> bool:
        return self._form is not CallForm.BARE or name in self._names

    def _in_arguments(self) -> bool:
        as_text = self._held.startswith('"')
        over = self._scan()
        if as_text and not over:
            return False
        text, self._held = self._held[: self._scanned], self._held[self._scanned :]
        self._scanned = 0
        self._pass_on(_unquoted(text) if as_text else text)
        if over:
            self._calls += 1
            self._begin(_Place.TAIL if self._keyed else _Place.BETWEEN, 1)
        return over

    def _in_tail(self) -> bool:
        over = self._scan()
        self._held = self._held[self._scanned :]
        self._scanned = 0
        if over:
            self._place = _Place.BETWEEN
        return over


def _overlap(text: str, opening: str) -> int:
    """How many characters at the end of `text` may be the beginning of `opening`."""
    for count in range(min(len(text), len(opening) - 1), 0, -1):
        if opening.startswith(text[-count:]):
            return count
    return 0


def _whole_call(text: str) -> tuple[str, str] | None:
    """(name, arguments as JSON text) of an object in which they stand in another order."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    call = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    name = call.get("name")
    for key in ARGUMENT_KEYS:
        if isinstance(name, str) and key in call:
            arguments = call[key]
            return name, arguments if isinstance(arguments, str) else json.dumps(arguments)
    return None


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        return text
