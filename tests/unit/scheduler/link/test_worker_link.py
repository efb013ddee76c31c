"""The link against workers that misbehave: whatever ends a stream is one LinkLost, and why."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import grpc
import grpc.aio
import pytest

from adex_proto.codec import Up, decode_to_worker, encode_from_worker, encode_grammar_reply
from adex_proto.errors import ProtocolViolation, ValidationError, WorkerLost
from adex_proto.grammar import Grammar, GrammarKind
from adex_proto.outcome import Heartbeat, Hello, StepOutcome, WorkerInfo
from adex_proto.plan import StepPlan
from adex_proto.sampling_codec import grammar_from_wire
from adex_proto.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from adex_scheduler.link import worker as link_module
from adex_scheduler.link.worker import LinkEvent, LinkLost, LinkOptions, WorkerLink

INFO = WorkerInfo("m", "A", "float32", "cpu", *range(1, 13), ())
HELLO = Hello(INFO, ())
QUICK = LinkOptions(connect_s_max=1.0, silence_s_max=0.3, back_off_s_min=0.02, back_off_s_max=0.1)
Behaviour = Callable[[Any, Any], Awaitable[None]]


class FakeWorker(WorkerServicer):
    """Serves each stream with the next behaviour; the last one serves all later streams."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.streams = 0
        self.asked = asyncio.Event()
        self.answer = asyncio.Event()

    async def PrepareGrammar(self, request: Any, context: Any) -> Any:  # noqa: N802 -- gRPC's name
        self.asked.set()
        await self.answer.wait()
        refused = "bad" in grammar_from_wire(request).text
        return encode_grammar_reply(ValidationError("no", field="grammar") if refused else None)

    async def Run(self, request_iterator: Any, context: Any) -> None:  # noqa: N802 -- gRPC's name
        behaviour = self.behaviours[min(self.streams, len(self.behaviours) - 1)]
        self.streams += 1
        await behaviour(request_iterator, context)


def say(*events: Up, then: Behaviour | None = None) -> Behaviour:
    async def behave(requests: Any, context: Any) -> None:
        for event in events:
            await context.write(encode_from_worker(event))
        if then is not None:
            await then(requests, context)

    return behave


async def echo_plans(requests: Any, context: Any) -> None:
    async for message in requests:
        plan = decode_to_worker(message)
        assert isinstance(plan, StepPlan)
        await context.write(encode_from_worker(StepOutcome(plan.step)))


async def stay_silent(_requests: Any, _context: Any) -> None:
    await asyncio.sleep(60)


async def refuse(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "loading")


class Connected:
    """A running link and the events it gave."""

    def __init__(self, address: str, options: LinkOptions) -> None:
        self.link = WorkerLink(address, options)
        self.events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self.task = asyncio.create_task(self.link.run(self.events.put_nowait))

    async def next(self) -> LinkEvent:
        return await asyncio.wait_for(self.events.get(), 10)


@asynccontextmanager
async def linked(
    *behaviours: Behaviour, options: LinkOptions = QUICK
) -> AsyncIterator[tuple[Connected, FakeWorker]]:
    fake, server = FakeWorker(*behaviours), grpc.aio.server()
    add_WorkerServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connected = Connected(f"127.0.0.1:{port}", options)
    try:
        yield connected, fake
    finally:
        connected.task.cancel()
        await asyncio.wait([connected.task])
        await server.stop(None)


async def test_events_come_in_the_order_the_worker_sent_them() -> None:
    async with linked(say(HELLO, Heartbeat(-1), then=echo_plans)) as (connected, _):
        assert await connected.next() == HELLO
        for step in range(50):
            connected.link.send(StepPlan(step, (), ()))
        assert await connected.next() == Heartbeat(-1)
        steps = [await connected.next() for _ in range(50)]
        assert steps == [StepOutcome(step) for step in range(50)]
        assert connected.link.statistics().connected


async def test_a_worker_of_another_release_is_told_from_a_broken_one() -> None:
    async def greet_as_an_older_one(requests: Any, context: Any) -> None:
        greeting = encode_from_worker(HELLO)
        greeting.hello.info.ClearField("protocol")
        await context.write(greeting)
        await stay_silent(requests, context)

    async with linked(greet_as_an_older_one, say(HELLO, then=echo_plans)) as (connected, _):
        # Nothing of the first is taken for a worker; once it is replaced all goes on.
        assert await connected.next() == HELLO
        statistics = connected.link.statistics()
        assert (statistics.attempts, statistics.connections) == (2, 1)
        assert "speaks protocol 0 and the scheduler" in statistics.last_failure
        assert "from one release" in statistics.last_failure


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (say(HELLO), "closed the stream"),
        (say(HELLO, then=refuse), "UNAVAILABLE: loading"),
        (say(HELLO, then=stay_silent), "silent for 0.3 s"),
        (say(HELLO, HELLO, then=stay_silent), "Hello out of its turn"),
    ],
    ids=["closed", "aborted", "silent", "hello-twice"],
)
async def test_whatever_ends_a_stream_is_one_loss_with_its_reason(
    behaviour: Behaviour, reason: str
) -> None:
    async with linked(behaviour, say(HELLO, then=echo_plans)) as (connected, _):
        assert await connected.next() == HELLO
        lost = await connected.next()
        assert isinstance(lost, LinkLost)
        assert reason in lost.reason
        assert await connected.next() == HELLO, "and the link comes back by itself"
        statistics = connected.link.statistics()
        assert (statistics.connections, statistics.last_failure) == (2, lost.reason)


@pytest.mark.parametrize(
    "behaviour",
    [refuse, stay_silent, say(), say(Heartbeat(0), then=stay_silent)],
    ids=["refused", "silent", "closed", "no-hello"],
)
async def test_a_stream_that_never_said_hello_is_no_loss(behaviour: Behaviour) -> None:
    async with linked(behaviour, behaviour, say(HELLO, then=echo_plans)) as (connected, fake):
        assert await connected.next() == HELLO
        assert fake.streams == 3
        assert connected.link.statistics().attempts == 3


async def test_sending_without_a_stream_says_that_the_worker_is_lost() -> None:
    link = WorkerLink("127.0.0.1:1", QUICK)
    with pytest.raises(WorkerLost):
        link.send(StepPlan(0, (), ()))


async def test_a_loss_is_reported_before_sending_is_refused() -> None:
    """Whoever sends from on_event must never find the link gone without having been told."""
    seen: list[str] = []

    def on_event(event: LinkEvent) -> None:
        seen.append(type(event).__name__)
        if isinstance(event, Heartbeat):
            link.send(StepPlan(0, (), ()))

    behaviour = say(HELLO, *(Heartbeat(step) for step in range(20)))
    async with linked(behaviour) as (connected, _):
        link = WorkerLink(connected.link.address, QUICK)
        task = asyncio.create_task(link.run(on_event))
        await asyncio.sleep(0.5)
        assert not task.done()
        task.cancel()
    assert seen.count("LinkLost") > 1
    for before, after in pairwise(seen):
        assert (after == "Hello") == (before == "LinkLost")


async def test_a_worker_that_stops_reading_is_lost_once_the_queue_is_full() -> None:
    options = LinkOptions(queue_max=8, silence_s_max=30.0)
    async with linked(say(HELLO, then=stay_silent), options=options) as (connected, _):
        assert await connected.next() == HELLO
        for step in range(9):
            connected.link.send(StepPlan(step, (), ()))
        lost = await connected.next()
        assert isinstance(lost, LinkLost)
        assert "8 messages unread" in lost.reason


async def test_a_plan_beyond_the_wires_limit_is_refused_and_the_stream_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link_module, "MESSAGE_BYTES_MAX", 100)
    async with linked(say(HELLO, then=echo_plans)) as (connected, _):
        await connected.next()
        with pytest.raises(ProtocolViolation, match="exceeds the limit of 100"):
            connected.link.send(StepPlan(0, (), (), tuple(range(1000))))
        connected.link.send(StepPlan(1, (), ()))
        assert await connected.next() == StepOutcome(1)


async def test_what_on_event_raises_is_the_callers_to_see() -> None:
    def fail(_event: LinkEvent) -> None:
        raise RuntimeError("a bug above the link")

    async with linked(say(HELLO, then=echo_plans)) as (connected, _):
        link = WorkerLink(connected.link.address, QUICK)
        with pytest.raises(RuntimeError, match="a bug above the link"):
            await asyncio.wait_for(link.run(fail), 10)


async def test_an_address_where_nobody_listens_is_tried_again_until_somebody_does() -> None:
    async with linked(say(HELLO, then=echo_plans)) as (connected, _):
        address = connected.link.address
    lonely = Connected(address, QUICK)
    await asyncio.sleep(0.4)
    statistics = lonely.link.statistics()
    assert statistics.attempts > 1
    assert "UNAVAILABLE" in statistics.last_failure
    assert lonely.events.empty()
    lonely.task.cancel()
    await asyncio.wait([lonely.task])


GRAMMAR = Grammar(GrammarKind.REGEX, "good")


async def until_lost(requests: Any, context: Any) -> None:
    """Stays until the first message, and goes."""
    await anext(aiter(requests))


async def test_a_grammar_is_prepared_or_refused_by_the_worker() -> None:
    options = LinkOptions()
    async with linked(say(HELLO, then=stay_silent), options=options) as (connected, worker):
        with pytest.raises(WorkerLost):
            await connected.link.prepare_grammar(GRAMMAR)
        await connected.next()
        worker.answer.set()
        await connected.link.prepare_grammar(GRAMMAR)
        with pytest.raises(ValidationError, match="no"):
            await connected.link.prepare_grammar(Grammar(GrammarKind.REGEX, "bad"))


async def test_a_worker_that_goes_while_it_compiles_is_lost_and_nobody_is_cancelled() -> None:
    async with linked(say(HELLO, then=until_lost), options=LinkOptions()) as (connected, worker):
        await connected.next()
        preparing = asyncio.create_task(connected.link.prepare_grammar(GRAMMAR))
        await asyncio.wait_for(worker.asked.wait(), 10)
        connected.link.send(StepPlan(0, (), ()))
        with pytest.raises(WorkerLost):
            await asyncio.wait_for(preparing, 10)


async def test_a_caller_who_goes_while_his_grammar_is_compiled_is_cancelled() -> None:
    options = LinkOptions()
    async with linked(say(HELLO, then=stay_silent), options=options) as (connected, worker):
        await connected.next()
        preparing = asyncio.create_task(connected.link.prepare_grammar(GRAMMAR))
        await asyncio.wait_for(worker.asked.wait(), 10)
        preparing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await preparing
