"""Stop strings across token boundaries; pure.

One Knuth-Morris-Pratt automaton per stop string reads the text a character at a time, so the work
per character is bounded by the number of stops however the text was cut into tokens.
"""

from collections.abc import Sequence


class StopMatcher:
    """Finds the stop string that is complete first; of those complete at once, the longest.

    `push` gives the text that is safe to show: what may yet turn out to be the beginning of a stop
    is held back. With `include_stop` the stop itself is shown, so nothing is held back.
    """

    __slots__ = ("_borders", "_found", "_held", "_include", "_matched", "_stops")

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        assert all(stops), "an empty stop string matches everywhere"
        self._stops = tuple(stops)
        self._borders = tuple(_borders(stop) for stop in self._stops)
        # How many characters of each stop the text read so far ends with.
        self._matched = [0] * len(self._stops)
        self._held = ""
        self._found: str | None = None
        self._include = include_stop

    @property
    def found(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._found

    def push(self, text: str) -> tuple[str, bool]:
        """(text to show now, whether a stop string was completed); after a stop only ("", True)."""
        if self._found is not None:
            return "", True
        if not self._stops:
            return text, False
        for position, character in enumerate(text):
            stop = self._step(character)
            if stop is not None:
                self._found = stop
                shown = self._held + text[: position + 1]
                self._held = ""
                return (shown if self._include else shown[: -len(stop)]), True
        if self._include:
            return text, False
        everything = self._held + text
        safe = len(everything) - max(self._matched)
        self._held = everything[safe:]
        return everything[:safe], False

    def flush(self) -> str:
        """The text still held back: the end came before any stop string was complete."""
        held, self._held = self._held, ""
        return held

    def _step(self, character: str) -> str | None:
        """Read one character; the longest stop string it completes, or None."""
        complete: str | None = None
        for index, stop in enumerate(self._stops):
            length = self._matched[index]
            while length and stop[length] != character:
                length = self._borders[index][length - 1]
            if stop[length] == character:
                length += 1
            if length == len(stop):
                if complete is None or len(stop) > len(complete):
                    complete = stop
                length = self._borders[index][length - 1]
            self._matched[index] = length
        return complete


def _borders(stop: str) -> tuple[int, ...]:
    """For each prefix of `stop`, the length of its longest proper prefix that also ends it."""
    borders = [0] * len(stop)
    length = 0
    for position in range(1, len(stop)):
        while length and stop[length] != stop[position]:
            length = borders[length - 1]
        if stop[length] == stop[position]:
            length += 1
        borders[position] = length
    return tuple(borders)
