"""Server-sent events come out the same however the network cuts them."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex.errors import ReplyMalformed
from adex.sse import ServerSentEvent, SseParser

LINE_ENDINGS = ("\n", "\r\n", "\r")
ONE_LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]))


def parse(*chunks: bytes) -> list[ServerSentEvent]:
    parser = SseParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def data_of(*chunks: bytes) -> list[str]:
    return [event.data for event in parse(*chunks)]


def oracle(stream: bytes) -> list[ServerSentEvent]:
    """The standard read literally, over the whole stream at once."""
    lines = re.split("\r\n|\n|\r", stream.decode("utf-8", errors="replace").removeprefix("\ufeff"))
    events: list[ServerSentEvent] = []
    data, name, last_id = "", "", ""
    for line in lines[:-1]:
        if line == "":
            if data:
                events.append(ServerSentEvent(data.removesuffix("\n"), name or "message", last_id))
            data, name = "", ""
        elif ":" in line:
            key, value = line.split(":", 1)
            value = value.removeprefix(" ")
            if key == "data":
                data += value + "\n"
            elif key == "event":
                name = value
            elif key == "id" and "\0" not in value:
                last_id = value
        elif line == "data":
            data += "\n"
        elif line == "event":
            name = ""
        elif line == "id":
            last_id = ""
    return events


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Events, comments, unknown fields and noise with every kind of line ending."""
    fields = st.sampled_from(
        ["data: ", "data:", "data", ":", ": ", "event: ", "id: ", "retry: ", ""]
    )
    lines = draw(st.lists(st.tuples(fields, ONE_LINE, st.sampled_from(LINE_ENDINGS)), max_size=20))
    mark = draw(st.sampled_from(["", "\ufeff"]))
    ended = [field + (text if ":" in field else "") + ending for field, text, ending in lines]
    return (mark + "".join(ended) + draw(st.sampled_from(["", "data: unfinished"]))).encode()


@st.composite
def cut_streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    stream = draw(streams())
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    bounds = [0, *cuts, len(stream)]
    return stream, [stream[a:b] for a, b in itertools.pairwise(bounds)]


@given(cut_streams())
def test_any_cutting_gives_what_the_standard_says(case: tuple[bytes, list[bytes]]) -> None:
    stream, chunks = case
    assert parse(*chunks) == oracle(stream)


@given(streams())
def test_byte_by_byte_gives_what_the_whole_gives(stream: bytes) -> None:
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == parse(stream)


def test_several_data_lines_are_one_event_of_several_lines() -> None:
    assert data_of(b"data: a\ndata:\ndata: b\n\n") == ["a\n\nb"]


def test_only_one_space_after_the_colon_is_dropped() -> None:
    assert data_of(b"data:  a\n\ndata:b\n\n") == [" a", "b"]


def test_comments_that_keep_the_connection_alive_are_no_events() -> None:
    assert data_of(b":\n\n: ping\n\ndata: a\n\n:\n\n") == ["a"]


def test_a_character_cut_in_two_is_whole_again() -> None:
    whole = "data: \N{SNOWMAN}\n\n".encode()
    assert data_of(whole[:7], whole[7:8], whole[8:]) == ["\N{SNOWMAN}"]


def test_a_cr_lf_cut_in_two_ends_one_line_only() -> None:
    assert data_of(b"data: a\r", b"\ndata: b\r", b"\n\r", b"\n") == ["a\nb"]


def test_what_the_end_of_the_stream_cuts_off_is_no_event() -> None:
    assert data_of(b"data: a\n\ndata: b\n") == ["a"]


def test_event_and_id_fields_are_kept() -> None:
    (event,) = parse(b"event: error\nid: 7\ndata: x\n\n")
    assert event == ServerSentEvent("x", name="error", id="7")


def test_an_event_beyond_the_limit_is_refused_before_it_is_held() -> None:
    parser = SseParser(event_bytes_max=100)
    parser.feed(b"data: " + b"x" * 90)
    with pytest.raises(ReplyMalformed, match="exceeds 100 bytes"):
        parser.feed(b"y" * 10)


def test_hours_of_comments_never_reach_the_limit() -> None:
    parser = SseParser(event_bytes_max=100)
    for _ in range(1000):
        assert parser.feed(b": still here\n") == []
    assert [event.data for event in parser.feed(b"data: a\n\n")] == ["a"]
