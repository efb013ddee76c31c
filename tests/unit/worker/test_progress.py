"""How far something long has come, as an operator is told."""

import logging

import pytest

from adex_worker.progress import progress_bar, progress_lines


def test_a_log_has_a_line_for_each_quarter(caplog: pytest.LogCaptureFixture) -> None:
    show = progress_lines("loading weights")
    with caplog.at_level(logging.INFO):
        for done in range(101):
            show(done, 100)
    assert caplog.messages == [f"loading weights: {done} of 100" for done in (25, 50, 75, 100)]


def test_a_terminal_has_one_line_that_ends_when_all_is_done(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show = progress_bar("loading weights")
    for done in range(4):
        show(done, 3)
    drawn = capsys.readouterr().err
    assert drawn.count("\n") == 1
    assert drawn.split("\r")[-1] == f"loading weights [{30 * '#'}] 3/3\n"
