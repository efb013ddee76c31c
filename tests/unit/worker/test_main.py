"""What the operator can mend is said in one line with the remedy, and ends with status 2."""

import errno
import logging
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adex_worker.__main__ import main
from adex_worker.assembly import _machine as measured
from adex_worker.testing import tiny_model


@pytest.fixture(autouse=True)
def untouched_logging() -> Iterator[None]:
    """The process configures logging for itself; the next test must not inherit it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--model-id", "/nowhere/at/all"), "cannot be served"),
        (("--model-id", ""), "no model is named"),
        (("--device-memory", "1KiB"), "at least"),
        (("--device-memory", "999TiB"), "are free"),
        (("--device", "cuda:77"), "CUDA devices"),
        (("--device", "abacus"), "none that is served"),
        (("--listen", "nonsense"), "no address"),
        (("--listen", "unix:///nowhere/at/all.sock"), "does not exist"),
        (("--listen", "unix:///dev/null"), "no socket"),
        (("--local-adapter-root", "/nowhere"), "no folder"),
        (("--max-batch-tokens", "4", "--max-sequences", "9"), "is less than"),
        (("--cache-dir", "/proc/nowhere"), "cannot be used"),
        (("--metrics-port", "70000"), "cannot be listened on"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, tuple) else "",
)
def test_a_wrong_start_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    model = tiny_model(tmp_path / "model")
    arguments = ["--model-id", str(model), "--device", "cpu", "--listen", "127.0.0.1:0"]
    arguments += ["--device-memory", "1MiB", "--log-level", "error", "--threads", "1"]
    status = main([*arguments, "--cache-dir", str(tmp_path / "cache"), *flags])
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(said) == 1
    assert said[0].startswith("adex-worker: ")
    assert words in said[0]


def test_a_cache_behind_a_closed_door_does_not_hide_how_much_the_disk_has(tmp_path: Path) -> None:
    door = tmp_path / "door"
    door.mkdir(mode=0o700 if os.geteuid() == 0 else 0o000)
    before = os.geteuid()
    # Nobody's rights: a superuser's go through every door.
    os.seteuid(65534 if before == 0 else before)
    try:
        machine = measured(door / "cache", torch.device("cpu"))
    finally:
        os.seteuid(before)
    assert machine.disk_free > 0


def test_a_pool_that_the_system_refuses_is_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refused)
    model = tiny_model(tmp_path / "model")
    flags = ["--device-memory", "1MiB", "--cache-dir", str(tmp_path), "--log-level", "error"]
    status = main(["--model-id", str(model), "--device", "cpu", "--listen", "127.0.0.1:0", *flags])
    said = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(said) == 1
    assert "--device-memory" in said[0]


@pytest.mark.parametrize(
    "flags", [("--host-memory", "lots"), ("--rank-max", "0"), ("--threads", "-1"), ("--dtype", "x")]
)
def test_a_flag_that_cannot_be_read_ends_with_status_two(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model-id", "x", *flags])
    assert ended.value.code == 2
    assert flags[0] in capsys.readouterr().err
