"""A whole `adex serve` whose hub is ours: names, tokens and tiers, from the request to the text."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
GOOD, BAD = "hf_good_canary_9f3", "hf_bad_canary_7c1"
START_S_MAX = 120.0


@pytest.fixture(scope="module")
def serving(
    tmp_path_factory: pytest.TempPathFactory, module_hub: Any
) -> Iterator[tuple[str, Path, Path]]:
    """(url, the folder of the adapter that the hub publishes, the log)."""
    base = tmp_path_factory.mktemp("whole")
    adapter = min(path for path in (ROOT / "demo/adapters").iterdir() if path.is_dir())
    module_hub.publish("org/public", adapter)
    module_hub.publish("org/private", adapter, tokens={GOOD})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "adex", "serve", "--model-id", str(ROOT / "demo/model")]
    command += ["--local-adapter-root", str(adapter.parent), "--cache-dir", str(base / "cache")]
    command += ["--lora-modules", "friendly=hf://org/public"]
    command += ["--port", str(port), "--grpc-port", "0", "--device-memory", "96MiB"]
    environment = os.environ | {"HF_ENDPOINT": module_hub.url, "HF_TOKEN": "hf_of_the_server"}
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd=base, env=environment
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(url, process, log)
        yield url, adapter, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text())


def ask(url: str, **parameters: Any) -> httpx.Response:
    body = {
        "inputs": "The quick brown",
        "parameters": {"max_new_tokens": 12, "ignore_eos_token": True, **parameters},
    }
    return httpx.post(f"{url}/generate", json=body, timeout=60)


def text(url: str, **parameters: Any) -> str:
    answer = ask(url, **parameters)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


def test_an_answer_says_where_its_adapter_was(serving: tuple[str, Path, Path]) -> None:
    url, _, _ = serving
    tiers = [
        ask(url, adapter_id="org/public", adapter_source="hub").headers["x-adapter-tier"]
        for _ in range(2)
    ]
    assert tiers == ["remote", "device"]
    assert "x-adapter-tier" not in ask(url).headers


def test_the_hubs_adapter_says_what_the_local_one_says(serving: tuple[str, Path, Path]) -> None:
    url, adapter, _ = serving
    expected = text(url, adapter_id=adapter.name)
    assert expected != text(url)
    assert text(url, adapter_id="org/public", adapter_source="hub") == expected
    assert text(url, adapter_id="org/public@main", adapter_source="huggingface") == expected
    assert text(url, adapter_id="hf://org/public") == expected
    assert text(url, adapter_id="friendly") == expected


def test_a_bad_token_is_not_saved_by_a_good_one(serving: tuple[str, Path, Path]) -> None:
    url, adapter, log = serving
    private = {"adapter_id": "org/private", "adapter_source": "hub"}
    assert text(url, **private, api_token=GOOD) == text(url, adapter_id=adapter.name)
    for token in ({"api_token": BAD}, {}):
        refused = ask(url, **private, **token)
        assert refused.status_code == 404
        assert refused.json()["error_type"] == "adapter_not_found"
    assert text(url, **private, api_token=GOOD)
    chat = {"model": "org/private", "prompt": "The quick brown", "max_tokens": 3}
    asked = {**chat, "adapter_source": "hub"}
    by = {
        token: httpx.post(f"{url}/v1/completions", json={**asked, "api_token": token}, timeout=60)
        for token in (GOOD, BAD)
    }
    assert by[GOOD].status_code == 200
    assert by[BAD].status_code == 404
    told = httpx.get(f"{url}/v1/models").text + httpx.get(f"{url}/metrics").text
    assert "org/private" not in told
    for secret in (GOOD, BAD, "hf_of_the_server"):
        assert secret not in told + log.read_text()


def test_a_name_that_is_no_repository_is_refused(serving: tuple[str, Path, Path]) -> None:
    url, _, _ = serving
    refused = ask(url, adapter_id="org/../public", adapter_source="hub")
    assert refused.status_code == 422
    assert "org/name" in refused.json()["error"]


def test_s3_without_a_root_is_not_served(serving: tuple[str, Path, Path]) -> None:
    url, _, _ = serving
    refused = ask(url, adapter_id="s3://bucket/x")
    assert refused.status_code == 422
    assert "available" in refused.json()["error"]
