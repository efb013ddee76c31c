"""Streams come and go; the worker stays, remembers nothing it should forget, and says why."""

import asyncio
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.codec import (
    WORKER_SERVICE_NAME,
    GetInfoRequestMessage,
)
from adex_proto.errors import AdapterNotFound, ProtocolViolation, WorkerLost
from adex_proto.info_codec import decode_info
from adex_proto.outcome import Hello, StepOutcome
from adex_proto.plan import Decodes, NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_proto.transport import MESSAGE_BYTES_MAX
from adex_proto.v1.worker_pb2_grpc import WorkerStub
from adex_scheduler.link.worker import LinkLost, LinkOptions
from adex_scheduler.testing.hand import Hand, Job

GREEDY = SamplingParams(max_new_tokens=8)
UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
RAW_CALL = f"/{WORKER_SERVICE_NAME}/Run"


async def until_its_end(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_lost_stream_is_forgotten_and_the_next_one_starts_clean(world: Any) -> None:
    prompt = world.prompt(40, seed=1)
    first = Hand(world.worker.address)
    hello = await first.connect()
    version = await first.fetch(world.key("rank-8-all"))
    await first.page_in(version, slot=4)
    [adapted] = await first.generate([Job(prompt, slot=4)])
    # It leaves in the middle of sequences that hold blocks, with plans on the way.
    for step in range(20, 24):
        new = NewSequence(step, tuple(prompt), len(prompt), 4, GREEDY)
        first.link.send(StepPlan(step, (new,), (Span(step, 0, 40, True, (100, 101, 102)),)))
    await asyncio.sleep(0.02)
    await first.close()

    second = Hand(world.worker.address)
    again = await second.connect()
    try:
        assert again.info == hello.info
        held = {item.version.digest: item.tier for item in again.held}
        assert held[version.digest] is Tier.HOST, "host copies outlive a stream"
        # The device copy does not: its slot is empty, its pages are free, its sequences unknown.
        [orphan] = await second.generate([Job(prompt, slot=4)])
        assert isinstance(orphan.error, ProtocolViolation)
        await second.page_in(version, slot=4)
        [result] = await second.generate([Job(prompt, slot=4)])
        assert result.token_ids == adapted.token_ids
        second.link.send(StepPlan(900, (), (Span(21, 40, 1, True),)))
        outcome = await second.next_event(StepOutcome)
        assert [failure.sequence for failure in outcome.failures] == [21]
    finally:
        await second.close()


async def test_many_streams_in_a_row_leave_no_memory_behind(world: Any) -> None:
    prompt = world.prompt(60, seed=2)
    status = Path(f"/proc/{world.worker.process.pid}/status")

    def resident_kib() -> int:
        lines = status.read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])

    sizes = []
    for _ in range(12):
        hand = Hand(world.worker.address)
        await hand.connect()
        version = await hand.fetch(world.key("rank-64-all"))
        await hand.page_in(version, slot=1)
        await hand.generate([Job(prompt, slot=slot) for slot in (0, 1) for _ in range(4)])
        await hand.close()
        sizes.append(resident_kib())
    assert sizes[-1] - sizes[3] < 4 * 1024, sizes


async def test_a_second_scheduler_is_refused_while_the_first_is_served(
    world: Any, hand: Hand
) -> None:
    async with grpc.aio.insecure_channel(world.worker.address) as channel:
        call = WorkerStub(channel).Run()
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call.read()
    assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS
    [result] = await hand.generate([Job(world.prompt(5, seed=3))])
    assert len(result.tokens) == 12


async def test_info_health_and_reflection_answer(world: Any, hand: Hand) -> None:
    async with grpc.aio.insecure_channel(world.worker.address) as channel:
        info = await WorkerStub(channel).GetInfo(GetInfoRequestMessage())
        assert decode_info(info) == hand.hello.info
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", WORKER_SERVICE_NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def reflected() -> list[str]:
        with grpc.insecure_channel(world.worker.address) as blocking:
            database = ProtoReflectionDescriptorDatabase(blocking)
            assert "Run" in str(database.FindFileContainingSymbol(WORKER_SERVICE_NAME))
            return list(database.get_services())

    assert WORKER_SERVICE_NAME in await asyncio.to_thread(reflected)


async def test_a_message_beyond_the_limit_ends_its_stream_and_not_the_worker(world: Any) -> None:
    key = b"x" * (MESSAGE_BYTES_MAX + 1)
    async with grpc.aio.insecure_channel(world.worker.address, options=UNLIMITED) as channel:
        call = channel.stream_stream(RAW_CALL)()
        await call.read()
        await call.write(key)
        with pytest.raises(grpc.aio.AioRpcError):
            await until_its_end(call)
    hand = Hand(world.worker.address)
    await hand.connect()
    [result] = await hand.generate([Job(world.prompt(5, seed=4))])
    assert len(result.tokens) == 12
    await hand.close()


@pytest.mark.parametrize(
    "wire",
    [b"\xff\xff\xff", b"", b"\x2a\x02\x10\x09", b"\x0a\x06\x12\x04\xff\xff\xff\xff"],
    ids=["noise", "no-kind", "unknown-tier", "torn"],
)
async def test_bytes_that_are_no_message_end_their_stream_and_not_the_worker(
    world: Any, wire: bytes
) -> None:
    async with grpc.aio.insecure_channel(world.worker.address) as channel:
        call = channel.stream_stream(RAW_CALL)()
        await call.read()
        await call.write(wire)
        with pytest.raises(grpc.aio.AioRpcError):
            await until_its_end(call)
    hand = Hand(world.worker.address)
    await hand.connect()
    [result] = await hand.generate([Job(world.prompt(5, seed=5))])
    assert len(result.tokens) == 12
    await hand.close()


async def test_an_adapter_that_is_not_there_fails_its_own_fetch(world: Any, hand: Hand) -> None:
    with pytest.raises(AdapterNotFound):
        await hand.fetch(world.key("nobody"))


async def test_heartbeats_name_the_last_step(world: Any, hand: Hand) -> None:
    await hand.generate([Job(world.prompt(5, seed=6))])
    hand.heartbeats.clear()
    deadline_s = time.monotonic() + 10
    while not hand.heartbeats and time.monotonic() < deadline_s:
        hand.link.send(StepPlan(hand.step, (), ()))
        await hand.next_event(StepOutcome)
        hand.step += 1
        await asyncio.sleep(0.2)
    assert abs(hand.heartbeats[-1].step - (hand.step - 1)) <= 5


async def test_nothing_a_plan_says_wrongly_harms_other_sequences(world: Any, hand: Hand) -> None:
    prompt = tuple(world.prompt(20, seed=7))
    sampling = GREEDY

    def new(number: int, tokens: tuple[int, ...] = prompt, slot: int = 0) -> NewSequence:
        return NewSequence(number, tokens, len(tokens), slot, sampling)

    wrong = {
        2: (new(2), Span(2, 0, 21, True, (11, 12))),
        3: (new(3), Span(3, 0, 20, True, (13,))),
        4: (new(4), Span(4, 0, 10, True, (14, 15))),
        5: (new(5, (5, 6, 7)), Span(5, 0, 3, True, (10**9,))),
        6: (new(6), Span(6, -1, 5, False, (18, 19))),
        7: (new(7, (1, 2, 10**6)), Span(7, 0, 3, True, (20,))),
        8: (new(8, ()), Span(8, 0, 0, False, (21,))),
        9: (new(9, (5, 6, 7), slot=4000), Span(9, 0, 3, True, (22,))),
        10: (new(10), Span(10, 0, 20, True, (8, 9))),
    }
    arrived = (new(1), *(each for each, _ in wrong.values()))
    spans = (Span(1, 0, 20, True, (8, 9)), *(span for _, span in wrong.values()))
    hand.link.send(StepPlan(0, arrived, (*spans, Span(99, 0, 1, True))))
    outcome = await hand.next_event(StepOutcome)
    assert sorted(failure.sequence for failure in outcome.failures) == [*wrong, 99]
    assert all(isinstance(failure.error, ProtocolViolation) for failure in outcome.failures)
    tokens, _ = world.reference.greedy(prompt, tokens=2)
    assert [token.token_id for token in outcome.tokens] == tokens[:1]
    # What has failed stays failed; what has not goes on.
    hand.link.send(StepPlan(1, (), (Span(4, 10, 10, True),), (), Decodes((1, 98))))
    outcome = await hand.next_event(StepOutcome)
    assert [token.token_id for token in outcome.tokens] == tokens[1:]
    assert sorted(failure.sequence for failure in outcome.failures) == [4, 98]


async def test_a_plan_larger_than_a_step_fails_whole_and_the_worker_goes_on(
    world: Any, hand: Hand
) -> None:
    prompt = tuple(world.prompt(129, seed=8))
    new = NewSequence(1, prompt, len(prompt), 0, GREEDY)
    hand.link.send(StepPlan(0, (new,), (Span(1, 0, 129, True, tuple(range(100, 109))),)))
    outcome = await hand.next_event(StepOutcome)
    assert not outcome.tokens.sequences
    assert "129 tokens exceeds 128" in str(outcome.failures[0].error)


async def test_a_killed_worker_is_reported_once_with_the_reason_and_found_again(
    new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    address = f"unix://{tmp_path}/again.sock"
    first = new_worker(address)
    hand = Hand(address, LinkOptions(back_off_s_max=0.5))
    await hand.connect()
    first.process.kill()
    lost = await hand.next_event(LinkLost)
    assert lost.reason
    with pytest.raises(WorkerLost):
        hand.link.send(StepPlan(0, (), ()))
    assert hand.link.statistics().connected is False
    first.process.wait()
    # The socket of a killed worker is still there; the next one takes its place.
    await asyncio.to_thread(new_worker, address)
    await hand.next_event(Hello)
    [result] = await hand.generate([Job([5, 6, 7])])
    assert len(result.tokens) == 12
    await hand.close()


async def test_a_stopped_worker_ends_the_stream_and_leaves_no_socket(
    new_worker: Callable[..., Any], tmp_path: Path
) -> None:
    socket_path = tmp_path / "stop.sock"
    worker = new_worker(f"unix://{socket_path}")
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660, "nobody else may drive a worker"
    hand = Hand(f"unix://{socket_path}")
    await hand.connect()
    status = await asyncio.to_thread(worker.stop)
    lost = await hand.next_event(LinkLost)
    assert "stopping" in lost.reason
    assert status == 0
    assert not socket_path.exists()
    await hand.close()


async def test_a_worker_in_mid_step_finishes_it_before_it_stops(
    new_worker: Callable[..., Any],
) -> None:
    worker = new_worker("127.0.0.1:0", "--max-batch-tokens", "4096")
    hand = Hand(worker.address)
    await hand.connect()
    prompt = tuple(range(3, 203)) * 2
    new = NewSequence(1, prompt, len(prompt), 0, GREEDY)
    hand.link.send(StepPlan(0, (new,), (Span(1, 0, 400, True, tuple(range(100, 125))),)))
    await asyncio.sleep(0.01)
    worker.process.send_signal(signal.SIGTERM)
    event = await hand.next_event(StepOutcome, LinkLost)
    assert isinstance(event, StepOutcome | LinkLost)
    assert await asyncio.to_thread(worker.process.wait, 30) == 0
    assert "Traceback" not in worker.log.read_text()
    await hand.close()


def test_a_port_that_is_taken_is_said_in_one_line(model_folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "adex_worker", "--model-id", str(model_folder)]
        command += ["--listen", f"127.0.0.1:{port}", "--cache-dir", str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "cannot listen" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_the_log_holds_no_tokens_and_no_tenants_adapter_names(world: Any, hand: Hand) -> None:
    with pytest.raises(AdapterNotFound):
        await hand.fetch(AdapterKey("acme", "local", "secret-project"))
    assert "secret-project" not in world.worker.log.read_text()
