"""The server before its model is loaded, and a stream that asks too much, with fakes behind it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.codec import (
    WORKER_SERVICE_NAME,
    Down,
    FromWorkerMessage,
    GetInfoRequestMessage,
    ToWorkerMessage,
    Up,
    decode_from_worker,
    decode_grammar_reply,
    encode_to_worker,
)
from adex_proto.errors import AdexError, ValidationError
from adex_proto.grammar import Grammar, GrammarKind
from adex_proto.info_codec import decode_info
from adex_proto.outcome import Heartbeat, Held, Hello, StepOutcome, WorkerInfo
from adex_proto.plan import StepPlan
from adex_proto.sampling_codec import grammar_to_wire
from adex_proto.v1.worker_pb2_grpc import WorkerStub
from adex_worker.adapters.leave import Leave
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.run.steps import StepThread
from adex_worker.service import session as session_module
from adex_worker.service.commands import CommandPools
from adex_worker.service.server import WorkerParts, WorkerServer, WorkerService

INFO = WorkerInfo("m", "A", "float32", "cpu", *range(1, 13), ())
HELD = (Held(AdapterVersion("d", 1, 2, 3), Tier.HOST),)
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVING = health_pb2.HealthCheckResponse.SERVING


class Done:
    """A step that is done as soon as it begins."""

    waits, told = False, None

    def __init__(self, plan: StepPlan) -> None:
        self._plan = plan

    def choose(self) -> None:
        """There are no tokens."""

    def wait(self) -> None:
        """There is nothing to wait for."""

    def finish(self) -> StepOutcome:
        return StepOutcome(self._plan.step)


class Backstage:
    """The runner and the store, both of one log. A step waits for `go`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = threading.Event()
        self.go.set()

    def begin(self, plan: StepPlan) -> "Done":
        assert self.go.wait(10)
        self.log.append(f"step {plan.step}")
        return Done(plan)

    def forget_all(self) -> None:
        self.log.append("forget")

    def fetch(
        self, key: AdapterKey, credential: str = "", leave: Leave | None = None
    ) -> AdapterVersion:
        raise NotImplementedError

    def stage(self, digest: str) -> None:
        raise NotImplementedError

    def page_in(self, digest: str, slot: int, first_page: int, pages: int) -> None:
        raise NotImplementedError

    def evict(self, digest: str, tier: Tier) -> None:
        raise NotImplementedError

    def held(self) -> tuple[Held, ...]:
        return HELD

    def release_device(self) -> None:
        self.log.append("release")


class Stage:
    """A server over a backstage, and one channel to it."""

    def __init__(self, server: WorkerServer, backstage: Backstage, channel: Any) -> None:
        self.server, self.backstage, self.channel = server, backstage, channel
        self.steps = StepThread(backstage)
        self.steps.start()

    async def load(self, grammars: GrammarCompiler | None = None) -> None:
        pools = CommandPools(self.backstage)
        await self.server.serve(WorkerParts(INFO, self.steps, pools, grammars))

    async def prepare(self, grammar: Grammar) -> AdexError | None:
        """What the worker says against a grammar."""
        stub = WorkerStub(self.channel)
        return decode_grammar_reply(await stub.PrepareGrammar(grammar_to_wire(grammar)))

    async def health(self, service: str) -> int:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(self.channel).Check(request)
        return int(answer.status)

    def stream(self) -> "Stream":
        return Stream(WorkerStub(self.channel).Run())


class Stream:
    """One Run call in dataclasses."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def send(self, *downs: Down) -> None:
        for down in downs:
            await self.call.write(encode_to_worker(down))

    async def next(self) -> Up | None:
        """The next event that is no heartbeat, None at the end."""
        while True:
            message = await asyncio.wait_for(self.call.read(), 10)
            if not isinstance(message, FromWorkerMessage):
                return None
            event = decode_from_worker(message)
            if not isinstance(event, Heartbeat):
                return event

    async def end(self) -> None:
        while await self.next() is not None:
            pass


@asynccontextmanager
async def stage(*, loaded: bool = True) -> AsyncIterator[Stage]:
    server = WorkerServer("127.0.0.1:0", WorkerService())
    async with grpc.aio.insecure_channel(await server.start()) as channel:
        each = Stage(server, Backstage(), channel)
        if loaded:
            await each.load()
        try:
            yield each
        finally:
            each.backstage.go.set()
            await server.stop(5.0)
            each.steps.stop()


async def until(log: list[str], last: str) -> None:
    async with asyncio.timeout(10):
        while not log or log[-1] != last:
            await asyncio.sleep(0.005)


async def test_a_worker_that_loads_its_model_says_so() -> None:
    async with stage(loaded=False) as each:
        for service in ("", WORKER_SERVICE_NAME):
            assert await each.health(service) == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError, match="loading its model") as refusal:
            await WorkerStub(each.channel).GetInfo(GetInfoRequestMessage())
        assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.aio.AioRpcError, match="loading its model"):
            await each.stream().next()
        await each.load()
        for service in ("", WORKER_SERVICE_NAME):
            assert await each.health(service) == SERVING
        info = await WorkerStub(each.channel).GetInfo(GetInfoRequestMessage())
        assert decode_info(info) == INFO
        assert await each.stream().next() == Hello(INFO, HELD)


async def test_when_the_scheduler_leaves_its_step_ends_then_all_is_forgotten_then_freed() -> None:
    async with stage() as each:
        each.backstage.go.clear()
        first = each.stream()
        await first.next()
        await first.send(StepPlan(0, (), ()), StepPlan(1, (), ()))
        await asyncio.sleep(0.1)
        first.call.cancel()
        second = each.stream()
        await asyncio.sleep(0.1)
        assert each.backstage.log == []
        each.backstage.go.set()
        assert await second.next() == Hello(INFO, HELD)
        assert each.backstage.log == ["step 0", "forget", "release"]
        await second.send(StepPlan(5, (), ()))
        assert await second.next() == StepOutcome(5)


async def test_a_scheduler_that_closes_its_side_ends_the_stream_cleanly() -> None:
    async with stage() as each:
        stream = each.stream()
        await stream.next()
        await stream.call.done_writing()
        assert await stream.next() is None
        assert await stream.call.code() is grpc.StatusCode.OK
        await until(each.backstage.log, "release")


async def test_too_many_plans_at_once_end_the_stream_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "PLANS_UNDER_WAY_MAX", 2)
    async with stage() as each:
        each.backstage.go.clear()
        stream = each.stream()
        await stream.next()
        await stream.send(*(StepPlan(step, (), ()) for step in range(3)))
        with pytest.raises(grpc.aio.AioRpcError, match="more than 2 plans") as refusal:
            await stream.next()
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stop_sends_the_running_steps_outcome_or_none_and_says_unavailable() -> None:
    async with stage() as each:
        stream = each.stream()
        await stream.next()
        stopping = asyncio.create_task(each.server.stop(5.0))
        with pytest.raises(grpc.aio.AioRpcError, match="stopping") as ended:
            await stream.end()
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        await stopping
        assert each.backstage.log == ["forget", "release"]


async def test_a_health_watch_sees_the_worker_become_ready_and_stop() -> None:
    async with stage(loaded=False) as each:
        request = health_pb2.HealthCheckRequest(service="")
        watch = health_pb2_grpc.HealthStub(each.channel).Watch(request)
        assert (await watch.read()).status == NOT_SERVING
        await each.load()
        assert (await watch.read()).status == SERVING
        stopping = asyncio.create_task(each.server.stop(5.0))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await stopping


async def test_what_is_there_already_is_not_overwritten_unless_it_is_a_socket(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "notes.txt"
    precious.write_text("mine")
    with pytest.raises(ValidationError, match="no socket"):
        await WorkerServer(f"unix://{precious}", WorkerService()).start()
    assert precious.read_text() == "mine"


async def test_a_socket_that_somebody_listens_on_is_not_taken_from_them(tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/worker.sock"
    first = WorkerServer(address, WorkerService())
    await first.start()
    try:
        with pytest.raises(ValidationError, match="another process listens there"):
            await WorkerServer(address, WorkerService()).start()
        assert await asyncio.to_thread((tmp_path / "worker.sock").is_socket)
    finally:
        await first.stop(grace_s=1)


@pytest.mark.parametrize("leaves", [True, False])
async def test_the_reason_for_an_end_comes_after_a_message_that_is_still_being_written(
    leaves: bool,
) -> None:
    """More bundles than fit the window, so that Hello waits for a scheduler that begins to read."""
    held = HELD * 100_000
    async with stage() as each:
        each.backstage.held = lambda: held  # type: ignore[method-assign]
        stream = each.stream()
        if leaves:
            await stream.call.wait_for_connection()
            await asyncio.sleep(0.2)
            stopping = asyncio.create_task(each.server.service.stop())
        else:
            await stream.call.write(ToWorkerMessage())
        await asyncio.sleep(0.2)
        assert await stream.next() == Hello(INFO, held)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await stream.end()
        if leaves:
            await stopping
        assert ("is stopping" if leaves else "carries no kind") in str(ended.value.details())


async def test_a_grammar_is_prepared_or_refused_beside_the_stream() -> None:
    tokenizer = Path(__file__).parents[4] / "demo/model/tokenizer.json"
    grammars = GrammarCompiler(tokenizer, 1708, (2,))
    good, bad = Grammar(GrammarKind.REGEX, "a"), Grammar(GrammarKind.REGEX, "(a")
    async with stage(loaded=False) as each:
        with pytest.raises(grpc.aio.AioRpcError, match="loading"):
            await each.prepare(good)
        await each.load(grammars)
        assert await each.prepare(good) is None
        assert await each.prepare(good) is None
        refusal = await each.prepare(bad)
    grammars.close()
    assert grammars.find(good) is not None
    assert isinstance(refusal, ValidationError)
    assert refusal.field == "grammar"


async def test_a_model_without_a_tokenizer_refuses_every_grammar() -> None:
    async with stage() as each:
        refusal = await each.prepare(Grammar(GrammarKind.REGEX, "a"))
    assert isinstance(refusal, ValidationError)
