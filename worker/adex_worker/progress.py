"""Telling an operator how far something long has come: on a terminal, or in the log."""

import logging
import sys
from collections.abc import Callable

_LOG = logging.getLogger(__name__)
_BAR_CELLS = 30

# Told how much is done, of how much.
Progress = Callable[[int, int], None]


def progress_bar(what: str) -> Progress:
    """Draws one line on the terminal, over and over."""

    def show(done: int, total: int) -> None:
        cells = _BAR_CELLS * done // max(total, 1)
        bar = "#" * cells + "." * (_BAR_CELLS - cells)
        sys.stderr.write(f"\r{what} [{bar}] {done}/{total}")
        sys.stderr.write("\n" if done >= total else "")
        sys.stderr.flush()

    return show


def progress_lines(what: str) -> Progress:
    """Logs each quarter once."""
    shown = 0

    def show(done: int, total: int) -> None:
        nonlocal shown
        quarter = 4 * done // max(total, 1)
        if quarter > shown:
            shown = quarter
            _LOG.info("%s: %d of %d", what, done, total)

    return show
