"""Stop strings: what a plain search over the whole text finds, however the text was cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from adex_scheduler.text.stops import StopMatcher

LETTERS = st.text(alphabet="ab\n", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:stop] for start, stop in pairwise(edges)]


def plain_search(text: str, stops: list[str]) -> tuple[int, int] | None:
    """(start, end) of the stop complete first, the longest of those complete at once."""
    for end in range(1, len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return end - max(len(stop) for stop in matching), end
    return None


def run(matcher: StopMatcher, pieces: list[str]) -> tuple[str, bool]:
    shown = ""
    for piece in pieces:
        text, found = matcher.push(piece)
        shown += text
        if found:
            return shown, True
    return shown + matcher.flush(), False


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_the_text_ends_where_a_plain_search_ends_it(
    text: str, stops: list[str], places: list[int]
) -> None:
    place = plain_search(text, stops)
    expected = (text, False) if place is None else (text[: place[0]], True)
    assert run(StopMatcher(stops), cut(text, places)) == expected


@given(LETTERS, STOPS, st.lists(st.integers(0, 30), max_size=8))
def test_with_the_stop_included_the_text_ends_behind_it(
    text: str, stops: list[str], places: list[int]
) -> None:
    place = plain_search(text, stops)
    expected = (text, False) if place is None else (text[: place[1]], True)
    assert run(StopMatcher(stops, include_stop=True), cut(text, places)) == expected


@given(LETTERS, STOPS)
def test_only_what_may_begin_a_stop_is_held_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown = ""
    for position, character in enumerate(text):
        piece, found = matcher.push(character)
        shown += piece
        if found:
            return
        held = text[: position + 1].removeprefix(shown)
        longest = max(
            (
                n
                for stop in stops
                for n in range(len(stop))
                if text[: position + 1].endswith(stop[:n])
            ),
            default=0,
        )
        assert len(held) == longest


def test_with_the_stop_included_nothing_is_held_back() -> None:
    matcher = StopMatcher(["END"], include_stop=True)
    assert matcher.push("xE") == ("xE", False)
    assert matcher.push("ND tail") == ("ND", True)
    assert matcher.found == "END"


def test_after_a_stop_nothing_more_is_shown() -> None:
    matcher = StopMatcher(["."])
    assert matcher.push("a.b") == ("a", True)
    assert matcher.push("c") == ("", True)
    assert matcher.flush() == ""
