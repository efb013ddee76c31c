"""What a caller may require of a text as a whole."""

from dataclasses import dataclass, field
from enum import Enum

from adex_proto.errors import ValidationError

GRAMMAR_BYTES_MAX = 65536


class GrammarKind(Enum):
    """In which language a grammar is written.

    JSON_SCHEMA: a JSON Schema, and the text is one JSON value of it. REGEX: a regular expression
    that the whole text matches. CHOICE: a JSON list of texts, of which the text is one. LARK: a
    context-free grammar in Lark's notation, from its rule `start`.
    """

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What every text of a sequence must belong to, in a bounded number of bytes."""

    kind: GrammarKind
    # As private as a prompt.
    text: str = field(repr=False)

    def __post_init__(self) -> None:
        size = len(self.text.encode())
        if not 0 < size <= GRAMMAR_BYTES_MAX:
            raise ValidationError(
                f"`grammar` has {size} bytes, where 1 to {GRAMMAR_BYTES_MAX} are read",
                field="grammar",
                remedy="Send a smaller one",
            )
