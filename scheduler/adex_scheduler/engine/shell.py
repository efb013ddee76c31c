"""The shell around the core: tell it each fact, carry out what it says, pass tokens on.

Everything happens on one event loop, and every fact goes through one queue, so the core is never
re-entered. A caller's pieces wait in its own stream, which the length of its generation bounds: a
slow reader delays nobody. What a caller does not want any more is told to the core at once.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from adex_proto.adapter import AdapterKey
from adex_proto.errors import AdexError, ProtocolViolation, ShuttingDown, WorkerLost
from adex_proto.grammar import Grammar
from adex_proto.outcome import Heartbeat, Hello, SampledToken, StepOutcome, WorkerInfo
from adex_proto.plan import AdapterCommand, StepPlan
from adex_proto.sampling import FinishReason
from adex_scheduler.core.events import (
    Cancelled,
    Drained,
    Event,
    MovesDue,
    StopFound,
    Ticked,
    WorkerGone,
    WorkerReady,
)
from adex_scheduler.core.instructions import (
    Brought,
    Disconnect,
    Emit,
    Fail,
    Instruction,
    Send,
    SendPlan,
)
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.core.statistics import CoreStatistics
from adex_scheduler.engine.control import Askings, ControlRequest, Progress, event_of
from adex_scheduler.engine.credentials import Credentials
from adex_scheduler.engine.journey import Journey
from adex_scheduler.engine.ports import Link
from adex_scheduler.engine.recorder import Observer, Recorder
from adex_scheduler.engine.scene import Scene
from adex_scheduler.engine.streams import (
    AdapterStatus,
    EngineRequest,
    Piece,
    Stream,
    TokenTexts,
    fresh,
    status_of,
)
from adex_scheduler.link.worker import LinkEvent, LinkLost

_LOG = logging.getLogger("adex_scheduler.engine")
_TICK_S = 1.0


class Engine:
    """Serves requests through one worker, from `run`'s start to its cancellation."""

    def __init__(
        self,
        link: Link,
        tokenizer: TokenTexts,
        limits: Limits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
    ) -> None:
        self._link = link
        self._tokenizer = tokenizer
        self._limits = limits or Limits()
        self._clock = clock
        self._recorder = Recorder(clock, observer)
        self._core: SchedulerCore | None = None
        self._events: deque[Event] = deque()
        self._telling = False
        self._streams: dict[int, Stream] = {}
        self._credentials = Credentials()
        self._askings = Askings(
            self._credentials, lambda key: self._core is not None and key in self._core.control.pins
        )
        self._numbers = 0
        self._draining = False
        self._disconnect: str | None = None
        self._link_task: asyncio.Task[None] | None = None
        self._crash: BaseException | None = None
        self._ready = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    # What the fronts use.

    @property
    def info(self) -> WorkerInfo | None:
        """The worker's description of itself; None until one has said hello."""
        return self._core.info if self._core else None

    @property
    def ready(self) -> bool:
        """Whether a worker is connected and new requests are taken."""
        return self._ready.is_set() and not self._draining

    async def wait_ready(self) -> None:
        """Wait for a worker to be connected."""
        await self._ready.wait()

    async def stream(
        self, request: EngineRequest, journey: Journey | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one generation, the last one with `finish`. Raises AdexError.

        Closing the generator, or cancelling who reads it, cancels the sequence at once. What
        happens to the sequence, and when, is written into `journey`.
        """
        stream = self._begin(request, journey or Journey())
        try:
            while True:
                while stream.pieces:
                    piece = stream.pieces.popleft()
                    yield piece
                    if piece.finish is not None:
                        return
                if stream.error is not None:
                    raise fresh(stream.error)
                stream.wake.clear()
                await stream.wake.wait()
        finally:
            if not stream.over:
                self._recorder.ended(stream, "cancelled", self._core)
                self._forget(stream)
                self._tell(Cancelled(stream.number))

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Have a grammar ready before sequences need it. Raises AdexError where it cannot be."""
        await self._link.prepare_grammar(grammar)

    def adapters(self, most: int) -> list[AdapterStatus]:
        """The `most` names used last, the latest first, and those pinned."""
        if self._core is None:
            return []
        named = dict.fromkeys(alias.key for alias in self._core.residency.names.latest(most))
        # A pin stands though its name may mean nothing now.
        keys = named | dict.fromkeys(self._core.control.pins)
        return [status for key in keys if (status := self.adapter(key)) is not None]

    def adapter(self, key: AdapterKey) -> AdapterStatus | None:
        """What is known of one name."""
        return None if self._core is None else status_of(self._core, key, self._clock())

    def longest_wait_s(self) -> float:
        """How long the sequence has waited that has waited longest for its first step."""
        return self._recorder.longest_wait_s(self._streams.values())

    def waiting_names(self) -> set[AdapterKey]:
        """The adapters that sequences wait to begin with."""
        return self._recorder.waiting_names(self._streams.values())

    async def control(self, request: ControlRequest) -> AsyncGenerator[Progress, None]:
        """What becomes of a request about an adapter, the last word with `done`. Raises AdexError.

        Closing the generator gives a preload up; what else was asked goes on.
        """
        number = self._next_number()
        asking = self._askings.begin(request, number)
        self._tell(event_of(request, number))
        try:
            async for progress in asking.progress():
                yield progress
        finally:
            if self._askings.end(asking):
                self._tell(Cancelled(number))

    def statistics(self) -> CoreStatistics | None:
        """The core's own picture; None until a worker has said hello."""
        return self._core.statistics() if self._core else None

    def scene(self) -> Scene | None:
        """What those who watch see, bounded; None until a worker has said hello."""
        return self._recorder.scene(self._core, draining=self._draining) if self._core else None

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, wait for what there is, and end what is left after `timeout_s`."""
        self._draining = True
        self._recorder.draining()
        if self._core is not None:
            self._tell(Drained())
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        for stream in list(self._streams.values()):
            self._tell(Cancelled(stream.number))
            self._fail(stream, ShuttingDown("The server shut down before the generation ended"))

    async def run(self) -> None:
        """Keep the worker connected until cancelled. Raises what breaks the engine itself."""
        ticker = asyncio.create_task(self._tick())
        try:
            while self._crash is None:
                self._link_task = asyncio.create_task(self._link.run(self._on_link_event))
                done, _ = await asyncio.wait([self._link_task])
                reason, self._disconnect = self._disconnect, None
                if reason is None and self._crash is None:
                    done.pop().result()
                    raise ProtocolViolation("the link ended of itself")
                if reason is not None:
                    self._lose(reason)
        finally:
            await _end([ticker, self._link_task])
            self._fail_all(ShuttingDown("The server shut down"))
        raise self._crash

    # Facts go in.

    def _next_number(self) -> int:
        if self._core is None or self._crash is not None:
            raise WorkerLost("No worker is connected yet", retry_after_s=1.0)
        self._numbers += 1
        return self._numbers

    def _begin(self, request: EngineRequest, journey: Journey) -> Stream:
        number = self._next_number()
        assert self._core is not None
        journey.submitted_s = self._clock()
        journey.prompt_tokens = len(request.token_ids)
        stream = Stream(request, number, self._tokenizer, journey)
        self._streams[stream.number] = stream
        self._credentials.hold(request.key, request.credential)
        self._idle.clear()
        self._tell(request.arrived(stream.number))
        self._recorder.submitted(stream, self._core)
        return stream

    def _on_link_event(self, event: LinkEvent) -> None:
        match event:
            case Hello():
                if self._core is None:
                    self._core = SchedulerCore(event.info, self._limits)
                    if self._draining:
                        self._tell(Drained())
                self._recorder.connected()
                self._tell(WorkerReady(event))
                self._ready.set()
            case LinkLost():
                self._lose(event.reason)
            case Heartbeat():
                pass
            case StepOutcome():
                self._recorder.computed(event)
                self._tell(event)
            case _:
                if self._core is not None:
                    self._recorder.answered(event, self._core)
                self._tell(event)

    def _lose(self, reason: str) -> None:
        self._ready.clear()
        self._recorder.lost(reason)
        self._tell(WorkerGone(reason))

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._core is not None:
                self._tell(Ticked())

    def _tell(self, event: Event) -> None:
        """Give the core a fact, and all that follow from carrying out its instructions."""
        if self._core is None or self._crash is not None:
            return
        self._events.append(event)
        if self._telling:
            return
        self._telling = True
        try:
            while self._events:
                self._decide(self._core)
        except Exception as error:
            self._break(error)
        finally:
            self._telling = False

    def _decide(self, core: SchedulerCore) -> None:
        """Take in what has happened. Plans leave first, then moves; callers' text comes after."""
        answers: list[Instruction] = []
        facts, self._events = self._events, deque()
        for event in (*facts, MovesDue()):
            for instruction in core.handle(event, self._clock()):
                if isinstance(instruction, SendPlan | Send):
                    self._carry_out(instruction, core)
                else:
                    answers.append(instruction)
        for instruction in answers:
            self._carry_out(instruction, core)

    def _break(self, error: Exception) -> None:
        """A fault of our own: nothing the core says can be trusted, so everything ends."""
        _LOG.exception("the engine failed")
        self._crash = error
        self._ready.clear()
        self._events.clear()
        self._fail_all(ProtocolViolation("The scheduler failed"))
        if self._link_task is not None:
            self._link_task.cancel()

    # Instructions come out.

    def _carry_out(self, instruction: Instruction, core: SchedulerCore) -> None:
        match instruction:
            case SendPlan():
                self._send(instruction.plan)
                self._recorder.planned(instruction.plan, self._streams, core)
            case Send():
                self._recorder.sent(instruction.command)
                self._send(self._credentials.added_to(instruction.command))
            case Emit():
                self._emit(instruction)
            case Fail():
                stream = self._streams.get(instruction.number)
                if stream is not None:
                    self._fail(stream, instruction.error)
                else:
                    self._askings.fail(instruction.number, instruction.error)
            case Brought():
                self._askings.tell(instruction)
            case Disconnect():
                self._close_link(instruction.reason)

    def _send(self, down: StepPlan | AdapterCommand) -> None:
        try:
            self._link.send(down)
        except WorkerLost:
            # The stream is gone; the link reports it as an event of its own.
            _LOG.debug("not sent: %s", type(down).__name__)
        except AdexError as error:
            self._close_link(str(error))

    def _close_link(self, reason: str) -> None:
        _LOG.error("closing the stream to the worker: %s", reason)
        self._ready.clear()
        self._disconnect = reason
        if self._link_task is not None:
            self._link_task.cancel()

    def _emit(self, emit: Emit) -> None:
        for scores in emit.scores:
            stream = self._streams.get(scores.sequence)
            if stream is not None:
                stream.score(scores)
        finished = dict(emit.finished)
        for token in emit.tokens:
            stream = self._streams.get(token.sequence)
            if stream is not None:
                self._show(stream, token, finished.get(token.sequence))

    def _show(self, stream: Stream, token: SampledToken, finish: FinishReason | None) -> None:
        """Give the caller the token; a stop string in its text ends the sequence."""
        if not stream.journey.generated:
            self._recorder.showed_first(stream)
        if stream.push(token, finish) and finish is None:
            self._tell(StopFound(stream.number))
        if stream.finish is not None:
            self._recorder.ended(stream, stream.finish.value, self._core)
            self._forget(stream)

    def _fail(self, stream: Stream, error: AdexError) -> None:
        stream.fail(error)
        self._recorder.ended(stream, error.code, self._core)
        self._forget(stream)

    def _fail_all(self, error: AdexError) -> None:
        for stream in list(self._streams.values()):
            self._fail(stream, error)
        self._askings.fail_all(error)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) is not None:
            self._credentials.release(stream.request.key)
        if not self._streams:
            self._idle.set()


async def _end(tasks: list[asyncio.Task[None] | None]) -> None:
    """Cancel the tasks and wait until they are gone."""
    started: list[Coroutine[Any, Any, None] | asyncio.Task[None]] = []
    for task in tasks:
        if task is not None:
            task.cancel()
            started.append(task)
    await asyncio.gather(*started, return_exceptions=True)
