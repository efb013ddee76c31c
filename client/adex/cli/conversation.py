"""A conversation and the words typed into it; pure, so that every turn can be tested."""

from dataclasses import dataclass, field
from enum import Enum

from adex.types import Message

HELP = (
    "/adapter NAME switches the adapter, /adapter alone goes back to the base model, "
    "/adapters lists them, /reset forgets the conversation, /quit ends; "
    "Ctrl-C stops an answer"
)


class Word(Enum):
    """What a typed line asks for."""

    SAY = "say"
    ADAPTER = "/adapter"
    ADAPTERS = "/adapters"
    RESET = "/reset"
    HELP = "/help"
    QUIT = "/quit"
    UNKNOWN = "unknown"
    NOTHING = "nothing"


def read_line(line: str) -> tuple[Word, str]:
    """What a typed line asks for, and the rest of it; `//` begins a message with a slash."""
    text = line.strip()
    if not text:
        return Word.NOTHING, ""
    if not text.startswith("/"):
        return Word.SAY, text
    if text.startswith("//"):
        return Word.SAY, text[1:]
    name, _, rest = text.partition(" ")
    commands = {word.value: word for word in Word if word.value.startswith("/")}
    commands["/exit"] = Word.QUIT
    word = commands.get(name, Word.UNKNOWN)
    return word, text if word is Word.UNKNOWN else rest.strip()


@dataclass(slots=True)
class Conversation:
    """The messages so far and the adapter that answers next."""

    adapter_id: str | None = None
    system: str | None = None
    _turns: list[Message] = field(default_factory=list[Message])

    def ask(self, text: str) -> list[Message]:
        """Add what the user says; the messages to send."""
        self._turns.append({"role": "user", "content": text})
        first: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return first + self._turns

    def answered(self, text: str) -> None:
        """Add what was answered; an answer without a word takes the question back with it."""
        if text:
            self._turns.append({"role": "assistant", "content": text})
        else:
            self._turns.pop()

    def reset(self) -> None:
        """Forget every message; the adapter stays."""
        self._turns.clear()

    @property
    def who(self) -> str:
        """Who answers next."""
        return self.adapter_id or "base"
