"""What a person sees, and what a file gets instead."""

import io
import time

import pytest

from adex.cli.terminal import Terminal, bar


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_file_gets_no_colours_and_no_moving_line() -> None:
    out, err = io.StringIO(), io.StringIO()
    terminal = Terminal(out, err)
    terminal.status("waiting")
    terminal.line(terminal.styled("ready", "green"))
    with terminal.waiting("for long"):
        time.sleep(0.15)
    assert (out.getvalue(), err.getvalue()) == ("ready\n", "waiting\n")


def test_a_file_is_told_what_is_awaited_now_and_then() -> None:
    err = io.StringIO()
    terminal = Terminal(io.StringIO(), err)
    for now_s in range(25):
        terminal.status(f"waiting ({now_s} s)", now_s=float(now_s))
    assert err.getvalue() == "waiting (0 s)\nwaiting (10 s)\nwaiting (20 s)\n"


def test_a_line_is_written_above_the_moving_one() -> None:
    screen = Screen()
    terminal = Terminal(screen, screen)
    terminal.status("waiting")
    terminal.line("worker | hello")
    terminal.status("")
    *_, after = screen.getvalue().split("\x1b[2K")
    assert after == ""
    assert "\r\x1b[2Kworker | hello\n" in screen.getvalue()


def test_a_person_may_ask_for_no_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Terminal(Screen(), Screen()).styled("x", "bold") == "\x1b[1mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Terminal(Screen(), Screen()).styled("x", "bold") == "x"


def test_a_short_wait_shows_nothing() -> None:
    screen = Screen()
    with Terminal(screen, screen).waiting("for a moment"):
        pass
    assert screen.getvalue() == ""


def test_a_long_wait_shows_its_seconds_and_cleans_up() -> None:
    screen = Screen()
    with Terminal(screen, screen).waiting("for tone"):
        time.sleep(0.25)
    assert "for tone 0." in screen.getvalue()
    assert screen.getvalue().endswith("\r\x1b[2K")


@pytest.mark.parametrize(
    ("done", "total", "share"),
    [(0, 8, "0%"), (2, 8, "25%"), (8, 8, "100%"), (9, 8, "100%"), (0, 0, "0%")],
)
def test_a_bar_is_as_long_as_its_share(done: int, total: int, share: str) -> None:
    drawn, told = bar(done, total).split()
    assert told == share
    assert len(drawn) == 22
    assert drawn.count("#") == int(share.removesuffix("%")) // 5
