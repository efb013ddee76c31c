"""What metrics, journeys, log lines and traces cost a scheduler, per token and per request.

The engine serves 64 streams over a worker that computes nothing, in one process without a network:
all the time is the scheduler's. Watched and unwatched rounds alternate; the best of each counts.

    python benchmarks/watching.py [--rounds 5]
"""

import argparse
import asyncio
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.sampling import SamplingParams
from adex_scheduler.engine import Engine, EngineRequest, Journey, Move
from adex_scheduler.front.account import close_account
from adex_scheduler.front.generation import Timeline, pieces_of
from adex_scheduler.front.ports import Ended, FrontOptions, Serving, Traces
from adex_scheduler.front.tenants import Directory
from adex_scheduler.metrics import SchedulerMetrics, Sources
from adex_scheduler.testing.fake_worker import FakeWorker, worker_info
from adex_scheduler.testing.link import FakeLink
from adex_scheduler.tracing import Tracing

STREAMS, NEW_TOKENS, REQUESTS = 64, 32, 640
KEY = AdapterKey("", "local", "tone")


class Letters:
    """A tokenizer that costs next to nothing."""

    anchor: tuple[int, ...] = (1,)
    anchor_text = "a"

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        return "a" * len(token_ids)

    def token_text(self, token_id: int) -> str:
        return "a"

    def is_special(self, token_id: int) -> bool:
        return False

    def is_known(self, token_id: int) -> bool:
        return True

    def fallback_byte(self, token_id: int) -> int | None:
        return None


class Deaf:
    """Meters that measure nothing."""

    def request_answered(self, endpoint: str, code: str, seconds: float) -> None: ...
    def first_token(self, seconds: float, journey: Journey) -> None: ...
    def next_token(self, seconds: float) -> None: ...
    def sequence_ended(self, seconds: float, journey: Journey, generated: int) -> None: ...
    def moved(self, move: Move) -> None: ...
    def exposition(self) -> bytes:
        return b""


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes what is exported."""

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
        return trace_service_pb2.ExportTraceServiceResponse()


@dataclass
class Setting:
    name: str
    metrics: bool
    traces: Traces | None = None
    logs: bool = False


async def seconds_of(setting: Setting) -> float:
    """Processor seconds of the loop's thread for all requests."""
    worker = FakeWorker(worker_info(vocabulary=320, pages=4096, step_sequences_max=64))
    worker.published[KEY] = AdapterVersion("d" * 64, 300, 8, 4)
    meters: Any = SchedulerMetrics(SOURCES) if setting.metrics else Deaf()
    engine = Engine(FakeLink(worker), Letters(), observer=meters if setting.metrics else None)
    texts: Any = Letters()
    options = FrontOptions(model_id="base", version="0")
    serving = Serving.over(engine, texts, Directory(("base",)), meters, options, setting.traces)
    logging.getLogger("adex.access").setLevel(logging.INFO if setting.logs else logging.ERROR)
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)

    async def one(number: int) -> None:
        timeline = Timeline()
        request = EngineRequest(str(number), "", KEY, (5, 6, 7, number % 300), sampling)
        async for _ in pieces_of(serving, request, timeline):
            pass
        if setting.metrics:
            close_account(serving, ended_of(number, timeline))

    async def caller(first: int) -> None:
        for number in range(first, REQUESTS, STREAMS):
            await one(number)

    running = asyncio.create_task(engine.run())
    await engine.wait_ready()
    await one(0)
    began_s = time.thread_time()
    await asyncio.gather(*(caller(first) for first in range(STREAMS)))
    took_s = time.thread_time() - began_s
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return took_s


def ended_of(number: int, timeline: Timeline) -> Ended:
    now_s = time.monotonic()
    return Ended(
        "rest", "POST", "/generate", "text_completion", 200, "ok", str(number), timeline.began_s,
        now_s, timeline.first_token_s, timeline.queue_s, 4, NEW_TOKENS, "tone", timeline.runs, {},
    )  # fmt: skip


SOURCES = Sources(lambda: None, lambda: None)


async def scrape_ms(adapters: int, *dialects: str) -> float:
    """Milliseconds of one scrape while a worker holds so many adapters."""
    worker = FakeWorker(worker_info(disk_bytes=10**9))
    engine = Engine(FakeLink(worker), Letters())
    metrics = SchedulerMetrics(
        Sources(engine.statistics, lambda: engine.info), dialects=dialects, model_name="base"
    )
    for number in range(adapters):
        version = AdapterVersion(f"{number:064x}", 300, 8, 4)
        worker.disk[version.digest] = version
    running = asyncio.create_task(engine.run())
    await engine.wait_ready()
    best_s = 1e9
    for _ in range(5):
        began_s = time.perf_counter()
        metrics.exposition()
        best_s = min(best_s, time.perf_counter() - began_s)
    statistics = engine.statistics()
    assert statistics is not None
    assert statistics.adapters_by_tier[Tier.DISK] == adapters
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    return best_s * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    logging.basicConfig(stream=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tracing = Tracing(f"http://127.0.0.1:{port}", version="0", base_name="base")
    settings = [
        Setting("unwatched", metrics=False),
        Setting("metrics", metrics=True),
        Setting("metrics, log lines", metrics=True, logs=True),
        Setting("metrics, log lines, traces", metrics=True, logs=True, traces=tracing),
    ]
    best = {setting.name: 1e9 for setting in settings}
    for _ in range(rounds):
        for setting in settings:
            best[setting.name] = min(best[setting.name], asyncio.run(seconds_of(setting)))
    print(
        f"{STREAMS} streams, {REQUESTS} requests of {NEW_TOKENS} tokens; the loop's thread only\n"
    )
    print("| watched by | us per token | more per token | more per request |")
    print("| --- | --- | --- | --- |")
    tokens = REQUESTS * NEW_TOKENS
    base_s = best["unwatched"]
    for name, took_s in best.items():
        more_s = took_s - base_s
        print(
            f"| {name} | {took_s / tokens * 1e6:.1f} | {more_s / tokens * 1e6:.1f} us "
            f"| {more_s / REQUESTS * 1e6:.0f} us |"
        )
    print("\n| adapters held | one scrape | with vLLM's names |\n| --- | --- | --- |")
    for adapters in (100, 1000, 10_000):
        plain = asyncio.run(scrape_ms(adapters))
        both = asyncio.run(scrape_ms(adapters, "vllm"))
        print(f"| {adapters} | {plain:.1f} ms | {both:.1f} ms |")
    tracing.close()
    server.stop(None)


if __name__ == "__main__":
    main()
