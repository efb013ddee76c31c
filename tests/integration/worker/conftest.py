"""A worker process, a hand that drives it through the scheduler's own link, and a second opinion.

The hand is the least scheduler there can be: it cuts prompts into the chunks it is told to, keeps
two plans in flight, hands out KV blocks from the top of the pool and adapter runs from the bottom.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adex_kernels.layout import ModelShape, Module
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError
from adex_proto.outcome import (
    Evicted,
    Fetched,
    FetchFailed,
    Heartbeat,
    Hello,
    Moved,
    MoveFailed,
    SampledToken,
    StepOutcome,
)
from adex_proto.plan import Evict, Fetch, NewSequence, PageIn, Span, Stage, StepPlan
from adex_proto.sampling import SamplingParams
from adex_scheduler.link.worker import LinkEvent, LinkOptions, WorkerLink
from adex_worker.testing import tiny_config, tiny_model, tiny_shape, write_random_adapter

GREEDY = SamplingParams(max_new_tokens=12)
PLANS_IN_FLIGHT = 2
# Two floating-point sums in different orders may swap tokens that are this close.
MARGIN = 1e-3


@dataclass(slots=True)
class WorkerProcess:
    """A worker running on its own, and where it listens."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def stop(self) -> int:
        """Ask it to stop, as an init system does. Returns: its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


def start_worker(model: Path, address: str, folder: Path, *flags: str) -> WorkerProcess:
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "worker.log"
    command = [sys.executable, "-m", "adex_worker", "--model-id", str(model), "--device", "cpu"]
    command += ["--dtype", "float32", "--device-memory", "16MiB", "--host-memory", "64MiB"]
    command += ["--disk-memory", "64MiB", "--cache-dir", str(folder / "cache"), "--threads", "1"]
    command += ["--listen", address, *flags]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, env=os.environ | {"TQDM_DISABLE": "1"})
    started = WorkerProcess(address, process, log)
    deadline_s = time.monotonic() + 60
    while b" ready on " not in (text := log.read_bytes()):
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()
            raise AssertionError(f"the worker did not start: {text.decode()}")
        time.sleep(0.05)
    line = next(line for line in text.decode().splitlines() if " ready on " in line)
    started.address = line.split(" ready on ")[1].split(": ")[0]
    return started


@dataclass(slots=True)
class Job:
    """One sequence to generate. `chunks` are the sizes its prompt is cut into, in turn."""

    prompt: list[int]
    slot: int = 0
    sampling: SamplingParams = GREEDY
    chunks: tuple[int, ...] = (7,)


@dataclass(slots=True)
class _Progress:
    job: Job
    number: int
    start: int = 0
    planned: int = 0
    chunk: int = 0
    blocks: list[int] = field(default_factory=list)
    tokens: list[SampledToken] = field(default_factory=list)
    error: AdexError | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or len(self.tokens) >= self.job.sampling.max_new_tokens


@dataclass(slots=True)
class Result:
    """What one job gained: tokens, or the error that ended it."""

    tokens: list[SampledToken]
    error: AdexError | None

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


class Hand:
    """Drives one worker over one link."""

    def __init__(self, address: str, options: LinkOptions | None = None) -> None:
        self.link = WorkerLink(address, options)
        self.events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self.hello: Hello
        self.step = 0
        self.heartbeats: list[Heartbeat] = []
        self._next_sequence = 1
        self._next_page = 0
        self._free_blocks: list[int] = []
        self._task: asyncio.Task[None] | None = None

    async def connect(self) -> Hello:
        self._task = asyncio.create_task(self.link.run(self.events.put_nowait))
        hello = await self.next_event(Hello)
        assert isinstance(hello, Hello)
        self.hello = hello
        self._free_blocks = list(range(hello.info.pages // 2, hello.info.pages))
        return hello

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def next_event(self, *kinds: type) -> Any:
        """The next event of one of these kinds; heartbeats are noted, others are a surprise."""
        while True:
            event = await asyncio.wait_for(self.events.get(), 60)
            if isinstance(event, Heartbeat) and Heartbeat not in kinds:
                self.heartbeats.append(event)
                continue
            assert isinstance(event, kinds), f"wanted one of {kinds}, got {event}"
            return event

    async def fetch(self, key: AdapterKey) -> AdapterVersion:
        self.link.send(Fetch(key))
        event = await self.next_event(Fetched, FetchFailed)
        if isinstance(event, FetchFailed):
            raise event.error
        version: AdapterVersion = event.version
        return version

    async def page_in(self, version: AdapterVersion, slot: int) -> int:
        """Stage the bundle and bring it to the device. Returns: its first page."""
        self.link.send(Stage(version.digest))
        await self._moved(Tier.HOST)
        pages = -(-version.bundle_bytes // self.hello.info.page_bytes)
        first = self._next_page
        self._next_page += pages
        assert self._next_page <= self.hello.info.pages // 2, "the lower half is for adapters"
        self.link.send(PageIn(version.digest, slot, first, pages))
        await self._moved(Tier.DEVICE)
        return first

    async def evict(self, version: AdapterVersion, tier: Tier = Tier.DEVICE) -> None:
        self.link.send(Evict(version.digest, tier))
        event = await self.next_event(Evicted, MoveFailed)
        if isinstance(event, MoveFailed):
            raise event.error

    async def _moved(self, tier: Tier) -> None:
        event = await self.next_event(Moved, MoveFailed)
        if isinstance(event, MoveFailed):
            raise event.error
        assert event.tier is tier

    async def generate(self, jobs: Sequence[Job], step_tokens: int = 64) -> list[Result]:
        """Run all jobs together to their lengths, steps of at most `step_tokens` rows."""
        running = [_Progress(job, self._next_sequence + i) for i, job in enumerate(jobs)]
        self._next_sequence += len(jobs)
        by_number = {each.number: each for each in running}
        met: set[int] = set()
        in_flight: deque[int] = deque()
        while not all(each.done for each in running) or in_flight:
            spans: list[Span] = []
            if len(in_flight) < PLANS_IN_FLIGHT:
                spans = self._spans(running, step_tokens)
            if spans:
                arrived = [by_number[s.sequence] for s in spans if s.sequence not in met]
                met |= {each.number for each in arrived}
                plan = StepPlan(self.step, tuple(map(_as_new, arrived)), tuple(spans))
                self.link.send(plan)
                in_flight.append(self.step)
                self.step += 1
                continue
            outcome = await self.next_event(StepOutcome)
            assert outcome.step == in_flight.popleft(), "outcomes come in the order of plans"
            for token in outcome.tokens:
                by_number[token.sequence].tokens.append(token)
            for failure in outcome.failures:
                by_number[failure.sequence].error = failure.error
        await self._finish(running)
        return [Result(each.tokens, each.error) for each in running]

    def _spans(self, running: list[_Progress], step_tokens: int) -> list[Span]:
        spans: list[Span] = []
        room = step_tokens
        for each in running:
            if each.done or each.planned >= each.job.sampling.max_new_tokens or room == 0:
                continue
            left = len(each.job.prompt) - each.start
            count = 1
            if left > 0:
                chunks = each.job.chunks
                count = min(left, chunks[each.chunk % len(chunks)], room)
                each.chunk += 1
            samples = left - count <= 0
            blocks = self._extend(each, each.start + count)
            spans.append(Span(each.number, each.start, count, samples, blocks))
            each.start += count
            each.planned += samples
            room -= count
        return spans

    def _extend(self, each: _Progress, positions: int) -> tuple[int, ...]:
        needed = -(-positions // self.hello.info.block_tokens) - len(each.blocks)
        new = [self._free_blocks.pop() for _ in range(needed)]
        each.blocks += new
        return tuple(new)

    async def _finish(self, running: list[_Progress]) -> None:
        numbers = tuple(each.number for each in running)
        self.link.send(StepPlan(self.step, (), (), numbers))
        outcome = await self.next_event(StepOutcome)
        assert outcome == replace(outcome, step=self.step, tokens=(), failures=())
        self.step += 1
        for each in running:
            self._free_blocks += each.blocks


def _as_new(each: _Progress) -> NewSequence:
    job = each.job
    return NewSequence(each.number, tuple(job.prompt), len(job.prompt), job.slot, job.sampling)


@dataclass(frozen=True, slots=True)
class Reference:
    """transformers and PEFT over the same files, one sequence at a time in float32, no cache."""

    model: Any

    def greedy(
        self, prompt: Sequence[int], adapter: Path | None = None, tokens: int = 12
    ) -> tuple[list[int], int]:
        """Returns: the tokens, and how many of them are beyond doubt (MARGIN)."""
        if adapter is None:
            return self._greedy(self.model, prompt, tokens)
        wrapped = PeftModel.from_pretrained(self.model, str(adapter)).eval()
        try:
            return self._greedy(wrapped, prompt, tokens)
        finally:
            wrapped.unload()

    @torch.inference_mode()
    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """[vocabulary] after the last token."""
        logits: torch.Tensor = self.model(torch.tensor([list(token_ids)])).logits[0, -1]
        return logits

    @torch.inference_mode()
    def _greedy(self, model: Any, prompt: Sequence[int], tokens: int) -> tuple[list[int], int]:
        token_ids = list(prompt)
        sure: int | None = None
        for index in range(tokens):
            best = model(torch.tensor([token_ids])).logits[0, -1].topk(2)
            if sure is None and float(best.values[0] - best.values[1]) < MARGIN:
                sure = index
            token_ids.append(int(best.indices[0]))
        return token_ids[len(prompt) :], tokens if sure is None else sure


@dataclass(frozen=True, slots=True)
class World:
    """A model, a root of adapters, and a worker that serves them."""

    model: Path
    adapters: Path
    shape: ModelShape
    vocabulary: int
    worker: WorkerProcess
    reference: Reference

    def key(self, name: str) -> AdapterKey:
        return AdapterKey("", "local", name)

    def prompt(self, length: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        ids: list[int] = torch.randint(3, self.vocabulary, (length,), generator=generator).tolist()
        return ids


_ALL = tuple(Module)
_ATTENTION = (Module.Q, Module.K, Module.V, Module.O)
_MLP = (Module.GATE, Module.UP, Module.DOWN)
# Every rank, every choice of modules, and everything in adapter_config.json that changes the scale.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rank-1-all": {"rank": 1},
    "rank-2-attention": {"rank": 2, "modules": _ATTENTION},
    "rank-4-mlp": {"rank": 4, "modules": _MLP},
    "rank-8-all": {"rank": 8},
    "rank-8-query-value": {"rank": 8, "modules": (Module.Q, Module.V)},
    "rank-12-all": {"rank": 12, "alpha": 7.0},
    "rank-16-rslora": {"rank": 16, "use_rslora": True},
    "rank-24-mlp-rslora": {"rank": 24, "modules": _MLP, "use_rslora": True},
    "rank-48-attention": {"rank": 48, "modules": _ATTENTION},
    "rank-64-all": {"rank": 64},
    "second-layer-only": {"rank": 8, "layers": [1]},
    "first-layer-down-only": {"rank": 4, "layers": [0], "modules": (Module.DOWN,)},
    "rank-pattern": {"rank": 8, "rank_pattern": {"q_proj": 32, "down_proj": 3}},
    "alpha-pattern": {"rank": 8, "alpha": 8.0, "alpha_pattern": {"v_proj": 32.0, "up_proj": 2.0}},
    "both-patterns-rslora": {
        "rank": 6,
        "rank_pattern": {"layers.1.self_attn.o_proj": 20},
        "alpha_pattern": {"gate_proj": 3.0},
        "use_rslora": True,
    },
}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def adapter_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("adapters")
    shape = tiny_shape(tiny_config())
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        write_random_adapter(root / name, shape, seed=seed, strength=0.5, **options)
    return root


@pytest.fixture(scope="module", params=["unix", "tcp"])
def world(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Path,
    adapter_root: Path,
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("worker")
    address = f"unix://{folder}/w.sock" if request.param == "unix" else "127.0.0.1:0"
    flags = ("--local-adapter-root", str(adapter_root), "--max-batch-tokens", "128")
    worker = start_worker(model_folder, address, folder, *flags)
    config = tiny_config()
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    try:
        yield World(
            model_folder,
            adapter_root,
            tiny_shape(config),
            config["vocab_size"],
            worker,
            Reference(model),
        )
    finally:
        assert worker.stop() == 0, worker.log.read_text()


@pytest.fixture
async def hand(world: World) -> AsyncIterator[Hand]:
    hand = Hand(world.worker.address)
    await hand.connect()
    yield hand
    await hand.close()


@pytest.fixture
def make_hand() -> Callable[..., Hand]:
    return Hand


@pytest.fixture
def new_worker(model_folder: Path, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start workers of this test's own; they are ended with it."""
    started: list[WorkerProcess] = []

    def start(address: str = "127.0.0.1:0", *flags: str) -> WorkerProcess:
        worker = start_worker(model_folder, address, tmp_path / f"w{len(started)}", *flags)
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture(scope="session")
def job() -> type[Job]:
    """Job, by a fixture: modules of the importlib mode cannot import each other."""
    return Job


@pytest.fixture(scope="session")
def adapter_names() -> list[str]:
    return list(ADAPTERS)
