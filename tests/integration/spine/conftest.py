"""One real server, `adex serve` over the demonstration model, for the tests of the whole path."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
START_S_MAX = 120.0


@dataclass(slots=True)
class Server:
    """A running `adex serve`."""

    url: str
    process: subprocess.Popen[bytes]
    adapter_root: Path
    log: Path

    def worker_pid(self) -> int:
        """The worker's process id, by its command line among the launcher's descendants."""
        for pid in _descendants(self.process.pid):
            if b"adex_worker" in _command_line(pid):
                return pid
        raise AssertionError("the launcher has no worker")

    def metric(self, name: str) -> float:
        """The sum of a family's samples, whatever their labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        assert values, f"/metrics has no {name}"
        return sum(values)

    def wait_healthy(self, seconds: float = START_S_MAX) -> None:
        """Until /health answers 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()}"
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"not healthy within {seconds} s:\n{self.log.read_text()}")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _descendants(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            yield child
            yield from _descendants(child)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Served from a root of its own with the demonstration adapters' files.

    A module's `SERVE_FLAGS` and `SERVE_ENVIRONMENT`, where it has them, are how it is served.
    """
    environment = {**os.environ, **getattr(request.module, "SERVE_ENVIRONMENT", {})}
    flags = getattr(request.module, "SERVE_FLAGS", ("--device-memory", "96MiB"))
    base = tmp_path_factory.mktemp("spine")
    root = base / "adapters"
    for adapter in sorted((ROOT / "demo/adapters").iterdir()):
        folder = root / adapter.name
        folder.mkdir(parents=True)
        for file in adapter.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
    port, log = free_port(), base / "server.log"
    command = [sys.executable, "-m", "adex", "serve", "--model-id", str(ROOT / "demo/model")]
    command += ["--local-adapter-root", str(root), "--cache-dir", str(base / "cache")]
    command += ["--port", str(port), "--grpc-port", "0", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=base, env=environment
        )
    running = Server(f"http://127.0.0.1:{port}", process, root, log)
    try:
        running.wait_healthy()
        yield running
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=45)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            raise
