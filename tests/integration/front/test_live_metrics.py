"""What /metrics of a scheduler and of a worker answer, judged by Prometheus' own tool."""

import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from adex_proto.adapter import AdapterKey, AdapterVersion, credential_tenant
from adex_scheduler.metrics import DIALECTS
from adex_scheduler.testing.fake_worker import worker_info
from adex_worker.metrics import Sources as WorkerSources
from adex_worker.metrics import serve_metrics
from adex_worker.run.runner import RunnerStatistics
from adex_worker.service.commands import CommandStatistics

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: see requirements/system.sh"
)
PRIVATE = "acme/secret-project"


Doors = Callable[..., AbstractAsyncContextManager[Any]]


async def scraped(live: Doors, dialects: tuple[str, ...]) -> str:
    """What /metrics says after a base request, an adapter's, a private one's and a refused one."""
    public = AdapterKey("", "hub", "org/tone")
    private = AdapterKey(credential_tenant("", "hf_token"), "hub", PRIVATE)
    async with live(dialects=dialects) as doors:
        for digest, key in (("d1" * 32, public), ("d2" * 32, private)):
            doors.worker.published[key] = AdapterVersion(digest, 300, 8, 4)
        async with httpx.AsyncClient(base_url=doors.url, timeout=60) as client:
            for parameters in (
                {},
                {"adapter_id": "org/tone", "adapter_source": "hub"},
                {"adapter_id": PRIVATE, "adapter_source": "hub", "api_token": "hf_token"},
                {"adapter_id": "org/missing", "adapter_source": "hub"},
            ):
                asked = {"max_new_tokens": 5, **parameters}
                await client.post("/generate", json={"inputs": "Hello", "parameters": asked})
            answer = await client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            return answer.text


def complaints(text: str) -> list[str]:
    assert PROMTOOL is not None
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


@needs_promtool
async def test_prometheus_finds_no_fault_with_a_schedulers_metrics(
    live: Doors,
) -> None:
    assert complaints(await scraped(live, ())) == []


@needs_promtool
async def test_aliases_only_break_the_rules_that_their_names_break(
    live: Doors,
) -> None:
    found = complaints(await scraped(live, tuple(DIALECTS)))
    ours = [line for line in found if not line.startswith(("vllm:", "tgi_", "lorax_"))]
    assert ours == []
    # Nothing but names: text that cannot be read at all would say "error while linting".
    assert not [line for line in found if "linting" in line]


@needs_promtool
def test_prometheus_finds_no_fault_with_a_workers_metrics() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    run = RunnerStatistics(sequences=3, steps=10, rows=400, tokens=70, failures=2, seconds=1.5)
    commands = (CommandStatistics("fetch", 9, 5, 1, 2.5),)
    info = worker_info()
    serve_metrics(WorkerSources(info, lambda: run, lambda: 17, lambda: commands), port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        text = reply.read().decode()
    assert "adex_worker_commands_total" in text
    assert complaints(text) == []


async def test_resident_adapters_are_named_as_callers_name_them_and_private_ones_never(
    live: Doors,
) -> None:
    text = await scraped(live, tuple(DIALECTS))
    [series] = [line for line in text.splitlines() if line.startswith("vllm:lora_requests_info{")]
    assert 'running_lora_adapters="org/tone"' in series
    assert 'waiting_lora_adapters=""' in series
    for secret in (PRIVATE, "secret-project", "hf_token", "Hello"):
        assert secret not in text


async def test_where_each_adapter_was_and_what_it_took_is_told(
    live: Doors,
) -> None:
    text = await scraped(live, ())
    assert 'adex_sequence_starts_total{start="base"} 1.0' in text
    assert 'adex_sequence_starts_total{start="remote"} 3.0' in text
    assert 'adex_adapter_fetch_seconds_count{source="hub"} 3.0' in text
    failed = 'adex_adapter_fetch_failures_total{code="adapter_not_found",source="hub"} 1.0'
    assert failed in text
    assert 'adex_adapter_moved_bytes_total{link="host_to_device"} 600.0' in text
    assert "adex_queue_seconds_count 3.0" in text
