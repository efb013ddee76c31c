"""A trace sent to a real server at its times: the same file that the simulation plays."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from adex_proto.errors import AdexError, SourceUnavailable
from adex_scheduler.simulate.result import quantile
from adex_scheduler.simulate.trace import TracedRequest

# Requests open at once; more wait here, and their waiting counts.
OPEN_MAX = 4096
_REQUEST_S_MAX = 600.0


@dataclass(slots=True)
class Replayed:
    """What the server gave, in seconds; a request's time begins when the trace sends it."""

    wall_s: float = 0.0
    finished: int = 0
    output_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list[float])
    gaps_s: list[float] = field(default_factory=list[float])
    failures: list[str] = field(default_factory=list[str])

    def lines(self) -> list[str]:
        """For people."""
        ttft, gaps = sorted(self.ttft_s), sorted(self.gaps_s)
        told = [
            f"finished {self.finished}, failed {len(self.failures)}, in {self.wall_s:.1f} s",
            f"requests per second {self.finished / max(self.wall_s, 1e-9):.2f}, "
            f"output tokens per second {self.output_tokens / max(self.wall_s, 1e-9):.1f}",
            f"TTFT ms p50 {1000 * quantile(ttft, 0.5):.0f}, p99 {1000 * quantile(ttft, 0.99):.0f}, "
            f"max {1000 * quantile(ttft, 1.0):.0f}",
            f"inter-token ms p50 {1000 * quantile(gaps, 0.5):.1f}, "
            f"p99 {1000 * quantile(gaps, 0.99):.1f}",
        ]
        return told + [f"failure: {one}" for one in sorted(set(self.failures))[:5]]


def replay_against(
    url: str, requests: Sequence[TracedRequest], *, adapter_template: str, word: str
) -> Replayed:
    """Send every request at its time, and read each answer to its end.

    `adapter_template` is what the server calls an adapter, with the trace's name for "{adapter}";
    a prompt of n tokens is `word` n times. Raises SourceUnavailable where nothing listens.
    """
    return asyncio.run(_replay(url.rstrip("/"), requests, adapter_template, word))


async def _replay(
    url: str, requests: Sequence[TracedRequest], adapter_template: str, word: str
) -> Replayed:
    replayed = Replayed()
    gate = asyncio.Semaphore(OPEN_MAX)
    timeout = aiohttp.ClientTimeout(total=_REQUEST_S_MAX)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await _greet(session, url)
        began = time.monotonic()

        async def one(request: TracedRequest) -> None:
            due = began + request.time_s
            await asyncio.sleep(max(due - time.monotonic(), 0.0))
            async with gate:
                try:
                    await _ask(session, url, _body(request, adapter_template, word), due, replayed)
                except (aiohttp.ClientError, TimeoutError) as error:
                    replayed.failures.append(f"{type(error).__name__}: {error}"[:200])

        await asyncio.gather(*map(one, requests))
        replayed.wall_s = time.monotonic() - began
    return replayed


async def _greet(session: aiohttp.ClientSession, url: str) -> None:
    unreachable: AdexError = SourceUnavailable(f"{url} is not serving")
    try:
        async with session.get(f"{url}/health") as response:
            if response.status != 200:
                raise unreachable
    except (aiohttp.ClientError, TimeoutError) as error:
        raise unreachable from error


def _body(request: TracedRequest, adapter_template: str, word: str) -> dict[str, object]:
    parameters: dict[str, object] = {
        "max_new_tokens": request.output_tokens,
        "ignore_eos_token": True,
    }
    if request.adapter is not None:
        parameters["adapter_id"] = adapter_template.replace("{adapter}", request.adapter)
    # Only a session's own requests begin with the same words.
    count = request.prompt_tokens
    return {"inputs": " ".join([word] * count), "parameters": parameters}


async def _ask(
    session: aiohttp.ClientSession,
    url: str,
    body: dict[str, object],
    due: float,
    replayed: Replayed,
) -> None:
    """Send one request and note when each of its tokens comes."""
    last: float | None = None
    async with session.post(f"{url}/generate_stream", json=body) as response:
        if response.status != 200:
            replayed.failures.append(f"{response.status}: {(await response.text())[:200]}")
            return
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            if b'"error"' in line and "error" in json.loads(line[5:]):
                replayed.failures.append(str(json.loads(line[5:])["error"])[:200])
                return
            now = time.monotonic()
            if last is None:
                replayed.ttft_s.append(now - due)
            else:
                replayed.gaps_s.append(now - last)
            last = now
            replayed.output_tokens += 1
    replayed.finished += 1
