"""The engine over a fake worker: text, endings, cancellation, loss, drain."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterNotFound,
    Overloaded,
    ProtocolViolation,
    ShuttingDown,
    StepFailed,
    ValidationError,
    WorkerLost,
)
from adex_proto.outcome import StepOutcome
from adex_proto.plan import StepPlan
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.limits import Limits
from adex_scheduler.engine import Engine, EngineRequest, Piece
from adex_scheduler.testing.fake_worker import FakeWorker, oracle, worker_info
from adex_scheduler.testing.link import FakeLink

KEY = AdapterKey("", "local", "tone")
VERSION = AdapterVersion("d1" * 32, 300, 8, 4)


class Letters:
    """A tokenizer of one letter to a token; token 0 is the special end token."""

    anchor: tuple[int, ...] = (1,)
    anchor_text = "a"

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        return "".join(self.token_text(token_id) for token_id in token_ids)

    def token_text(self, token_id: int) -> str:
        return chr(96 + token_id) if token_id else "</s>"

    def is_special(self, token_id: int) -> bool:
        return token_id == 0

    def is_known(self, token_id: int) -> bool:
        return True

    def fallback_byte(self, token_id: int) -> int | None:
        return None


@asynccontextmanager
async def running(
    link: FakeLink | None = None, limits: Limits | None = None
) -> AsyncIterator[tuple[Engine, FakeLink]]:
    if link is None:
        worker = FakeWorker(worker_info(vocabulary=27))
        worker.published[KEY] = VERSION
        link = FakeLink(worker)
    engine = Engine(link, Letters(), limits)
    task = asyncio.create_task(engine.run())
    await engine.wait_ready()
    try:
        yield engine, link
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def request(
    prompt: tuple[int, ...] = (5, 6, 7), *, key: AdapterKey | None = None, **changes: object
) -> EngineRequest:
    sampling = changes.pop("sampling", SamplingParams(max_new_tokens=8, ignore_eos=True))
    return EngineRequest("r", "", key, prompt, sampling, **changes)  # type: ignore[arg-type]


async def read(engine: Engine, wanted: EngineRequest) -> list[Piece]:
    return [piece async for piece in engine.stream(wanted)]


def letters(tokens: Sequence[int]) -> str:
    return "".join(chr(96 + token) for token in tokens if token)


async def until(condition: object) -> None:
    for _ in range(500):
        if condition():  # type: ignore[operator]
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came about")


async def test_a_stream_gives_every_token_and_the_text_of_all_of_them() -> None:
    async with running() as (engine, _):
        wanted = request()
        pieces = await read(engine, wanted)
    expected = oracle("", wanted.token_ids, wanted.sampling, 27)
    assert tuple(piece.token.token_id for piece in pieces) == expected
    assert "".join(piece.text for piece in pieces) == letters(expected)
    assert [piece.finish for piece in pieces[:-1]] == [None] * 7
    assert pieces[-1].finish is FinishReason.LENGTH


async def test_the_adapters_used_last_are_told_first_and_no_more_than_asked_for() -> None:
    worker = FakeWorker(worker_info(vocabulary=27))
    keys = [AdapterKey("", "local", name) for name in "abc"]
    worker.published |= dict.fromkeys(keys, VERSION)
    async with running(FakeLink(worker)) as (engine, _):
        for key in keys:
            await read(engine, request(key=key))
        assert [status.key.name for status in engine.adapters(most=2)] == ["c", "b"]


async def test_a_request_through_an_adapter_gets_that_adapters_tokens() -> None:
    async with running() as (engine, _):
        wanted = request(key=KEY)
        pieces = await read(engine, wanted)
        statuses = engine.adapters(most=10)
    expected = oracle(VERSION.digest, wanted.token_ids, wanted.sampling, 27)
    assert tuple(piece.token.token_id for piece in pieces) == expected
    assert [(s.key, s.digest, s.tier) for s in statuses] == [(KEY, VERSION.digest, Tier.DEVICE)]


async def test_the_end_token_ends_the_text_and_is_marked_special() -> None:
    sampling = SamplingParams(max_new_tokens=200)
    async with running() as (engine, _):
        pieces = await read(engine, request(sampling=sampling))
    assert pieces[-1].finish is FinishReason.EOS
    assert pieces[-1].special
    assert pieces[-1].text == ""
    assert pieces[-1].token_text == "</s>"


@pytest.mark.parametrize("keep", [True, False])
async def test_a_stop_string_over_two_tokens_ends_the_stream_where_it_is_complete(
    keep: bool,
) -> None:
    base = request(sampling=SamplingParams(max_new_tokens=40, ignore_eos=True))
    full = letters(oracle("", base.token_ids, base.sampling, 27))
    stop = full[4:6]
    at = full.index(stop)
    async with running() as (engine, link):
        wanted = request(sampling=base.sampling, stops=(stop,), include_stop=keep)
        pieces = await read(engine, wanted)
        await until(lambda: not link.worker.rows)
        statistics = engine.statistics()
    assert "".join(piece.text for piece in pieces) == full[: at + 2 if keep else at]
    assert pieces[-1].finish is FinishReason.STOP
    assert statistics is not None
    assert statistics.sequences == 0
    assert statistics.pages_kv == 0


async def test_closing_a_stream_gives_its_blocks_back_at_once() -> None:
    async with running() as (engine, link):
        sampling = SamplingParams(max_new_tokens=200, ignore_eos=True)
        stream = engine.stream(request(sampling=sampling))
        async with aclosing(stream):
            await anext(stream)
        await until(lambda: not link.worker.rows)
        statistics = engine.statistics()
        steps = sum(isinstance(down, StepPlan) for down in link.sent)
    assert statistics is not None
    assert statistics.cancelled == 1
    assert statistics.pages_kv == 0
    assert steps < 10


async def test_cancelling_a_reader_who_waits_for_an_adapter_cancels_the_request() -> None:
    async with running() as (engine, link):
        link.held.add("commands")
        task = asyncio.create_task(read(engine, request(key=KEY)))
        await until(lambda: link.worker.commands)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        statistics = engine.statistics()
    assert statistics is not None
    assert statistics.waiting == 0


async def test_a_reader_who_is_slow_delays_nobody() -> None:
    async with running() as (engine, _):
        slow = engine.stream(request())
        await anext(slow)
        assert len(await read(engine, request((9, 9)))) == 8
        rest = [piece async for piece in slow]
    assert len(rest) == 7


async def test_an_adapter_that_cannot_be_found_is_an_error_for_its_request_alone() -> None:
    async with running() as (engine, _):
        missing = AdapterKey("", "local", "missing")
        results = await asyncio.gather(
            read(engine, request(key=missing)), read(engine, request()), return_exceptions=True
        )
    assert isinstance(results[0], AdapterNotFound)
    assert isinstance(results[1], list)


async def test_a_request_waiting_for_its_adapter_does_not_delay_one_that_is_ready() -> None:
    async with running() as (engine, link):
        link.held.add("commands")
        waiting = asyncio.create_task(read(engine, request(key=KEY)))
        await until(lambda: link.worker.commands)
        assert len(await read(engine, request())) == 8
        assert not waiting.done()
        link.release("commands")
        assert len(await waiting) == 8


async def test_a_request_that_can_never_fit_is_refused_with_both_numbers() -> None:
    async with running() as (engine, _):
        with pytest.raises(ValidationError, match=r"3 prompt tokens and 300 .* 256 positions"):
            await read(engine, request(sampling=SamplingParams(max_new_tokens=300)))


async def test_a_full_queue_refuses_with_a_time_to_try_again() -> None:
    async with running(limits=Limits(waiting_max=1)) as (engine, link):
        link.held.add("commands")
        waiting = asyncio.create_task(read(engine, request(key=KEY)))
        await until(lambda: link.worker.commands)
        with pytest.raises(Overloaded) as refused:
            await read(engine, request(key=KEY))
        waiting.cancel()
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1


async def test_a_failed_step_fails_the_sequence_it_names_and_no_other() -> None:
    async with running() as (engine, link):
        link.held.add("steps")
        one = asyncio.create_task(read(engine, request((1, 2))))
        two = asyncio.create_task(read(engine, request((3, 4))))
        await until(lambda: len(link.worker.plans) == 2)
        link.fail_next_step.add(1)
        link.release("steps")
        results = await asyncio.gather(one, two, return_exceptions=True)
    assert isinstance(results[0], StepFailed)
    assert isinstance(results[1], list)


async def test_losing_the_worker_fails_streams_that_spoke_and_serves_those_that_did_not() -> None:
    async with running() as (engine, link):
        long = SamplingParams(max_new_tokens=100, ignore_eos=True)
        spoke = engine.stream(request(sampling=long))
        await anext(spoke)
        link.held.add("commands")
        silent = asyncio.create_task(read(engine, request(key=KEY)))
        await until(lambda: link.worker.commands)
        link.lose("killed")
        with pytest.raises(WorkerLost, match="in mid-text"):
            async for _ in spoke:
                pass
        link.release("commands")
        assert len(await silent) == 8
        assert len(await read(engine, request())) == 8
    assert link.streams == 2


async def test_an_engine_without_a_worker_says_so() -> None:
    engine = Engine(FakeLink(FakeWorker(worker_info())), Letters())
    assert engine.info is None
    assert not engine.ready
    with pytest.raises(WorkerLost):
        await read(engine, request())


async def test_draining_finishes_what_there_is_and_refuses_what_is_new() -> None:
    async with running() as (engine, link):
        link.held.add("steps")
        old = asyncio.create_task(read(engine, request()))
        await until(lambda: link.worker.plans)
        drain = asyncio.create_task(engine.drain(10.0))
        await asyncio.sleep(0)
        with pytest.raises(ShuttingDown):
            await read(engine, request())
        link.release("steps")
        await drain
        assert len(await old) == 8


async def test_a_drain_that_takes_too_long_ends_the_rest_with_an_error() -> None:
    async with running() as (engine, link):
        link.held.add("steps")
        old = asyncio.create_task(read(engine, request()))
        await until(lambda: link.worker.plans)
        await engine.drain(0.01)
        with pytest.raises(ShuttingDown):
            await old


async def test_a_worker_that_answers_out_of_turn_is_connected_anew() -> None:
    class Hasty(FakeWorker):
        hasty = False

        def run_plan(self, *, fail: Sequence[int] = ()) -> StepOutcome:
            outcome = super().run_plan(fail=fail)
            step = outcome.step + 5 if self.hasty else outcome.step
            self.hasty = False
            return StepOutcome(step, outcome.tokens, outcome.failures)

    worker = Hasty(worker_info(vocabulary=27))
    async with running(FakeLink(worker)) as (engine, link):
        worker.hasty = True
        assert len(await read(engine, request())) == 8
    assert link.streams == 2


async def test_a_fault_of_the_core_ends_everything_loudly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = FakeLink(FakeWorker(worker_info(vocabulary=27)))
    engine = Engine(link, Letters())
    task = asyncio.create_task(engine.run())
    await engine.wait_ready()
    monkeypatch.setattr("adex_scheduler.core.batch.Batch.form", lambda *_: 1 / 0)
    with pytest.raises(ProtocolViolation):
        await read(engine, request())
    with pytest.raises(ZeroDivisionError):
        await task
    assert not engine.ready


async def test_a_finished_request_leaves_one_line_without_text_or_names(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="adex_scheduler.engine"):
        async with running() as (engine, _):
            await read(engine, request(key=KEY))
    lines = [r.getMessage() for r in caplog.records if r.name == "adex_scheduler.engine"]
    assert len(lines) == 1
    assert "adapter=d1d1d1d1d1d1 prompt_tokens=3 new_tokens=8" in lines[0]
    assert "finish=length" in lines[0]
    assert "tone" not in lines[0]
