"""What the scheduler's process costs by itself: its CPU for each token, and its part of a TTFT.

    python benchmarks/front_cost.py [--streams 64] [--step-ms 40] [--seconds 10] [--profile FILE]

The scheduler is the real process; the worker is a gRPC server in this one that answers each plan
after a fixed time with the next token of a text, so that nothing is computed. Callers hold raw
connections open and count events. CPU is read from /proc. The time to a first token is measured on
the idle server with a worker that answers at once: all of it is the scheduler's, the wire's and the
caller's. With `--profile` the scheduler runs under cProfile, which costs more than it shows.
"""

import argparse
import asyncio
import json
import os
import pstats
import signal
import socket
import statistics
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from adex_proto.codec import decode_to_worker, encode_from_worker
from adex_proto.outcome import Hello, SampledTokens, StepOutcome, TokenScore, WorkerInfo
from adex_proto.plan import StepPlan
from adex_proto.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server

MODEL = Path(__file__).parents[1] / "demo" / "model"
TEXT_IDS = range(300, 1500)
PROMPT = "Once upon a time"
ROUTES = ("/generate_stream", "/v1/completions", "/v1/chat/completions")
INFO = WorkerInfo(
    model_id=str(MODEL),
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    device="none",
    layers=4,
    vocabulary=1708,
    positions_max=1024,
    block_tokens=16,
    page_bytes=1024,
    pages=64 * 1024,
    slots_max=8,
    host_bytes=2**20,
    disk_bytes=2**20,
    rank_max=64,
    step_tokens_max=2048,
    step_sequences_max=256,
    eos_token_ids=(2,),
)


def body_of(path: str, tokens: int) -> dict[str, Any]:
    """A request for a stream of so many tokens."""
    if path == "/generate_stream":
        parameters = {"max_new_tokens": tokens, "ignore_eos_token": True}
        return {"inputs": PROMPT, "parameters": parameters}
    asked = {"max_tokens": tokens, "ignore_eos": True, "stream": True}
    if path == "/v1/completions":
        return {"prompt": PROMPT, **asked}
    return {"messages": [{"role": "user", "content": PROMPT}], **asked}


class PacedWorker(WorkerServicer):
    """Answers each plan `step_s` after the one before, with the next tokens of a text."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self._scored: dict[int, bool] = {}
        self._written = 0

    async def Run(self, requests: Any, context: Any) -> None:  # noqa: N802 - the wire's name
        await context.write(encode_from_worker(Hello(INFO, ())))
        due_s = time.monotonic()
        async for message in requests:
            plan = decode_to_worker(message)
            if not isinstance(plan, StepPlan):
                continue
            due_s = max(due_s + self.step_s, time.monotonic())
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await context.write(encode_from_worker(self._outcome(plan)))

    def _outcome(self, plan: StepPlan) -> StepOutcome:
        for number in plan.finished:
            self._scored.pop(number, None)
        for new in plan.arrived:
            self._scored[new.sequence] = new.sampling.logprobs is not None
        self._written += 1
        prompts = [span.sequence for span in plan.spans if span.samples]
        numbers = (*plan.decodes.sequences, *prompts)
        token_ids = [TEXT_IDS[(self._written * 7 + number) % len(TEXT_IDS)] for number in numbers]
        scores = {number: TokenScore(-0.5) for number in numbers if self._scored[number]}
        return StepOutcome(
            plan.step, SampledTokens(numbers, tuple(token_ids), scores), (), self.step_s
        )


@asynccontextmanager
async def scheduler(worker_port: int, profile: Path | None) -> AsyncIterator[tuple[int, int]]:
    """A running scheduler process. Yields: (its port, its process id)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    profiled = [] if profile is None else ["-m", "cProfile", "-o", str(profile)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *profiled, "-m", "adex_scheduler"),
        *("--model-id", str(MODEL), "--worker", f"127.0.0.1:{worker_port}"),
        *("--port", str(port), "--drain-seconds", "1", "--log-level", "warning"),
    )
    try:
        async with asyncio.timeout(60):
            while not await _is_ready(port):  # noqa: ASYNC110 - another process's readiness
                await asyncio.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _is_ready(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return b" 200 " in answer[:20]


async def ask(port: int, path: str, body: dict[str, Any]) -> tuple[Any, Any]:
    """A connection on which the request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    return reader, writer


class Count:
    """Events received by all callers."""

    def __init__(self) -> None:
        self.events = 0


async def stream_for_ever(port: int, path: str, count: Count) -> None:
    while True:
        reader, writer = await ask(port, path, body_of(path, 900))
        try:
            ended = False
            while not ended:
                part = await reader.read(65536)
                count.events += part.count(b"data: ")
                ended = not part or part.endswith(b"0\r\n\r\n")
        finally:
            writer.close()


def cpu_s(process: int) -> float:
    """User and system time of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def cost_of(port: int, process: int, path: str, streams: int, seconds: float) -> str:
    """One row of the table of CPU."""
    count = Count()
    tasks = [asyncio.create_task(stream_for_ever(port, path, count)) for _ in range(streams)]
    await asyncio.sleep(2.0)
    events, cpu, began_s = count.events, cpu_s(process), time.monotonic()
    await asyncio.sleep(seconds)
    passed_s = time.monotonic() - began_s
    rate, used = (count.events - events) / passed_s, (cpu_s(process) - cpu) / passed_s
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0.5)
    return f"| `{path}` | {streams} | {rate:.0f} | {used:.1%} | {used / rate * 1000:.1%} |"


async def first_tokens(port: int, process: int, path: str, requests: int) -> str:
    """One row of the table of first tokens."""
    times: list[float] = []
    cpu = cpu_s(process)
    for _ in range(requests):
        began_s = time.perf_counter()
        reader, writer = await ask(port, path, body_of(path, 1))
        await reader.readuntil(b"data: ")
        times.append(time.perf_counter() - began_s)
        await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await asyncio.sleep(0.005)
    each = (cpu_s(process) - cpu) / requests
    tenths = statistics.quantiles(times, n=10)
    cells = (
        f"`{path}`",
        str(requests),
        *(f"{s * 1e3:.2f} ms" for s in (tenths[0], tenths[4], tenths[8], each)),
    )
    return f"| {' | '.join(cells)} |"


async def measure(options: argparse.Namespace) -> None:
    worker, server = PacedWorker(), grpc.aio.server()
    add_WorkerServicer_to_server(worker, server)
    worker_port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with scheduler(worker_port, options.profile) as (port, process):
            worker.step_s = 0.0
            print("| route | requests | TTFT p10 | p50 | p90 | scheduler's CPU for each |")
            print("| --- | --- | --- | --- | --- | --- |")
            for path in ROUTES:
                print(await first_tokens(port, process, path, options.requests), flush=True)
            worker.step_s = options.step_ms / 1000
            print("\n| route | streams | tokens/s | of one core | per 1 000 tokens/s |")
            print("| --- | --- | --- | --- | --- |")
            for path in options.routes or ROUTES:
                row = await cost_of(port, process, path, options.streams, options.seconds)
                print(row, flush=True)
    finally:
        await server.stop(0)
    if options.profile is not None:
        stats = pstats.Stats(str(options.profile))
        stats.sort_stats("tottime").print_stats(40)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=40.0, help="one step of the worker")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one measurement")
    parser.add_argument("--requests", type=int, default=200, help="first tokens on each route")
    parser.add_argument("--profile", type=Path, help="where cProfile's figures go")
    parser.add_argument("--routes", nargs="*", help="only these")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
