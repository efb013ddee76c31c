"""A closed-loop load generator: `streams` callers, each asking again as soon as it is answered.

It reads the event stream as bytes and only notes when each event arrived, so that measuring costs
the machine under test as little as it can.
"""

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import aiohttp


@dataclass(slots=True)
class Timings:
    """One round, in seconds from its start; `gaps` are the times between a request's tokens."""

    wall_s: float = 0.0
    tokens: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Load:
    """`requests` in all, over `streams` at a time; request k names adapter k modulo `adapters`."""

    streams: int
    requests: int
    prompts: tuple[str, ...]
    adapters: tuple[str, ...]
    new_tokens: int


async def run_round(url: str, load: Load) -> Timings:
    """Serve the whole load once and return its timings."""
    timings = Timings()
    numbers = iter(range(load.requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        start = time.perf_counter()
        callers = (_caller(session, url, load, numbers, timings) for _ in range(load.streams))
        await asyncio.gather(*callers)
        timings.wall_s = time.perf_counter() - start
    return timings


async def _caller(
    session: aiohttp.ClientSession, url: str, load: Load, numbers: Iterator[int], timings: Timings
) -> None:
    for number in numbers:
        await _request(session, url, load, number, timings)


async def _request(
    session: aiohttp.ClientSession, url: str, load: Load, number: int, timings: Timings
) -> None:
    parameters: dict[str, object] = {
        "max_new_tokens": load.new_tokens,
        "ignore_eos_token": True,
        "details": True,
    }
    if load.adapters:
        parameters["adapter_id"] = load.adapters[number % len(load.adapters)]
    body = {"inputs": load.prompts[number % len(load.prompts)], "parameters": parameters}
    sent = last = time.perf_counter()
    seen = 0
    async with session.post(f"{url}/generate_stream", json=body) as response:
        if response.status != 200:
            timings.failures.append(f"{response.status}: {(await response.text())[:200]}")
            return
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            now = time.perf_counter()
            if b'"error"' in line:
                timings.failures.append(json.loads(line[5:]).get("error", "")[:200])
                return
            (timings.gaps_s if seen else timings.first_s).append(now - (last if seen else sent))
            last = now
            seen += 1
    timings.tokens += seen
    if seen != load.new_tokens:
        timings.failures.append(f"{seen} tokens of {load.new_tokens}")
