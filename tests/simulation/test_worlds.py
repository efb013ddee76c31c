"""Seeded worlds of requests, adapters and mishaps; the books are checked after every event."""

import pytest

from adex_proto.errors import CacheFull
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.testing.fake_worker import FakeWorker
from adex_scheduler.testing.world import CALM, Mishaps, World

SHORT_WORLDS = 600
LONG_WORLDS = 30
PART = 100


@pytest.mark.parametrize("first", range(0, SHORT_WORLDS, PART))
def test_every_request_ends_once_with_what_it_would_have_yielded_alone(first: int) -> None:
    for seed in range(first, first + PART):
        world = World(seed, requests=10)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_long_worlds_end_as_well() -> None:
    seen = dict.fromkeys(("preemptions", "prefix_hits", "device_evictions", "dropped_tokens"), 0)
    for seed in range(LONG_WORLDS):
        world = World(seed, requests=40)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        for name in seen:
            seen[name] += getattr(world.core.statistics(), name)
    # Worlds in which nothing happens would prove nothing.
    assert all(count > 10 for count in seen.values()), seen


@pytest.mark.parametrize("seed", range(20))
def test_without_mishaps_every_request_that_can_be_served_is(seed: int) -> None:
    roomy = {"pages": 200, "host_bytes": 10_000, "disk_bytes": 20_000}
    world = World(seed, requests=30, mishaps=CALM, limits=Limits(), **roomy)
    world.run()
    assert all(request.finish is not None for request in world.requests.values())


@pytest.mark.parametrize("seed", range(10))
def test_a_worker_that_keeps_dying_costs_errors_and_nothing_else(seed: int) -> None:
    World(seed, requests=20, mishaps=Mishaps(worker_loss=0.05)).run()


class OnACrowdedDisk(FakeWorker):
    """Others have taken most of the disk that it was given a share of."""

    def __init__(self, info: WorkerInfo) -> None:
        super().__init__(info)
        self.disk_bytes_there = 4000


def test_on_a_crowded_disk_every_request_ends_and_most_are_served() -> None:
    refused, requests, failures = 0, 0, 0
    for seed in range(60):
        world = World(seed, requests=20, adapters=12, worker_of=OnACrowdedDisk, disk_bytes=20_000)
        try:
            world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        errors = [request.error for request in world.requests.values()]
        refused += sum(isinstance(error, CacheFull) for error in errors)
        requests += len(errors)
        failures += world.core.statistics().fetch_failures
    assert failures > 100
    assert refused < requests // 20, (refused, requests, failures)


@pytest.mark.parametrize("seed", range(5))
def test_the_same_events_give_the_same_instructions(seed: int) -> None:
    world = World(seed, requests=25)
    record: list[str] = []
    tell = world.tell

    def recording(event: object) -> object:
        instructions = tell(event)  # type: ignore[arg-type]
        record.append(f"{world.now} {instructions}")
        return instructions

    world.tell = recording  # type: ignore[assignment, method-assign]
    world.run()
    again = SchedulerCore(world.core.info, world.limits)
    replay = [
        f"{line.split(' ', 1)[0]} {again.handle(event, float(line.split(' ', 1)[0]))}"
        for line, event in zip(record, world.events, strict=True)
    ]
    assert replay == record
