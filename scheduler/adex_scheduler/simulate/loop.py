"""A trace served: one scheduler, one modelled worker, one clock that jumps from event to event.

The scheduler is whatever has the door `handle(event, now) -> instructions`; the one that serves has
it, and so have the baselines. Equal inputs give equal results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol, assert_never

from adex_proto.adapter import AdapterKey
from adex_proto.sampling import SamplingParams
from adex_scheduler.core.events import Arrived, Event, MovesDue, Ticked, WorkerReady
from adex_scheduler.core.instructions import (
    Brought,
    Disconnect,
    Emit,
    Fail,
    Instruction,
    Send,
    SendPlan,
)
from adex_scheduler.simulate.result import RequestRecord, RunResult, TokenGap
from adex_scheduler.simulate.trace import TracedRequest
from adex_scheduler.simulate.worker import TOKEN, ModelledWorker

TICK_S = 0.25


class Scheduler(Protocol):
    """What decides."""

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one fact and say what to do about it."""
        ...


@dataclass(frozen=True, slots=True)
class Course:
    """How the trace is played.

    `streams` None plays it as its times say; a number closes the loop: so many callers, each asking
    for the next of the trace as soon as it is answered. `until_s` ends it, finished or not.
    """

    streams: int | None = None
    until_s: float = 1e9


class Simulation:
    """One run. A request's number is its place in the trace. `on_tick` is for who watches."""

    def __init__(
        self,
        scheduler: Scheduler,
        worker: ModelledWorker,
        requests: Sequence[TracedRequest],
        course: Course,
        on_tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._scheduler = scheduler
        self._worker = worker
        self._requests = requests
        self._course = course
        self._on_tick = on_tick
        self._records: dict[int, RequestRecord] = {}
        self._open: dict[int, RequestRecord] = {}
        self._tokenless: set[int] = set()
        # Who got a token last, and when; of those who since missed one, when theirs came.
        self._emitted: frozenset[int] = frozenset()
        self._emitted_at = 0.0
        self._missing: dict[int, float] = {}
        self._gaps: list[TokenGap] = []
        self._heap: list[tuple[float, int, Event]] = []
        self._order = 0
        self._next = 0
        self._sampling: dict[int, SamplingParams] = {}
        self._now = 0.0

    def run(self) -> RunResult:
        """Serve until every request has ended, or the course's end."""
        self._tell(WorkerReady(self._worker.hello()))
        self._push(TICK_S, Ticked())
        for _ in range(self._course.streams or 0):
            self._arrive_next()
        self._tell(MovesDue())
        open_loop = self._course.streams is None
        requests, until = self._requests, self._course.until_s
        while self._open or self._next < len(requests):
            due = requests[self._next].time_s if open_loop and self._next < len(requests) else 1e12
            at = min(due, self._heap[0][0])
            if at > until:
                self._now = until
                break
            self._now = max(self._now, at)
            if due <= self._heap[0][0]:
                self._arrive_next()
            else:
                self._happen(heappop(self._heap)[2])
            self._tell(MovesDue())
        return RunResult(
            self._now, tuple(self._records.values()), self._worker.times, tuple(self._gaps)
        )

    def _happen(self, event: Event) -> None:
        if isinstance(event, Ticked):
            self._push(self._now + TICK_S, event)
            self._on_tick()
        self._tell(event)

    def _push(self, at: float, event: Event) -> None:
        self._order += 1
        heappush(self._heap, (at, self._order, event))

    def _arrive_next(self) -> None:
        if self._next >= len(self._requests):
            return
        number, request = self._next, self._requests[self._next]
        self._next += 1
        record = RequestRecord(number, self._now, request)
        self._records[number] = self._open[number] = record
        self._tokenless.add(number)
        key = AdapterKey("", "local", request.adapter) if request.adapter is not None else None
        self._tell(Arrived(number, request.tenant, key, self._prompt(request), self._ask(request)))

    def _ask(self, request: TracedRequest) -> SamplingParams:
        count = request.output_tokens
        if count not in self._sampling:
            self._sampling[count] = SamplingParams(max_new_tokens=count, ignore_eos=True)
        return self._sampling[count]

    def _prompt(self, request: TracedRequest) -> tuple[int, ...]:
        """Tokens that none but the adapter's requests share, and then none but the session's own,
        because of the first of each.
        """
        own = self._next if request.session is None else 2**30 + request.session
        shared = min(request.shared_tokens, request.prompt_tokens - 1)
        head = (0, *(TOKEN,) * (shared - 1)) if shared else ()
        return (*head, own, *(TOKEN,) * (request.prompt_tokens - shared - 1))

    def _tell(self, event: Event) -> None:
        now, worker = self._now, self._worker
        for instruction in self._scheduler.handle(event, now):
            match instruction:
                case SendPlan(plan):
                    self._push(*worker.submit(plan, now))
                case Send(command):
                    self._push(*worker.carry_out(command, now))
                case Emit():
                    self._emit(instruction)
                case Fail(number, error):
                    self._open.pop(number).error = error.code
                    self._ended()
                case Brought() | Disconnect():
                    raise AssertionError(f"nothing in a simulation leads to {instruction}")
                case _:
                    assert_never(instruction)

    def _emit(self, emit: Emit) -> None:
        now, tokenless = self._now, self._tokenless
        self._note_gaps(frozenset(emit.tokens.sequences))
        if tokenless:
            for token in emit.tokens:
                if token.sequence in tokenless:
                    tokenless.discard(token.sequence)
                    self._open[token.sequence].first_at = now
        for number, _ in emit.finished:
            self._open.pop(number).finished_at = now
            self._ended()
        self._emitted = self._emitted.difference([number for number, _ in emit.finished])

    def _note_gaps(self, emitted: frozenset[int]) -> None:
        """Most go on from the last step to this one, all of them after the same time."""
        now, before, missing = self._now, self._emitted, self._missing
        if going_on := len(emitted & before):
            self._gaps.append(TokenGap(now, now - self._emitted_at, going_on))
        for number in emitted - before:
            if (since := missing.pop(number, None)) is not None:
                self._gaps.append(TokenGap(now, now - since, 1))
        missing.update(dict.fromkeys(before - emitted, self._emitted_at))
        self._emitted, self._emitted_at = emitted, now

    def _ended(self) -> None:
        if self._course.streams is not None:
            self._arrive_next()
