"""Failures on the normal path: broken adapters, a killed worker, callers who go away."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file

from adex import AsyncClient
from adex.errors import AdexError

ADAPTERS = ("reverse-words", "upper-case", "sql", "sort-words")
STREAMS = 32
NEW_TOKENS = 160


def _break_some(root: Path) -> dict[str, tuple[int, str]]:
    """Broken adapters under `root`, each with the status and code its callers should see."""
    good = root / "upper-case"
    config = json.loads((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")
    first = min(tensors)

    def write(name: str, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        (root / name).mkdir(exist_ok=True)
        (root / name / "adapter_config.json").write_text(json.dumps(config))
        save_file(tensors, root / name / "adapter_model.safetensors")

    write("bad-nan", config, {**tensors, first: torch.full_like(tensors[first], float("nan"))})
    write("bad-shape", config, {**tensors, first: torch.zeros(tensors[first].shape[0], 7)})
    write("bad-dora", {**config, "use_dora": True}, tensors)
    write("bad-stray", config, {**tensors, "surprise.weight": torch.zeros(2, 2)})
    write("bad-rank", {**config, "r": 100_000}, tensors)
    cut = root / "bad-cut"
    cut.mkdir(exist_ok=True)
    (cut / "adapter_config.json").write_text(json.dumps(config))
    whole = (good / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[: len(whole) // 2])
    return {
        "no-such-adapter": (404, "adapter_not_found"),
        "../../../etc": (403, "adapter_forbidden"),
        "bad-nan": (422, "adapter_malformed"),
        "bad-shape": (422, "adapter_mismatch"),
        "bad-dora": (422, "adapter_unsupported"),
        "bad-stray": (422, "adapter_unsupported"),
        "bad-rank": (422, "rank_too_large"),
        "bad-cut": (422, "adapter_malformed"),
    }


def _body(adapter: str, new_tokens: int) -> dict[str, Any]:
    parameters = {"adapter_id": adapter, "max_new_tokens": new_tokens, "ignore_eos_token": True}
    return {"inputs": "the red fox sees a river", "parameters": parameters}


async def _tokens_of_stream(client: AsyncClient, adapter: str, counts: list[int], at: int) -> None:
    events = client.generate_stream(
        "the red fox sees a river",
        adapter_id=adapter,
        max_new_tokens=NEW_TOKENS,
        ignore_eos_token=True,
    )
    async for _ in events:
        counts[at] += 1


@pytest.mark.slow
async def test_broken_adapters_get_typed_errors_while_other_streams_run_on(server: Any) -> None:
    broken = _break_some(server.adapter_root)
    counts = [0] * STREAMS

    async with (
        AsyncClient(server.url, timeout=120) as client,
        httpx.AsyncClient(base_url=server.url, timeout=60) as http,
    ):
        streams = [
            asyncio.create_task(
                _tokens_of_stream(client, ADAPTERS[i % len(ADAPTERS)], counts, at=i)
            )
            for i in range(STREAMS)
        ]
        while not all(counts):
            await asyncio.sleep(0.01)
        answers = await asyncio.gather(
            *(http.post("/generate", json=_body(name, 4)) for name in broken)
        )
        await asyncio.gather(*streams)

    assert counts == [NEW_TOKENS] * STREAMS
    for (name, (status, code)), answer in zip(broken.items(), answers, strict=True):
        body = answer.json()
        assert (answer.status_code, body["error_type"]) == (status, code), (name, body)
        assert body["error"]


@pytest.mark.slow
async def test_a_killed_worker_ends_its_streams_with_an_error_and_comes_back(server: Any) -> None:
    counts = [0] * 8
    async with AsyncClient(server.url, timeout=120, retries_max=0) as client:
        streams = [
            asyncio.create_task(
                _tokens_of_stream(client, ADAPTERS[i % len(ADAPTERS)], counts, at=i)
            )
            for i in range(8)
        ]
        while not all(counts):
            await asyncio.sleep(0.01)
        os.kill(server.worker_pid(), signal.SIGKILL)
        results = await asyncio.gather(*streams, return_exceptions=True)

        assert all(isinstance(result, AdexError) for result in results), results
        assert {getattr(result, "code", None) for result in results} == {"worker_lost"}
        server.wait_healthy(60)
        after = await client.generate(
            "red green blue", adapter_id="sql", ignore_eos_token=True, max_new_tokens=8
        )
        assert after.details is not None
        assert after.details.generated_tokens == 8


@pytest.mark.slow
async def test_a_caller_who_goes_away_leaves_nothing_behind(server: Any) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        for adapter in ADAPTERS:
            body = _body(adapter, 400)
            async with http.stream("POST", "/generate_stream", json=body) as answer:
                async for _ in answer.aiter_bytes():
                    break
    deadline = time.monotonic() + 10
    while server.metric("adex_running_sequences") and time.monotonic() < deadline:
        await asyncio.sleep(0.05)

    assert server.metric("adex_running_sequences") == 0
    assert server.metric("adex_waiting_sequences") == 0
    assert server.metric('adex_pool_pages{owner="kv"}') == 0
