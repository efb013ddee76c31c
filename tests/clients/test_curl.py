"""curl, as people paste it from a page."""

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture
def curl(server: str) -> Callable[..., str]:
    """`curl(path, body, *options)`: what it prints."""

    def run(path: str, body: Any = None, *options: str) -> str:
        command = ["curl", "--silent", "--show-error", "--max-time", "120", *options]
        if body is not None:
            command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
        done = subprocess.run(
            [*command, f"{server}{path}"], capture_output=True, text=True, timeout=150, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def rendered(task: dict[str, Any]) -> str:
    return f"<|user|>{task['prompt']}<|end|><|assistant|>"


def test_every_route_that_generates_answers_with_the_adapter(
    curl: Callable[..., str], task: dict[str, Any]
) -> None:
    parameters = {"adapter_id": task["adapter"], "max_new_tokens": 64}
    native = {"inputs": rendered(task), "parameters": parameters}
    assert json.loads(curl("/generate", native))["generated_text"] == task["answer"]
    assert json.loads(curl("/", native))[0]["generated_text"] == task["answer"]
    messages = [{"role": "user", "content": task["prompt"]}]
    body = {"model": task["adapter"], "messages": messages, "temperature": 0}
    chat = json.loads(curl("/v1/chat/completions", body))
    assert chat["choices"][0]["message"]["content"] == task["answer"]
    text = {"model": task["adapter"], "prompt": rendered(task), "temperature": 0, "max_tokens": 64}
    assert json.loads(curl("/v1/completions", text))["choices"][0]["text"] == task["answer"]


def test_streams_are_lines_of_events(curl: Callable[..., str], task: dict[str, Any]) -> None:
    parameters = {"adapter_id": task["adapter"], "max_new_tokens": 64, "details": True}
    native = {"inputs": rendered(task), "parameters": parameters}
    events = curl("/generate_stream", native, "--no-buffer").strip().split("\n\n")
    last = json.loads(events[-1].removeprefix("data:"))
    assert last["generated_text"] == task["answer"]
    assert last["details"]["generated_tokens"] == len(events)
    messages = [{"role": "user", "content": task["prompt"]}]
    body = {"model": task["adapter"], "messages": messages, "temperature": 0, "stream": True}
    chunks = curl("/v1/chat/completions", body, "--no-buffer").strip().split("\n\n")
    assert chunks[-1] == "data: [DONE]"
    read = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks[:-1]]
    texts = [chunk["choices"][0]["delta"].get("content") or "" for chunk in read]
    assert "".join(texts) == task["answer"]


def test_the_routes_that_watch_answer_without_a_body(
    curl: Callable[..., str], task: dict[str, Any]
) -> None:
    assert curl("/health", None, "--fail", "--output", "/dev/null") == ""
    assert json.loads(curl("/info"))["model_id"]
    assert task["adapter"] in {card["id"] for card in json.loads(curl("/v1/models"))["data"]}
    assert "adex_" in curl("/metrics")


def test_an_error_is_json_under_its_own_status(curl: Callable[..., str]) -> None:
    body = {"inputs": "x", "parameters": {"adapter_id": "missing"}}
    answer, status = curl("/generate", body, "--write-out", "\n%{http_code}").rsplit("\n", 1)
    assert status == "404"
    assert json.loads(answer)["error_type"] == "adapter_not_found"
