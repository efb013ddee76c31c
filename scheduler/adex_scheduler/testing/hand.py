"""The least scheduler there can be: a hand that drives one worker over the link, for tests.

It cuts prompts into the chunks it is told to, keeps two plans in flight, and hands out KV blocks
from the top of the pool and adapter runs from the bottom. It decides nothing and frees no pages of
adapters.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

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
    TokenScore,
)
from adex_proto.plan import Decodes, Evict, Fetch, NewSequence, PageIn, Span, Stage, StepPlan
from adex_proto.sampling import SamplingParams
from adex_scheduler.link.worker import LinkEvent, LinkOptions, WorkerLink

PLANS_IN_FLIGHT = 2
_WAIT_S_MAX = 60.0
_GREEDY = SamplingParams(max_new_tokens=12)


@dataclass(slots=True)
class Job:
    """One sequence to generate. `chunks` are the sizes its prompt is cut into, in turn."""

    prompt: list[int]
    slot: int = 0
    sampling: SamplingParams = _GREEDY
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
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    error: AdexError | None = None

    @property
    def done(self) -> bool:
        return self.error is not None or len(self.tokens) >= self.job.sampling.max_new_tokens


@dataclass(slots=True)
class Result:
    """What one job gained: tokens, or the error that ended it."""

    tokens: list[SampledToken]
    error: AdexError | None
    scores: list[TokenScore]

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
            event = await asyncio.wait_for(self.events.get(), _WAIT_S_MAX)
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
            decodes = Decodes()
            if len(in_flight) < PLANS_IN_FLIGHT:
                spans, decodes = self._parts(running, step_tokens)
            if spans or decodes.sequences:
                arrived = [by_number[s.sequence] for s in spans if s.sequence not in met]
                met |= {each.number for each in arrived}
                new = tuple(map(_as_new, arrived))
                self.link.send(StepPlan(self.step, new, tuple(spans), (), decodes))
                in_flight.append(self.step)
                self.step += 1
                continue
            outcome = await self.next_event(StepOutcome)
            assert outcome.step == in_flight.popleft(), "outcomes come in the order of plans"
            for token in outcome.tokens:
                by_number[token.sequence].tokens.append(token)
            for scores in outcome.scores:
                by_number[scores.sequence].scores.extend(scores.tokens)
            for failure in outcome.failures:
                by_number[failure.sequence].error = failure.error
        await self._finish(running)
        return [Result(each.tokens, each.error, each.scores) for each in running]

    def _parts(self, running: list[_Progress], step_tokens: int) -> tuple[list[Span], Decodes]:
        spans: list[Span] = []
        decoding: list[int] = []
        pages: dict[int, int] = {}
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
            if left > 0:
                spans.append(Span(each.number, each.start, count, samples, blocks))
            else:
                decoding.append(each.number)
                pages.update((each.number, page) for page in blocks)
            each.start += count
            each.planned += samples
            room -= count
        return spans, Decodes(tuple(decoding), tuple(pages), tuple(pages.values()))

    def _extend(self, each: _Progress, positions: int) -> tuple[int, ...]:
        needed = -(-positions // self.hello.info.block_tokens) - len(each.blocks)
        new = [self._free_blocks.pop() for _ in range(needed)]
        each.blocks += new
        return tuple(new)

    async def _finish(self, running: list[_Progress]) -> None:
        numbers = tuple(each.number for each in running)
        self.link.send(StepPlan(self.step, (), (), numbers))
        outcome = await self.next_event(StepOutcome)
        assert outcome == StepOutcome(self.step, seconds=outcome.seconds)
        self.step += 1
        for each in running:
            self._free_blocks += each.blocks


def _as_new(each: _Progress) -> NewSequence:
    job = each.job
    return NewSequence(each.number, tuple(job.prompt), len(job.prompt), job.slot, job.sampling)
