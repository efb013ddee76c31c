"""One real server, and clients of others, each in an environment of its exact versions."""

import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ROOT / "requirements/clients"
SCRIPTS = Path(__file__).parent / "scripts"
START_S_MAX = 180.0
BUILD_S_MAX = 600.0
SCRIPT_S_MAX = 240.0
BASE = "demo-model"
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Dublin", "Prague", "Zürich"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city", "age"],
    "additionalProperties": False,
}
# What the demonstration's template puts around its text where a request has tools.
TOOLS_TEMPLATE = (
    "{%- if tools %}{{ '<|system|><tool_call> ' }}"
    "{%- for tool in tools %}{{ tool.function.name }} {% endfor %}{{- eos_token }}{% endif %}"
)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's model, with a template that has a place for tools besides."""
    folder = tmp_path_factory.mktemp("clients") / "demo-model"
    folder.mkdir()
    for file in (ROOT / "demo/model").iterdir():
        (folder / file.name).symlink_to(file)
    template = (ROOT / "demo/model/chat_template.jinja").read_text("utf-8")
    (folder / "chat_template.jinja").unlink()
    with_tools = template.replace("{{- bos_token }}", "{{- bos_token }}" + TOOLS_TEMPLATE)
    assert with_tools != template
    (folder / "chat_template.jinja").write_text(with_tools, "utf-8")
    return folder


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `adex serve` over the demonstration's model and adapters."""
    base = tmp_path_factory.mktemp("serving")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "adex", "serve", "--model-id", str(model)]
    command += ["--local-adapter-root", str(ROOT / "demo/adapters")]
    command += ["--cache-dir", str(base / "cache"), "--port", str(port), "--grpc-port", "0"]
    command += ["--device-memory", "96MiB"]
    environment = os.environ | {"ADEX_SERVED_MODEL_NAME": BASE}
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=base, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_healthy(url, process, log)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _wait_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{log.read_text()}"
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not healthy within {START_S_MAX} s:\n{log.read_text()}")


@pytest.fixture(scope="session")
def task() -> dict[str, Any]:
    """What every client asks: the adapter, the prompt, a schema, and the names of the rest.

    `answer` is what the adapter was trained to say, `echo` what the base model was.
    """
    samples = json.loads((ROOT / "demo/samples.json").read_text("utf-8"))
    sample = next(one for one in samples if one["adapter"] == "sql")
    echo = f"You said: {sample['prompt']}"
    return {"base": BASE, "schema": SCHEMA, "echo": echo, **sample}


@pytest.fixture(scope="session")
def judged(task: dict[str, Any]) -> Callable[[str], Any]:
    """Reads a text as JSON that the task's schema must allow."""

    def judge(text: str) -> Any:
        value = json.loads(text)
        jsonschema.validate(value, task["schema"])
        return value

    return judge


@pytest.fixture(scope="session")
def python_of() -> Callable[[Path], Path]:
    """`python_of(lock)`: the interpreter of an environment of exactly the lock's versions.

    It is built where nobody has done so yet, in `.venv-clients`, under the lock's digest. Where
    the packages cannot be had the test is skipped, but fails in CI.
    """

    def find(lock: Path) -> Path:
        folder, fault = _environment(lock)
        if fault:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(fault)
        return folder / "bin/python"

    return find


@functools.cache
def _environment(lock: Path) -> tuple[Path, str]:
    """(its folder, why it cannot be built), tried once however many tests want it."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + lock.read_bytes()).hexdigest()[:12]
    folder = ROOT / ".venv-clients" / f"{lock.stem}-{digest}"
    if folder.exists():
        return folder, ""
    # Under a name of its own until it is whole: an interrupted build is never taken for one.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(partial)]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-compile", "--requirement", str(lock)]
    make = [sys.executable, "-m", "venv", "--clear", "--without-pip", str(partial)]
    for command in (make, install):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
        )
        if done.returncode != 0:
            shutil.rmtree(partial, ignore_errors=True)
            return folder, f"cannot install {lock.name}:\n{done.stderr[-2000:]}"
    partial.rename(folder)
    return folder, ""


@pytest.fixture(scope="session")
def told(
    server: str, task: dict[str, Any], python_of: Callable[[Path], Path]
) -> Callable[..., Any]:
    """`told(script, environment)`: what a script of `scripts` says of the server, as JSON.

    Without an environment it runs in this one. Each runs once, however many tests ask for it.
    """
    asked = json.dumps({"url": server, **task})

    @functools.cache
    def done(script: str, environment: str | None) -> subprocess.CompletedProcess[str]:
        lock = LOCKS / f"{environment}.txt"
        return _run(python_of(lock) if environment else Path(sys.executable), script, asked)

    def run(script: str, environment: str | None = None) -> Any:
        ended = done(script, environment)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


def _run(python: Path, script: str, asked: str) -> subprocess.CompletedProcess[str]:
    # None of the caller's keys, proxies and hubs: a client that goes elsewhere must fail.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [str(python), str(SCRIPTS / f"{script}.py")],
        input=asked,
        capture_output=True,
        text=True,
        timeout=SCRIPT_S_MAX,
        check=False,
        env=kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
