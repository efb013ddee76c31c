"""One worker's Run stream, kept open: plans and commands down, everything else up, in order.

The link knows nothing about what it carries. It turns whatever ends a stream, a worker that falls
silent included, into one LinkLost, and then tries again until it is cancelled.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import grpc
import grpc.aio

from adex_proto.codec import (
    Down,
    FromWorkerMessage,
    ToWorkerMessage,
    Up,
    decode_from_worker,
    decode_grammar_reply,
    encode_to_worker,
)
from adex_proto.errors import ProtocolViolation, WorkerLost
from adex_proto.grammar import Grammar
from adex_proto.outcome import Hello
from adex_proto.sampling_codec import grammar_to_wire
from adex_proto.transport import CHANNEL_OPTIONS, MESSAGE_BYTES_MAX
from adex_proto.v1.worker_pb2_grpc import WorkerStub

_LOG = logging.getLogger(__name__)
# A worker that is still loading its model is nothing to warn of yet.
_PATIENT_ATTEMPTS = 10


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """Limits of one link; `silence_s_max` is how long a worker may send not even a heartbeat.

    `grammar_s_max` is how long it may take to compile a grammar, those before it included.
    """

    connect_s_max: float = 10.0
    silence_s_max: float = 15.0
    back_off_s_min: float = 0.1
    back_off_s_max: float = 1.0
    queue_max: int = 16384
    grammar_s_max: float = 30.0


@dataclass(frozen=True, slots=True)
class LinkLost:
    """The stream is gone, and with it every sequence, slot and device copy on the worker."""

    reason: str


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """A snapshot. `last_failure` is why the link is or was down, "" if it never was."""

    connected: bool
    connections: int
    attempts: int
    queued: int
    last_failure: str


LinkEvent = Up | LinkLost


class _Call(Protocol):
    """What we use of grpc.aio's StreamStreamCall, which ships without types."""

    async def read(self) -> object: ...
    async def write(self, request: object) -> None: ...
    def cancel(self) -> bool: ...


class _Channel(Protocol):
    """What we use of grpc.aio's Channel."""

    async def close(self, grace: float | None = None) -> None: ...


class _StreamEndError(Exception):
    """The stream has ended; carries why, in words."""


@dataclass(slots=True)
class _Stream:
    """One open Run call and what waits to be written to it."""

    stub: Any
    call: _Call
    outbox: asyncio.Queue[ToWorkerMessage]
    overflowed: asyncio.Event = field(default_factory=asyncio.Event)


class WorkerLink:
    """Connects to one worker and stays connected until `run` is cancelled.

    Every stream's first event is Hello and, once Hello was given, its last is LinkLost.
    """

    def __init__(self, address: str, options: LinkOptions | None = None) -> None:
        """`address` is host:port or unix:///path."""
        self.address = address
        self._options = options or LinkOptions()
        self._stream: _Stream | None = None
        self._connections = 0
        self._attempts = 0
        self._last_failure = ""

    def send(self, down: Down) -> None:
        """Queue a plan or command for the present stream; never waits.

        Raises WorkerLost when no stream is open (LinkLost has been reported, or Hello not yet) and
        ProtocolViolation for a message larger than the wire's limit. A worker that reads so slowly
        that the queue fills up is lost: LinkLost follows.
        """
        stream = self._stream
        if stream is None:
            raise self._unconnected()
        message = encode_to_worker(down)
        size = message.ByteSize()
        if size > MESSAGE_BYTES_MAX:
            raise ProtocolViolation(
                f"a {type(down).__name__} of {size} bytes exceeds the limit of {MESSAGE_BYTES_MAX}"
            )
        try:
            stream.outbox.put_nowait(message)
        except asyncio.QueueFull:
            stream.overflowed.set()

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Have the worker compile a grammar, and wait until it has.

        Raises what the worker says against it, and WorkerLost where there is none to ask.
        """
        stream = self._stream
        if stream is None:
            raise self._unconnected()
        back_off_s = self._options.back_off_s_max
        try:
            request, timeout_s = grammar_to_wire(grammar), self._options.grammar_s_max
            reply = await stream.stub.PrepareGrammar(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            reason = f"the worker did not answer for a grammar: {error.code().name}"
            raise WorkerLost(reason, retry_after_s=back_off_s) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Closing the channel of a stream that has ended cancels what was asked through it.
            reason = "the worker went away while it compiled a grammar"
            raise WorkerLost(reason, retry_after_s=back_off_s) from None
        refusal = decode_grammar_reply(reply)
        if refusal is not None:
            raise refusal

    def _unconnected(self) -> WorkerLost:
        # Where it listens and why it is gone, the log says; this may be told to a caller.
        return WorkerLost(
            "no worker is connected",
            remedy="Try again shortly",
            retry_after_s=self._options.back_off_s_max,
        )

    def statistics(self) -> LinkStatistics:
        stream = self._stream
        return LinkStatistics(
            connected=stream is not None,
            connections=self._connections,
            attempts=self._attempts,
            queued=stream.outbox.qsize() if stream is not None else 0,
            last_failure=self._last_failure,
        )

    async def run(self, on_event: Callable[[LinkEvent], None]) -> None:
        """Keep the link up for ever; `on_event` is called in order, from this task alone."""
        back_off_s, warned_of = self._options.back_off_s_min, ""
        while True:
            self._attempts += 1
            connections_before = self._connections
            reason = await self._one_stream(on_event)
            patient = self._connections == 0 and self._attempts < _PATIENT_ATTEMPTS
            self._last_failure = reason
            if reason != warned_of and not patient:
                _LOG.warning("worker at %s: %s", self.address, reason)
                warned_of = reason
            if self._connections > connections_before:
                back_off_s = self._options.back_off_s_min
            await asyncio.sleep(back_off_s)
            back_off_s = min(2 * back_off_s, self._options.back_off_s_max)

    async def _one_stream(self, on_event: Callable[[LinkEvent], None]) -> str:
        """Connect and carry one stream to its end. Returns: why it ended."""
        channel = cast(_Channel, grpc.aio.insecure_channel(self.address, options=CHANNEL_OPTIONS))
        try:
            stub = cast(Any, WorkerStub)(channel)
            # Failing at once, rather than waiting for the channel, yields the reason there is.
            call = cast(_Call, stub.Run(wait_for_ready=False))
            stream = _Stream(stub, call, asyncio.Queue(self._options.queue_max))
            return await self._carry(stream, on_event)
        finally:
            await channel.close()

    async def _carry(self, stream: _Stream, on_event: Callable[[LinkEvent], None]) -> str:
        """Read and write until the stream ends, and report LinkLost if Hello was. Returns: why."""
        reader = asyncio.create_task(self._read(stream, on_event))
        writer = asyncio.create_task(self._write(stream))
        watch = asyncio.create_task(self._watch_overflow(stream))
        tasks = (reader, writer, watch)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and not reader.done():
                # The reader learns the status the worker sent; the writer only that writing failed.
                await asyncio.wait([reader], timeout=1.0)
            reason = await _reason(next(task for task in tasks if task.done()))
            # `send` refuses from here on, so whoever sends is told first: nothing awaits between.
            if self._stream is not None:
                self._stream = None
                on_event(LinkLost(reason))
            return reason
        finally:
            self._stream = None
            stream.call.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, stream: _Stream, on_event: Callable[[LinkEvent], None]) -> None:
        silence_s_max = self._options.connect_s_max
        while True:
            try:
                async with asyncio.timeout(silence_s_max):
                    message = await stream.call.read()
            except TimeoutError:
                raise _StreamEndError(f"the worker was silent for {silence_s_max:g} s") from None
            if not isinstance(message, FromWorkerMessage):
                raise _StreamEndError("the worker closed the stream")
            try:
                event = decode_from_worker(message)
            except ProtocolViolation as violation:
                raise _StreamEndError(f"the worker broke the protocol: {violation}") from violation
            if isinstance(event, Hello) is (self._stream is not None):
                kind = type(event).__name__
                raise _StreamEndError(f"the worker broke the protocol: {kind} out of its turn")
            if self._stream is None:
                self._stream = stream
                self._connections += 1
                silence_s_max = self._options.silence_s_max
                _LOG.info("worker at %s: connected", self.address)
            on_event(event)

    async def _write(self, stream: _Stream) -> None:
        while True:
            await stream.call.write(await stream.outbox.get())

    async def _watch_overflow(self, stream: _Stream) -> None:
        await stream.overflowed.wait()
        raise _StreamEndError(f"the worker left {self._options.queue_max} messages unread")


async def _reason(task: asyncio.Task[None]) -> str:
    """Why an ended task ended, in words; what is no end of a stream is raised on."""
    try:
        await task
    except _StreamEndError as ended:
        return str(ended)
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name}: {error.details()}"
    except asyncio.InvalidStateError as error:
        # grpc.aio's own word for writing to a call that has ended.
        return f"the stream ended while writing: {error}"
    return "the stream ended"
