"""The scheduler as a process: up before its worker, down when told, clear about what is wrong."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models

START_S_MAX = 60.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    FastTokenizer(models.WordLevel({"a": 0, "b": 1}, "a")).save(str(folder / "tokenizer.json"))
    return folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(model: Path, port: int, *more: str) -> subprocess.Popen[str]:
    arguments = ["--model-id", str(model), "--worker", f"unix://{model}/worker.sock"]
    arguments += ["--port", str(port), "--grpc-port", "0", "--drain-seconds", "1", *more]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ADEX_")}
    return subprocess.Popen(
        [sys.executable, "-m", "adex_scheduler", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def listening(process: subprocess.Popen[str], url: str) -> None:
    deadline = time.monotonic() + START_S_MAX
    while True:
        assert process.poll() is None
        try:
            httpx.get(f"{url}/health", timeout=2)
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "it never listened"
            time.sleep(0.05)


@pytest.fixture
def running(model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    process = started(model, port)
    url = f"http://127.0.0.1:{port}"
    try:
        listening(process, url)
        yield process, url
    finally:
        process.kill()
        process.communicate()


def test_without_a_worker_it_answers_that_it_is_not_ready_and_stops_when_told(
    running: tuple[subprocess.Popen[str], str],
) -> None:
    process, url = running
    assert httpx.get(f"{url}/health").status_code == 503
    refused = httpx.post(f"{url}/generate", json={"inputs": "a secret"})
    assert (refused.status_code, refused.json()["error_type"]) == (503, "worker_lost")
    listed = httpx.get(f"{url}/v1/models").json()["data"]
    assert [card["root"] for card in listed] == [listed[0]["id"]]
    assert "adex_worker_connected 0.0" in httpx.get(f"{url}/metrics").text
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "POST /generate 503 worker_lost" in log
    assert "secret" not in log


def test_a_port_in_use_ends_the_start_with_a_remedy(
    model: Path, running: tuple[subprocess.Popen[str], str]
) -> None:
    _, url = running
    second = started(model, int(url.rsplit(":", 1)[1]))
    _, log = second.communicate(timeout=START_S_MAX)
    assert second.returncode == 2
    assert log.splitlines()[-1].startswith("adex-scheduler: cannot listen")
    assert "--port" in log.splitlines()[-1]


def test_a_model_without_a_tokenizer_ends_the_start_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    process = started(tmp_path, 0)
    _, log = process.communicate(timeout=START_S_MAX)
    assert process.returncode == 2
    assert "has no tokenizer.json" in log
    assert "Traceback" not in log


def test_a_process_told_so_writes_json_tells_vllms_names_and_traces_to_whoever_is_there(
    model: Path,
) -> None:
    port = free_port()
    told = ["--log-format", "json", "--metrics-compat", "vllm"]
    process = started(model, port, *told, "--otlp-endpoint", f"http://127.0.0.1:{free_port()}")
    url = f"http://127.0.0.1:{port}"
    try:
        listening(process, url)
        refused = httpx.post(f"{url}/generate", json={"inputs": "a secret"})
        assert 'vllm:lora_requests_info{max_lora="0"' in httpx.get(f"{url}/metrics").text
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines()]
    [line] = [line for line in lines if line.get("request") == refused.headers["x-request-id"]]
    assert line["message"] == "POST /generate 503 worker_lost"
    assert len(line["trace"]) == 32
    assert "secret" not in log
