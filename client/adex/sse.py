"""Bytes to server-sent events, cut anywhere by the network; pure.

Follows the event stream format of the HTML standard: lines end in LF, CR LF or CR, a leading
byte order mark and comment lines are skipped, several data lines join with LF, an event ends at
an empty line, and one that the stream leaves unfinished never happened.
"""

from dataclasses import dataclass, field

from adex.errors import ReplyMalformed

# The last event of a long generation repeats its whole text: far more than any model writes.
EVENT_BYTES_MAX = 16 * 2**20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event: `name` is "message" unless the server gave another."""

    data: str
    name: str = "message"
    id: str = ""


@dataclass(slots=True)
class SseParser:
    """Collects bytes until they make events; whatever is unfinished waits for the next chunk."""

    event_bytes_max: int = EVENT_BYTES_MAX
    _line: list[bytes] = field(default_factory=list[bytes])
    _data: list[str] = field(default_factory=list[str])
    _name: str = ""
    _id: str = ""
    _bytes: int = 0
    _after_cr: bool = False
    _first_line: bool = True

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that `chunk` completes.

        Raises: ReplyMalformed when one event exceeds `event_bytes_max`.
        """
        # A CR ends its line at once; should the next byte be LF, it belongs to that same ending.
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        *ended, tail = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        events: list[ServerSentEvent] = []
        for piece in ended:
            self._hold(piece)
            line, self._line = b"".join(self._line), []
            event = self._take_line(line)
            if event is not None:
                events.append(event)
        if tail:
            self._hold(tail)
        return events

    def _hold(self, piece: bytes) -> None:
        self._bytes += len(piece)
        if self._bytes > self.event_bytes_max:
            raise ReplyMalformed(
                f"one event of the stream exceeds {self.event_bytes_max} bytes",
                remedy="Ask for fewer tokens, or check what answers at this address",
            )
        self._line.append(piece)

    def _take_line(self, line: bytes) -> ServerSentEvent | None:
        """Take one whole line without its ending; the event it completes, if any."""
        if self._first_line:
            line = line.removeprefix(_BYTE_ORDER_MARK)
            self._first_line = False
        if not line:
            return self._take_event()
        name, _, rest = line.decode("utf-8", errors="replace").partition(":")
        value = rest.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
            case "event":
                self._name = value
            case "id" if "\0" not in value:
                self._id = value
            case _:
                # A comment, `retry`, or a field of a later standard: none changes what was said.
                # Comments keep an idle connection open for hours; they must not add up.
                self._bytes -= len(line)
        return None

    def _take_event(self) -> ServerSentEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._bytes = [], "", 0
        if not data:
            return None
        return ServerSentEvent(data="\n".join(data), name=name or "message", id=self._id)
