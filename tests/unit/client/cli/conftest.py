"""Stand-ins for the worker and the scheduler that live, die and end as a test tells them."""

import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

COMMON = """
import os, pathlib, signal, subprocess, sys, threading, time

log = pathlib.Path(os.environ["STAGE"]) / "log"

def note(text):
    with log.open("a") as file:
        file.write(f"{name} {text}\\n")

flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
lives = log.read_text().count(f"{name} pid") if log.exists() else 0
behaviour = os.environ.get(name.upper(), "serve")
note(f"pid {os.getpid()}")
print(f"{name} says hello")
if behaviour.startswith("die") and lives < int(behaviour[3:]):
    print("something is wrong with this life")
    sys.exit(7)
if behaviour == "refuse":
    sys.exit(2)
if behaviour == "parent":
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    note(f"grandchild {grandchild.pid}")

def ends(number, frame):
    note("asked to end")
    if behaviour != "deaf":
        os._exit(0)

signal.signal(signal.SIGTERM, ends)
"""

WORKER = (
    'name = "worker"'
    + COMMON
    + """
pathlib.Path(flags["--listen"].removeprefix("unix://")).touch()
while True:
    time.sleep(0.05)
"""
)

SCHEDULER = (
    'name = "scheduler"'
    + COMMON
    + """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"data": [{"id": "tone", "parent": "m"}]}'
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer((flags["--host"], int(flags["--port"])), Handler)
server.serve_forever(0.05)
"""
)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """A folder with the stand-ins as packages, in which they also keep their log."""
    for package, source in (("adex_worker", WORKER), ("adex_scheduler", SCHEDULER)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "__main__.py").write_text(textwrap.dedent(source))
    return tmp_path


@pytest.fixture
def stage_environment(stage: Path) -> dict[str, str]:
    """The environment in which the stand-ins are found before the packages they stand for."""
    path = os.pathsep.join([str(stage), os.environ.get("PYTHONPATH", "")])
    return dict(os.environ) | {"PYTHONPATH": path, "STAGE": str(stage), "TMPDIR": str(stage)}


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits until something holds, and fails when it does not within seconds."""

    def wait(holds: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + 15.0
        while not holds():
            assert time.monotonic() < give_up_s, "it never came to hold"
            time.sleep(0.02)

    return wait
