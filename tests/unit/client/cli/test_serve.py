"""`adex serve` as a process of its own, with stand-ins for the worker and the scheduler."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

Until = Callable[[Callable[[], bool]], None]


class Launched:
    """A running `adex serve` and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path, log: Path) -> None:
        self.process = process
        self._output = output
        self._log = log

    def written(self) -> str:
        return self._output.read_text()

    def pids(self, name: str) -> list[int]:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [int(line.split()[-1]) for line in lines if line.startswith(f"{name} pid")]


@contextmanager
def launched(
    stage: Path, environment: dict[str, str], *arguments: str, **behaviours: str
) -> Generator[Launched, None, None]:
    output = stage / "output"
    ports = ("--port", "0", "--grpc-port", "0")
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "adex", "serve", "--model-id", "m", *ports, *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment | {name.upper(): how for name, how in behaviours.items()},
            cwd=stage,
        )
    try:
        yield Launched(process, output, stage / "log")
    finally:
        process.kill()
        process.wait()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_it_tells_when_it_is_ready_and_what_to_try(
    stage: Path, stage_environment: dict[str, str], until: Until
) -> None:
    adapter = stage / "adapters" / "tone"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    roots = ("--local-adapter-root", str(adapter.parent))
    with launched(stage, stage_environment, *roots) as serve:
        until(lambda: "Ctrl-C" in serve.written())
        told = serve.written()
    assert "   worker | worker says hello" in told
    assert "scheduler | scheduler says hello" in told
    assert "adex is ready at http://127.0.0.1:" in told
    assert "(m, 1 adapter)" in told
    assert '"adapter_id": "tone"' in told
    assert "adex generate --url http://127.0.0.1:" in told
    assert "\x1b" not in told


def test_a_signal_ends_the_scheduler_then_the_worker_and_leaves_nothing(
    stage: Path, stage_environment: dict[str, str], until: Until
) -> None:
    with launched(stage, stage_environment) as serve:
        until(lambda: "Ctrl-C" in serve.written())
        assert list(stage.glob("adex-*/worker.sock"))
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(timeout=10.0) == 0
    ends = [line for line in (stage / "log").read_text().splitlines() if "asked" in line]
    assert ends == ["scheduler asked to end", "worker asked to end"]
    assert not list(stage.glob("adex-*"))
    assert not any(alive(pid) for pid in serve.pids("worker") + serve.pids("scheduler"))


def test_a_worker_that_was_killed_comes_back(
    stage: Path, stage_environment: dict[str, str], until: Until
) -> None:
    with launched(stage, stage_environment) as serve:
        until(lambda: "Ctrl-C" in serve.written())
        os.kill(serve.pids("worker")[0], signal.SIGKILL)
        until(lambda: len(serve.pids("worker")) == 2)
        assert len(serve.pids("scheduler")) == 1
        until(lambda: "the worker ended with signal SIGKILL; starting it again" in serve.written())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of such an end")
def test_nothing_outlives_a_launcher_that_was_killed(
    stage: Path, stage_environment: dict[str, str], until: Until
) -> None:
    with launched(stage, stage_environment, worker="deaf", scheduler="deaf") as serve:
        until(lambda: "Ctrl-C" in serve.written())
        pids = serve.pids("worker") + serve.pids("scheduler")
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        serve.process.kill()
        serve.process.wait()
        until(lambda: not any(alive(pid) for pid in pids))


def test_wrong_flags_of_a_child_end_it_in_one_line_as_wrong_usage(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    with launched(stage, stage_environment, scheduler="refuse") as serve:
        assert serve.process.wait(timeout=10.0) == 2
    last = serve.written().splitlines()[-1]
    assert last.startswith("adex: the scheduler ended with exit code 2")


def test_for_machines_every_line_of_its_own_is_a_json_object(
    stage: Path, stage_environment: dict[str, str], until: Until
) -> None:
    with launched(stage, stage_environment, "--log-format", "json") as serve:
        until(lambda: "adex is ready" in serve.written())
        serve.process.send_signal(signal.SIGTERM)
        assert serve.process.wait(timeout=10.0) == 0
    lines = serve.written().splitlines()
    # The stand-ins know nothing of formats.
    own = [json.loads(line) for line in lines if not line.endswith("says hello")]
    assert [each["message"].split()[0] for each in own] == ["adex", "SIGTERM:"]
    assert all(each.keys() == {"time", "level", "logger", "message"} for each in own)


def test_a_port_in_use_is_told_before_anything_starts(
    stage: Path, stage_environment: dict[str, str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with launched(stage, stage_environment, "--port", port) as serve:
            assert serve.process.wait(timeout=10.0) == 2
    (line,) = serve.written().splitlines()
    assert line.startswith(f"adex: cannot listen at 127.0.0.1 port {port}: Address already in use")
    assert "--port" in line
    assert not serve.pids("worker")
