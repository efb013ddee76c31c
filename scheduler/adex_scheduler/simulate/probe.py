"""Measures a worker: plans made to vary one thing after the other, and moves of adapters."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError, StepFailed, WorkerLost
from adex_proto.outcome import (
    Evicted,
    Fetched,
    FetchFailed,
    Heartbeat,
    Hello,
    Moved,
    MoveFailed,
    StepOutcome,
    WorkerInfo,
)
from adex_proto.plan import AdapterCommand, Evict, Fetch, NewSequence, PageIn, Span, Stage, StepPlan
from adex_proto.sampling import SamplingParams
from adex_scheduler.link.worker import LinkEvent, LinkLost, WorkerLink
from adex_scheduler.simulate.fit import MeasuredStep

_ANSWER_S_MAX = 300.0
_DECODES = 4
Answered = TypeVar("Answered", bound=LinkEvent)


@dataclass(frozen=True, slots=True)
class Resident:
    """An adapter on the device."""

    slot: int
    version: AdapterVersion


@dataclass(frozen=True, slots=True)
class MoveTimes:
    """(bytes, seconds) of single moves, by kind; `resolved` are of names the worker knew."""

    fetched: tuple[tuple[float, float], ...]
    resolved: tuple[tuple[float, float], ...]
    staged: tuple[tuple[float, float], ...]
    paged_in: tuple[tuple[float, float], ...]


class Probe:
    """Holds one worker's stream. Adapters take the pool's low end, KV blocks its high end."""

    def __init__(self, address: str) -> None:
        self._link = WorkerLink(address)
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._step = 0
        self._sequence = 0
        self._page = 0
        self.info: WorkerInfo

    async def open(self) -> None:
        """Connect. Raises WorkerLost when no worker answers in time."""
        self._task = asyncio.create_task(self._link.run(self._events.put_nowait))
        self.info = (await self._next(Hello)).info

    async def close(self) -> None:
        """Give the worker free."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _next(self, kind: type[Answered]) -> Answered:
        while True:
            try:
                event = await asyncio.wait_for(self._events.get(), _ANSWER_S_MAX)
            except TimeoutError as error:
                raise WorkerLost(f"{self._link.address} did not answer") from error
            match event:
                case Heartbeat():
                    continue
                case LinkLost(reason):
                    raise WorkerLost(f"the worker went away: {reason}")
                case FetchFailed(_, failure) | MoveFailed(_, _, failure):
                    raise failure
                case _:
                    assert isinstance(event, kind), f"{event} instead of a {kind.__name__}"
                    return event

    # Adapters.

    async def bring(self, keys: Sequence[AdapterKey]) -> tuple[list[Resident], MoveTimes]:
        """Bring adapters to the device, one move at a time, as many as half of the pool holds."""
        fetched: list[tuple[float, float]] = []
        resolved: list[tuple[float, float]] = []
        staged: list[tuple[float, float]] = []
        paged_in: list[tuple[float, float]] = []
        residents: list[Resident] = []
        known: set[str] = set()
        for key in keys:
            first, version = await self._fetch(key)
            again, _ = await self._fetch(key)
            size = float(version.bundle_bytes)
            fetched.append((size, first))
            resolved.append((size, again))
            pages = -(-version.bundle_bytes // self.info.page_bytes)
            full = self._page + pages > self.info.pages // 2
            if full or len(residents) == self.info.slots_max or version.digest in known:
                continue
            known.add(version.digest)
            staged.append((size, await self._move(Stage(version.digest))))
            slot = len(residents) + 1
            command = PageIn(version.digest, slot, self._page, pages)
            paged_in.append((size, await self._move(command)))
            self._page += pages
            residents.append(Resident(slot, version))
        times = MoveTimes(tuple(fetched), tuple(resolved), tuple(staged), tuple(paged_in))
        return residents, times

    async def _fetch(self, key: AdapterKey) -> tuple[float, AdapterVersion]:
        began = time.perf_counter()
        self._link.send(Fetch(key))
        version = (await self._next(Fetched)).version
        return time.perf_counter() - began, version

    async def _move(self, command: AdapterCommand) -> float:
        began = time.perf_counter()
        self._link.send(command)
        await self._next(Moved)
        return time.perf_counter() - began

    async def evict(self, residents: Sequence[Resident]) -> None:
        """Free the device of what `bring` brought."""
        for resident in residents:
            self._link.send(Evict(resident.version.digest, Tier.DEVICE))
            await self._next(Evicted)

    # Steps.

    async def measure(
        self, sequences: int, prompt: int, residents: Sequence[Resident]
    ) -> list[MeasuredStep]:
        """Serve `sequences` prompts of `prompt` tokens for a few tokens each, over `residents`.

        Every step is one measurement: prompts cut into chunks, then decodes.
        """
        per = -(-(prompt + _DECODES + 1) // self.info.block_tokens)
        pages = iter(range(self.info.pages - 1, self.info.pages - 1 - per * sequences, -1))
        sampling = SamplingParams(max_new_tokens=_DECODES + 1, ignore_eos=True)
        numbers = range(self._sequence, self._sequence + sequences)
        self._sequence += sequences
        owner = {
            number: residents[place % len(residents)] if residents else None
            for place, number in enumerate(numbers)
        }
        token_ids = tuple(2 + place % (self.info.vocabulary - 2) for place in range(prompt))
        blocks = {number: deque(next(pages) for _ in range(per)) for number in numbers}
        found: list[MeasuredStep] = []
        arrived: set[int] = set()
        for spans in self._plans(numbers, prompt):
            given = tuple(
                Span(one.sequence, one.start, one.count, one.samples, tuple(blocks[one.sequence]))
                if one.start == 0
                else one
                for one in spans
            )
            new = tuple(
                NewSequence(n, token_ids, prompt, slot.slot if (slot := owner[n]) else 0, sampling)
                for n in (one.sequence for one in spans)
                if n not in arrived
            )
            arrived.update(one.sequence for one in new)
            seconds = await self._run(StepPlan(self._step, new, given))
            used = {r.slot: r for one in spans if (r := owner[one.sequence]) is not None}
            found.append(
                MeasuredStep(
                    tokens=sum(one.count for one in spans),
                    sequences=len(spans),
                    kv_tokens=sum(one.start + one.count for one in spans),
                    adapters=len(used),
                    adapter_bytes=float(sum(r.version.bundle_bytes for r in used.values())),
                    seconds=seconds,
                )
            )
        await self._run(StepPlan(self._step, (), (), tuple(numbers)))
        return found

    def _plans(self, numbers: range, prompt: int) -> Iterator[list[Span]]:
        """The prompts in as few steps as the worker allows, then `_DECODES` steps of all."""
        room, spans = self.info.step_tokens_max, list[Span]()
        for number in numbers:
            start = 0
            while start < prompt:
                count = min(prompt - start, room)
                spans.append(Span(number, start, count, start + count == prompt))
                start, room = start + count, room - count
                if not room:
                    yield spans
                    room, spans = self.info.step_tokens_max, []
        if spans:
            yield spans
        for place in range(_DECODES):
            yield [Span(number, prompt + place, 1, samples=True) for number in numbers]

    async def _run(self, plan: StepPlan) -> float:
        self._step += 1
        self._link.send(plan)
        outcome = await self._next(StepOutcome)
        if outcome.failures:
            error: AdexError = outcome.failures[0].error
            raise StepFailed(f"a step to be measured failed: {error}") from error
        return outcome.seconds
