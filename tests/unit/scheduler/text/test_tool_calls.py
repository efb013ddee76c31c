"""Tool calls in the text of models of three families, whole and in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex_scheduler.text.tool_calls import (
    CallArguments,
    CallBegun,
    CallEvent,
    CallForm,
    Said,
    ToolCallReader,
    call_form_of,
)

WEATHER = {"city": 'Zürich "am See" {', "days": [1, {"n": 2}], "note": "a\\b"}
ARGUMENTS = json.dumps(WEATHER, ensure_ascii=False)


def read(form: CallForm, pieces: list[str], calls_max: int = 8) -> list[CallEvent]:
    reader = ToolCallReader(form, ["weather", "time"], calls_max=calls_max)
    events = [event for piece in pieces for event in reader.push(piece)]
    return [*events, *reader.flush()]


def told(events: list[CallEvent]) -> tuple[str, list[tuple[str, Any]]]:
    """(the text, the calls by name and arguments)."""
    text, calls = "", list[tuple[str, str]]()
    for event in events:
        match event:
            case Said():
                text += event.text
            case CallBegun():
                assert event.index == len(calls)
                calls.append((event.name, ""))
            case CallArguments():
                name, arguments = calls[event.index]
                calls[event.index] = (name, arguments + event.text)
    return text, [(name, json.loads(arguments)) for name, arguments in calls]


CALLS = [
    (
        CallForm.TAGGED,
        f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS}}}\n</tool_call>',
    ),
    (CallForm.TAGGED, f'<tool_call>{{"arguments": {ARGUMENTS}, "name": "weather"}}</tool_call>'),
    (CallForm.TAGGED, f'<tool_call>{{"name": "weather", "arguments": {ARGUMENTS}'),
    (CallForm.LISTED, f'[TOOL_CALLS][{{"name": "weather", "arguments": {ARGUMENTS}, "id": "a"}}]'),
    (CallForm.LISTED, f"[TOOL_CALLS]weather[ARGS]{ARGUMENTS}"),
    (CallForm.LISTED, f"[TOOL_CALLS] weather[CALL_ID]abcdefghi[ARGS]{ARGUMENTS}"),
    (CallForm.BARE, f'{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    (CallForm.BARE, f' <|python_tag|>{{"name": "weather", "parameters": {ARGUMENTS}}}'),
    (
        CallForm.BARE,
        f'{{"type": "function", "name": "weather", "parameters": {json.dumps(ARGUMENTS)}}}',
    ),
]


@pytest.mark.parametrize(("form", "text"), CALLS)
def test_a_call_is_read_in_every_form(form: CallForm, text: str) -> None:
    assert told(read(form, [text])) == ("", [("weather", WEATHER)])


@pytest.mark.parametrize(("form", "text"), CALLS)
@given(data=st.data())
def test_a_call_reads_the_same_however_the_text_was_cut(
    form: CallForm, text: str, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert told(read(form, pieces)) == told(read(form, [text]))


def test_arguments_are_passed_on_as_they_are_written() -> None:
    reader = ToolCallReader(CallForm.TAGGED, (), calls_max=1)
    assert reader.push('<tool_call>{"name": "f", "arguments": {"a"') == [
        CallBegun(0, "f"),
        CallArguments(0, '{"a"'),
    ]
    assert reader.push(": 1}") == [CallArguments(0, ": 1}")]


def test_text_before_and_several_calls_after_it() -> None:
    call = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'
    text, calls = told(read(CallForm.TAGGED, [f"Let me see.\n{call}\n{call}"]))
    assert text == "Let me see.\n"
    assert calls == [("time", {}), ("time", {})]
    listed = '[TOOL_CALLS][{"name": "time", "arguments": {}}, {"name": "time", "arguments": {}}]'
    assert len(told(read(CallForm.LISTED, [listed]))[1]) == 2
    bare = '{"name": "time", "parameters": {}}; {"name": "time", "parameters": {}}'
    assert len(told(read(CallForm.BARE, [bare]))[1]) == 2


def test_calls_beyond_the_most_are_left_out() -> None:
    call = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    assert told(read(CallForm.TAGGED, [call * 3], calls_max=1)) == ("", [("time", {})])


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (CallForm.BARE, '{"name": "Bob", "parameters": {"age": 3}}'),
        (CallForm.BARE, '{"answer": 42}'),
        (CallForm.BARE, "A brace { is no call"),
        (CallForm.TAGGED, "1 <tool_calls and < 2"),
        (CallForm.TAGGED, "<tool_call>no object</tool_call>"),
        (CallForm.TAGGED, '<tool_call>{"name": 5'),
        (CallForm.LISTED, "nothing is called [TOOL"),
        (CallForm.TAGGED, ""),
    ],
)
def test_what_is_no_call_is_text(form: CallForm, text: str) -> None:
    for pieces in ([text], list(text)):
        assert told(read(form, pieces)) == (text, [])


@given(st.sampled_from(list(CallForm)), st.text('{}[]",:;<>/|\\ namelrgutsTOL_C', max_size=60))
def test_no_text_breaks_the_reader(form: CallForm, text: str) -> None:
    for opening in ("", "<tool_call>", "[TOOL_CALLS]", '{"name": "time", "parameters": '):
        read(form, list(opening + text))


def test_the_template_tells_the_form() -> None:
    assert call_form_of("... <tool_call> ...") is CallForm.TAGGED
    assert call_form_of("... [TOOL_CALLS] ...") is CallForm.LISTED
    assert call_form_of('{"name": function name, "parameters": ...}') is CallForm.BARE
