"""Streams that run on while cold, corrupt and hanging adapters are asked for beside them.

Requests for cold adapters are also requests: each has a prompt, and a place in some step. So as
many are sent for adapters that are on the device already. And what stands for S3 computes on this
machine, whose network and processor a download takes whoever asks for it: so as many are sent
again while a program that is no part of the server downloads the cold adapters at the same pace,
and throws them away. What remains between that and the cold adapters is the server's doing.
"""

import asyncio
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from exchange_load import Request, ask
from fixture import adapter_name
from many_adapters import WEIGHTS
from report import quantile_ms
from slow_s3 import BUCKET, Store

STREAMS = 8
STREAM_TOKENS = 256
COLD, CORRUPT = 100, 10
COLD_PER_S = 5.0
AT_ONCE_PER_S = 1000.0
RESIDENT = 8
HANG_S = 30.0
HOLD = {"/hang/": HANG_S}

DOWNLOAD = Path(__file__).with_name("download.py")

Mark = tuple[float, float, str]


@dataclass(slots=True)
class Disturbance:
    """The running streams, the requests beside them, and when which kind was under way."""

    streams: list[Request] = field(default_factory=list)
    others: list[Request] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    downloads: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def marked(self, label: str) -> Iterator[None]:
        """Note how long what happens inside takes."""
        start = time.perf_counter()
        yield
        self.marks.append((start, time.perf_counter(), label))

    def table(self) -> str:
        """Inter-token times of the streams in each span, and the answers of the others."""
        lines = [
            "| beside the streams | p50 ms | p99 ms | max ms | gaps |",
            "|---|---|---|---|---|",
        ]
        for start, stop, label in self.marks:
            gaps = [
                end - begin
                for request in self.streams
                for begin, end in zip(request.ends_s, request.ends_s[1:], strict=False)
                if start <= end < stop
            ]
            numbers = " | ".join(f"{quantile_ms(gaps, q):.1f}" for q in (0.5, 0.99, 1.0))
            lines.append(f"| {label} | {numbers} | {len(gaps)} |")
        answers = Counter(_outcome(request) for request in self.others)
        told = ", ".join(f"{count} {answer}" for answer, count in sorted(answers.items()))
        paces = "; ".join(f"{when}: {what}" for when, what in self.downloads.items())
        return "\n".join(
            [*lines, "", f"Answers to the others: {told}. What stands for S3, {paces}."]
        )


def publish(store: Store, adapters: Path) -> None:
    """Upload what the others ask for: cold ones, one that hangs, and ones cut short."""
    for index in range(COLD):
        store.upload(f"cold-{index}", adapters / adapter_name(index))
    store.upload("hang", adapters / adapter_name(COLD))
    with tempfile.TemporaryDirectory() as folder:
        for index in range(CORRUPT):
            copy = Path(folder) / f"{index}"
            shutil.copytree(adapters / adapter_name(index), copy)
            weights = copy / WEIGHTS
            weights.write_bytes(weights.read_bytes()[: -1000 * (index + 1)])
            store.upload(f"corrupt-{index}", copy)


async def _downloaded(store: Store, per_s: float) -> str:
    """The cold adapters, fetched by a program of its own. Returns: what it says of them."""
    names = [f"cold-{index}" for index in range(COLD)]
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, str(DOWNLOAD), store.url, str(per_s), *names),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    said, _ = await program.communicate()
    assert program.returncode == 0, "what stands for S3 did not deliver"
    return said.decode().strip()


async def disturb(url: str, store: Store, alone_s: float) -> Disturbance:
    """Streams of the base model throughout; the others come one kind after the other.

    `store` must hold back what HOLD says.
    """
    seen = Disturbance()
    seen.downloads["alone"] = await _downloaded(store, per_s=AT_ONCE_PER_S)
    warm = [adapter_name(COLD + 1 + index) for index in range(RESIDENT)]
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def stream() -> None:
            while True:
                await ask(session, url, "", seen.streams, STREAM_TOKENS)

        async def others(names: list[str]) -> None:
            async with asyncio.TaskGroup() as tasks:
                for name in names:
                    tasks.create_task(ask(session, url, name, seen.others, 1))
                    await asyncio.sleep(1 / COLD_PER_S)

        running = [asyncio.create_task(stream()) for _ in range(STREAMS)]
        await others(warm)
        await asyncio.sleep(alone_s)
        with seen.marked("nothing"):
            await asyncio.sleep(alone_s)
        with seen.marked(f"{COLD} requests for adapters that are there"):
            await others([warm[index % RESIDENT] for index in range(COLD)])
        with seen.marked(f"as many, and another program downloads {COLD} adapters"):
            downloading = asyncio.create_task(_downloaded(store, COLD_PER_S))
            await others([warm[index % RESIDENT] for index in range(COLD)])
            seen.downloads["beside the streams"] = await downloading
        hanging = asyncio.create_task(others([_remote("hang")]))
        with seen.marked(f"one adapter that hangs for {HANG_S:.0f} s, alone"):
            await asyncio.sleep(alone_s)
        with seen.marked(f"{COLD} cold adapters, and the one that hangs"):
            await others([_remote(f"cold-{index}") for index in range(COLD)])
        with seen.marked(f"{CORRUPT} corrupt adapters"):
            await others([_remote(f"corrupt-{index}") for index in range(CORRUPT)])
        await hanging
        with seen.marked("nothing again"):
            await asyncio.sleep(alone_s)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return seen


def _remote(name: str) -> str:
    return f"s3://{BUCKET}/{name}"


def _outcome(request: Request) -> str:
    return request.error.split("{")[0].strip() or "answered"
