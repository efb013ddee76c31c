"""Compiling at the start: once, beside torch's own OpenMP, and never at the cost of service."""

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adex_kernels.native import library
from adex_worker import native

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C compiler here"
)


@pytest.fixture(autouse=True)
def unregistered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("ADEX_NATIVE", raising=False)
    yield
    library.register(None)


def assert_stays_with_torch(cache: Path, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    caplog.set_level(logging.INFO)
    assert native.load(cache) == "torch"
    assert library.registered() is None
    (line,) = (each for each in caplog.records if each.name == "adex_worker.native")
    assert line.levelno == logging.INFO
    assert reason in line.getMessage()


@needs_compiler
def test_the_source_is_compiled_once_and_then_taken_from_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = native.load(tmp_path)
    assert way.startswith("native ")
    assert library.registered() is not None
    (compiled,) = (tmp_path / "native").iterdir()
    run = native._run
    commands = []

    def noted(*command: str) -> str:
        commands.append(command)
        return run(*command)

    monkeypatch.setattr(native, "_run", noted)
    assert native.load(tmp_path) == way
    assert [command[1:] for command in commands] == [("--version",)]
    assert list((tmp_path / "native").iterdir()) == [compiled]


@needs_compiler
def test_the_library_shares_the_openmp_that_torch_brought(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from adex_worker import native
print(native.load(Path(sys.argv[1])))
lines = open("/proc/self/maps", encoding="utf-8").read().splitlines()
print(len({line.split()[-1] for line in lines if "omp" in line.rpartition("/")[2]}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    way, runtimes = done.stdout.split("\n")[:2]
    assert way.startswith("native ")
    assert runtimes == "1"


def test_without_a_compiler_torch_serves_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    assert_stays_with_torch(tmp_path, caplog, "there is no C compiler here")


def test_a_compiler_that_fails_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho no such flag >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert_stays_with_torch(tmp_path / "cache", caplog, "no such flag")


def test_a_compiler_that_hangs_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(native, "_COMPILE_S_MAX", 0.1)
    assert_stays_with_torch(tmp_path / "cache", caplog, "timed out")


def test_a_cache_that_others_may_write_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\nexit 0\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "native").mkdir()
    os.chmod(tmp_path / "native", 0o777)
    assert_stays_with_torch(tmp_path, caplog, "others may write")


def test_a_library_that_is_not_ours_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    openmp = native._openmp()
    monkeypatch.setattr(native, "_compiled", lambda folder: openmp)
    assert_stays_with_torch(tmp_path, caplog, "adex_lora_add")


def test_adex_native_0_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADEX_NATIVE", "0")
    assert native.load(tmp_path) == "torch"
    assert library.registered() is None
    assert not list(tmp_path.iterdir())
