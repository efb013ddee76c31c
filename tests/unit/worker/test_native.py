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


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A line for each file that a compiler has written which writes no more than its name."""
    compiler, written = tmp_path / "bin/cc", tmp_path / "written"
    compiler.parent.mkdir()
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\nfor last; do :; done\n'
        f'echo "$last" > "$last"\necho "$last" >> {written}\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(compiler.parent))
    return written


def test_what_one_folder_has_is_compiled_for_no_other(tmp_path: Path, compiled: Path) -> None:
    first, second, third = (tmp_path / name for name in "abc")
    found = native._compiled((first, second))
    assert found.parent == first
    commands = compiled.read_text()
    assert native._compiled((third, second)) == third / found.name
    assert compiled.read_text() == commands
    contents = {path.read_bytes() for path in tmp_path.glob("[abc]/*")}
    assert contents == {found.read_bytes()}


def test_a_folder_that_others_may_write_is_passed_over(tmp_path: Path, compiled: Path) -> None:
    theirs, own = tmp_path / "theirs", tmp_path / "own"
    name = native._compiled((theirs,)).name
    theirs.chmod(0o777)
    assert native._compiled((theirs, own)) == own / name
    names = [Path(line).name for line in compiled.read_text().splitlines()]
    assert names.count("adex.so") == 2, "what lay there was not taken"


def test_a_full_disk_under_one_folder_leaves_the_other(
    tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, full = native._put, tmp_path / "full"

    def put_if_there_is_room(library_file: Path, path: Path) -> None:
        if path.parent == full:
            raise OSError("no space left on device")
        put(library_file, path)

    monkeypatch.setattr(native, "_put", put_if_there_is_room)
    assert native._compiled((full, tmp_path / "own")).parent == tmp_path / "own"
    with pytest.raises(OSError, match="no space left"):
        native._compiled((full,))


def test_a_folder_forgets_the_libraries_used_longest_ago(tmp_path: Path, compiled: Path) -> None:
    for age in range(native._KEPT_MAX):
        old = tmp_path / "cache" / f"{age}.so"
        old.parent.mkdir(exist_ok=True)
        old.touch()
        os.utime(old, (1000 - age, 1000 - age))
    found = native._compiled((tmp_path / "cache",))
    names = {path.name for path in found.parent.iterdir()}
    assert names == {found.name, *(f"{age}.so" for age in range(native._KEPT_MAX - 1))}


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
