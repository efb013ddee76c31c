"""What is typed into a chat, and what is remembered of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex.cli.conversation import Conversation, Word, read_line


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("", (Word.NOTHING, "")),
        ("  \n", (Word.NOTHING, "")),
        (" hello there ", (Word.SAY, "hello there")),
        ("//adapter is a word", (Word.SAY, "/adapter is a word")),
        ("/adapter  tone ", (Word.ADAPTER, "tone")),
        ("/adapter", (Word.ADAPTER, "")),
        ("/adapters", (Word.ADAPTERS, "")),
        ("/reset", (Word.RESET, "")),
        ("/help", (Word.HELP, "")),
        ("/quit", (Word.QUIT, "")),
        ("/exit", (Word.QUIT, "")),
        ("/adaptertone", (Word.UNKNOWN, "/adaptertone")),
    ],
)
def test_a_line_is_a_message_or_a_command(line: str, read: tuple[Word, str]) -> None:
    assert read_line(line) == read


@given(st.text())
def test_every_line_is_read_as_something(line: str) -> None:
    word, rest = read_line(line)
    assert (word is Word.SAY) <= bool(rest)


@given(st.lists(st.tuples(st.text(min_size=1), st.text())))
def test_the_messages_take_turns_whatever_went_unanswered(turns: list[tuple[str, str]]) -> None:
    talk = Conversation()
    for question, answer in turns:
        roles = [message["role"] for message in talk.ask(question)]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
        talk.answered(answer)


def test_what_was_sent_does_not_change_with_the_conversation() -> None:
    talk = Conversation()
    sent = talk.ask("one")
    talk.answered("1")
    assert sent == [{"role": "user", "content": "one"}]


def test_a_reset_keeps_the_adapter_and_the_system_message() -> None:
    talk = Conversation("tone", "be kind")
    talk.ask("one")
    talk.answered("1")
    talk.reset()
    assert (talk.who, [message["content"] for message in talk.ask("two")]) == (
        "tone",
        ["be kind", "two"],
    )
