"""Frames of server-sent events: one line each, whatever they carry, and back by other parsers."""

import json
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from adex.sse import SseParser
from adex_scheduler.front.sse import (
    KEEP_ALIVE,
    LOGPROB_MIN,
    finite_logprob,
    frame,
    json_bytes,
    json_list,
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_a_frame_is_one_line_with_exactly_one_space(value: dict[str, object]) -> None:
    data = frame(value)
    assert data.startswith(b"data: {")
    assert data.endswith(b"}\n\n")
    assert data.count(b"\n") == 2
    assert len(data.decode().splitlines()) == 2, "clients split lines as Python does"


@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=5),
    st.lists(st.integers(0, 400), max_size=8),
)
def test_the_client_reads_back_what_was_sent_however_it_was_cut(
    values: list[dict[str, object]], places: list[int]
) -> None:
    sent = KEEP_ALIVE.join(frame(value) for value in values)
    parser = SseParser()
    read: list[object] = []
    edges = [0, *sorted(min(place, len(sent)) for place in places), len(sent)]
    for start, stop in pairwise(edges):
        read += [json.loads(event.data) for event in parser.feed(sent[start:stop])]
    assert json.dumps(read) == json.dumps(values)


@given(st.none() | st.floats())
def test_a_log_probability_is_always_a_number_json_has(logprob: float | None) -> None:
    shown = finite_logprob(logprob)
    assert LOGPROB_MIN <= shown <= 0.0
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown


@given(st.integers(0, 2500), st.text())
def test_a_long_list_in_pieces_is_the_list(length: int, text: str) -> None:
    items = [{"id": number, "text": text} for number in range(length)]
    assert json_list(items) == json_bytes(items)
