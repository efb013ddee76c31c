"""One real server, and clients of others, each in an environment of its exact versions."""

import hashlib
import json
import os
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


def python_of(name: str) -> Path:
    """The interpreter of the environment that `requirements/clients/<name>.txt` locks.

    It is built where nobody has done so yet, in `.venv-clients`, under the lock's digest. Where
    the packages cannot be had the test is skipped, but fails in CI.
    """
    lock = LOCKS / f"{name}.txt"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    digest = hashlib.sha256(version.encode() + lock.read_bytes()).hexdigest()[:12]
    folder = ROOT / ".venv-clients" / f"{name}-{digest}"
    if not folder.exists():
        _build(lock, folder)
    return folder / "bin/python"


def _build(lock: Path, folder: Path) -> None:
    # Under a name of its own until it is whole: an interrupted build is never taken for one.
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(partial)]
    install = [*pip, "install", "--quiet", "--no-deps", "--no-compile", "--requirement", str(lock)]
    for command in (
        [sys.executable, "-m", "venv", "--clear", "--without-pip", str(partial)],
        install,
    ):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
        )
        if done.returncode != 0:
            why = f"cannot install {lock.relative_to(ROOT)}:\n{done.stderr[-2000:]}"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    partial.rename(folder)


@pytest.fixture(scope="session")
def told(server: str, task: dict[str, Any]) -> Callable[..., Any]:
    """`told(script, environment)`: what a script of `scripts` says of the server, as JSON.

    Without an environment it runs in this one. Each is run once, whatever number of tests ask.
    """
    said: dict[str, Any] = {}

    def run(script: str, environment: str | None = None) -> Any:
        key = f"{script} in {environment}"
        if key not in said:
            python = python_of(environment) if environment else Path(sys.executable)
            said[key] = _run(python, script, {"url": server, **task})
        return said[key]

    return run


def _run(python: Path, script: str, asked: dict[str, Any]) -> Any:
    # None of the caller's keys, proxies and hubs: a client that goes elsewhere must fail.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(python), str(SCRIPTS / f"{script}.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=SCRIPT_S_MAX,
        check=False,
        env=kept | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
