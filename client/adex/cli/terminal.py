"""Everything the commands write: lines, colours where a person looks, and one moving line."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import TextIO

_RESET = "\x1b[0m"
_STYLES = {"bold": "\x1b[1m", "dim": "\x1b[2m", "red": "\x1b[31m", "green": "\x1b[32m"}
_CLEAR_LINE = "\r\x1b[2K"
_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAME_S = 0.1
_BAR_CELLS = 20
# Nobody watches the moving line of a log file, but its reader wants to know what was awaited.
_PLAIN_STATUS_EVERY_S = 10.0


class Terminal:
    """Writes results to `out` and remarks to `err`, whole lines at a time.

    On a terminal `status` keeps one line moving at the bottom, below whatever `line` writes;
    elsewhere it writes a plain line now and then.
    """

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err
        self._moving = err.isatty() and os.environ.get("TERM") != "dumb"
        self._colours = out.isatty() and not os.environ.get("NO_COLOR")
        self._status = ""
        self._frame = 0
        self._plain_at_s: float | None = None
        self._lock = threading.RLock()

    @property
    def interactive(self) -> bool:
        """Whether a person reads what is written."""
        return self.out.isatty()

    def styled(self, text: str, style: str) -> str:
        """The text in a style of `_STYLES`, unchanged where colours are unwanted."""
        return f"{_STYLES[style]}{text}{_RESET}" if self._colours else text

    def line(self, text: str = "") -> None:
        """Write one line to `out`."""
        with self._lock:
            self._wipe()
            self._write(self.out, text + "\n")
            self._draw()

    def piece(self, text: str) -> None:
        """Write a piece of a line to `out` as it comes."""
        with self._lock:
            self._wipe()
            self._write(self.out, text)

    def remark(self, text: str) -> None:
        """Write one line to `err`."""
        with self._lock:
            self._wipe()
            self._write(self.err, text + "\n")
            self._draw()

    def status(self, text: str, *, now_s: float | None = None) -> None:
        """Show what is awaited; an empty text ends it."""
        now_s = time.monotonic() if now_s is None else now_s
        with self._lock:
            if self._moving:
                self._wipe()
                self._status = text
                self._frame += 1
                self._draw()
            elif not text:
                self._plain_at_s = None
            elif self._plain_at_s is None or now_s - self._plain_at_s >= _PLAIN_STATUS_EVERY_S:
                self._plain_at_s = now_s
                self._write(self.err, text + "\n")

    @contextmanager
    def waiting(self, text: str) -> Generator[None, None, None]:
        """Keep a line moving, with the seconds, until the block ends or `piece` writes."""
        if not self._moving:
            yield
            return
        ended = threading.Event()
        began_s = time.monotonic()

        def spin() -> None:
            # What answers at once needs no spinner.
            while not ended.wait(_FRAME_S):
                self.status(f"{text} {time.monotonic() - began_s:.1f} s")

        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self.status("")

    def _wipe(self) -> None:
        if self._status:
            self._write(self.err, _CLEAR_LINE)

    def _draw(self) -> None:
        if self._status:
            frame = _FRAMES[self._frame % len(_FRAMES)]
            self._write(self.err, f"{frame} {self._status}")

    @staticmethod
    def _write(stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def bar(done: int, total: int) -> str:
    """How much of something is done, as a bar and in percent."""
    share = min(1.0, max(0.0, done / total)) if total > 0 else 0.0
    cells = int(share * _BAR_CELLS)
    return f"[{'#' * cells}{'.' * (_BAR_CELLS - cells)}] {share:.0%}"
