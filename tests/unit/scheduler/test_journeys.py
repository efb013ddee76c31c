"""What the engine writes down of a sequence: where its adapter was, and what it waited for."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdapterNotFound
from adex_proto.outcome import Moved, StepOutcome
from adex_proto.plan import Stage, StepPlan
from adex_proto.sampling import SamplingParams
from adex_scheduler.engine import Engine, EngineRequest, Journey, Move, MoveKind, Start
from adex_scheduler.engine.journey import Moves
from adex_scheduler.testing.fake_worker import FakeWorker, worker_info
from adex_scheduler.testing.link import FakeLink

KEY = AdapterKey("", "local", "tone")
VERSION = AdapterVersion("d1" * 32, 300, 8, 4)
OTHER = AdapterKey("", "hub", "org/other")


class Letters:
    anchor: tuple[int, ...] = (1,)
    anchor_text = "a"

    def decode_raw(self, token_ids: Sequence[int]) -> str:
        return "a" * len(token_ids)

    def token_text(self, token_id: int) -> str:
        return "a"

    def is_special(self, token_id: int) -> bool:
        return False

    def is_known(self, token_id: int) -> bool:
        return True

    def fallback_byte(self, token_id: int) -> int | None:
        return None


@dataclass
class Watcher:
    started: list[Start] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    planned_steps: list[int] = field(default_factory=list)
    computed_steps: list[int] = field(default_factory=list)

    def submitted(self, journey: Journey) -> None:
        self.started.append(journey.start)

    def moved(self, move: Move) -> None:
        self.moves.append(move)

    def planned(self, plan: StepPlan) -> None:
        self.planned_steps.append(plan.step)

    def computed(self, outcome: StepOutcome) -> None:
        self.computed_steps.append(outcome.step)


@asynccontextmanager
async def running(watcher: Watcher) -> AsyncIterator[tuple[Engine, FakeLink]]:
    # Time goes on by a millisecond whenever it is asked for, so that no two moments are equal.
    moments = iter(range(10**9))
    worker = FakeWorker(worker_info(vocabulary=27))
    worker.published[KEY] = VERSION
    worker.published[OTHER] = AdapterVersion("d2" * 32, 6000, 8, 4)
    link = FakeLink(worker)
    engine = Engine(link, Letters(), clock=lambda: next(moments) / 1000, observer=watcher)
    task = asyncio.create_task(engine.run())
    await engine.wait_ready()
    try:
        yield engine, link
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def travel(engine: Engine, key: AdapterKey | None) -> Journey:
    journey = Journey()
    sampling = SamplingParams(max_new_tokens=8, ignore_eos=True)
    request = EngineRequest("r", "", key, (5, 6, 7), sampling)
    with suppress(AdapterNotFound):
        async for _ in engine.stream(request, journey):
            pass
    return journey


async def test_the_first_request_of_an_adapter_waits_for_three_moves_in_order() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, _):
        journey = await travel(engine, KEY)
    assert journey.start is Start.REMOTE
    assert [move.kind for move in journey.moves] == [
        MoveKind.FETCH,
        MoveKind.STAGE,
        MoveKind.PAGE_IN,
    ]
    moments = [journey.submitted_s]
    for move in journey.moves:
        moments += [move.began_s, move.ended_s]
    moments += [journey.admitted_s, journey.first_s, journey.ended_s]
    assert moments == sorted(moments)
    assert journey.moves[0].source == "local"
    assert (journey.prompt_tokens, journey.generated, journey.end) == (3, 8, "length")
    assert journey.digest == VERSION.digest


async def test_the_next_request_finds_the_adapter_on_the_device_and_waits_for_nothing() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, _):
        await travel(engine, KEY)
        journey = await travel(engine, KEY)
        base = await travel(engine, None)
    assert (journey.start, journey.moves) == (Start.DEVICE, ())
    assert (base.start, base.moves, base.digest) == (Start.BASE, (), "")
    assert watcher.started == [Start.REMOTE, Start.DEVICE, Start.BASE]


async def test_an_adapter_that_was_displaced_is_found_where_it_went() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, _):
        await travel(engine, KEY)
        await travel(engine, OTHER)
        journey = await travel(engine, KEY)
    assert journey.start is Start.HOST
    assert [move.kind for move in journey.moves] == [MoveKind.PAGE_IN]


async def test_after_the_worker_was_lost_the_host_still_has_it() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, link):
        await travel(engine, KEY)
        link.lose("killed")
        while link.streams < 2:
            await asyncio.sleep(0)
        journey = await travel(engine, KEY)
    assert journey.start is Start.HOST
    assert [move.kind for move in journey.moves] == [MoveKind.PAGE_IN]


async def test_a_name_that_means_nothing_ends_in_a_failed_fetch() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, _):
        journey = await travel(engine, AdapterKey("", "hub", "org/missing"))
    assert journey.end == "adapter_not_found"
    assert journey.admissions == 0
    assert [(m.kind, m.source, m.error) for m in journey.moves] == [
        (MoveKind.FETCH, "hub", "adapter_not_found")
    ]
    assert watcher.moves == list(journey.moves)


async def test_whoever_leaves_is_written_down_as_cancelled() -> None:
    async with running(Watcher()) as (engine, link):
        link.held.add("commands")
        journey = Journey()
        request = EngineRequest("r", "", KEY, (5, 6), SamplingParams(max_new_tokens=8))

        async def read() -> None:
            async for _ in engine.stream(request, journey):
                pass

        task = asyncio.create_task(read())
        while not link.worker.commands:
            await asyncio.sleep(0)
        assert engine.waiting_names() == {KEY}
        assert engine.longest_wait_s() > 0
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert engine.longest_wait_s() == 0
    assert (journey.end, journey.admissions) == ("cancelled", 0)


async def test_every_step_is_seen_going_and_coming() -> None:
    watcher = Watcher()
    async with running(watcher) as (engine, _):
        await travel(engine, None)
    assert watcher.computed_steps
    assert watcher.planned_steps[: len(watcher.computed_steps)] == watcher.computed_steps


@pytest.mark.parametrize("recent_max", [1, 3])
def test_moves_remembered_are_bounded(recent_max: int) -> None:
    moves = Moves(recent_max)
    for number in range(10):
        moves.sent(Stage(str(number)), float(number))
        assert moves.answered(Moved(str(number), Tier.HOST), number + 0.5) is not None
    journey = Journey(submitted_s=0.0, start=Start.DISK)
    kept = [n for n in range(10) if moves.of(KEY, str(n), journey)]
    assert kept == list(range(10 - recent_max, 10))


def test_an_answer_to_no_command_is_no_move() -> None:
    moves = Moves()
    assert moves.answered(Moved("d", Tier.HOST), 1.0) is None
    moves.sent(Stage("d"), 1.0)
    moves.lost()
    assert moves.answered(Moved("d", Tier.HOST), 2.0) is None
