"""A step's cost must follow the batch, not the adapters known or the requests waiting.

Calls are counted instead of time, so that a busy machine changes nothing.
"""

import sys
from types import FrameType

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.outcome import Held, Hello, StepOutcome
from adex_scheduler.core.events import WorkerReady
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

ROOMY = {"pages": 4000, "slots_max": 2000, "host_bytes": 10**9, "disk_bytes": 10**9}


def busy_desk(*, known: int, resident: int, waiting: int) -> Desk:
    """16 sequences running; of those waiting half are ready and half wait for stuck fetches."""
    desk = Desk(Limits(waiting_max=10**6, waiting_tenant_max=10**6), **ROOMY)
    desk.checking = False
    held = [Held(AdapterVersion(f"held-{i}", 100, 8, 4), Tier.HOST) for i in range(known)]
    desk.tell(WorkerReady(Hello(desk.worker.info, tuple(held))))
    desk.worker.disk = {copy.version.digest: copy.version for copy in held}
    desk.worker.host = set(desk.worker.disk)
    for index in range(resident):
        desk.arrive(desk.publish(f"r{index}"), prompt=1, new=1)
        desk.settle()
    for _ in range(16):
        desk.arrive(prompt=3, new=100)
    for index in range(waiting):
        desk.arrive(None if index % 2 else desk.publish(f"w{index}"), tenant=f"t{index % 7}")
    for _ in range(8):
        desk.step()
    return desk


def calls_of_a_step(desk: Desk) -> int:
    """Calls, Python's and C's, that handling one outcome makes; the cheapest of several steps."""
    counts: list[int] = []
    for _ in range(6):
        outcome: StepOutcome = desk.worker.run_plan()
        calls = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            instructions = desk.core.handle(outcome, desk.now)
        finally:
            sys.setprofile(None)
        counts.append(calls)
        for instruction in instructions:
            desk.worker.receive(instruction.plan)  # type: ignore[union-attr]
            break
    return min(counts)


def test_the_cost_of_a_step_does_not_grow_with_the_adapters_known_or_resident() -> None:
    few = calls_of_a_step(busy_desk(known=10, resident=5, waiting=20))
    many = calls_of_a_step(busy_desk(known=2000, resident=150, waiting=20))
    assert many <= few + 5


def test_the_cost_of_a_step_does_not_grow_with_the_queue() -> None:
    few = calls_of_a_step(busy_desk(known=10, resident=5, waiting=20))
    many = calls_of_a_step(busy_desk(known=10, resident=5, waiting=600))
    assert many <= few + 5


def crowded_desk(*, waiting: int) -> Desk:
    """Every slot pinned by a running sequence, and others waiting in host memory for a slot."""
    desk = Desk(Limits(waiting_max=10**6, waiting_tenant_max=10**6), **(ROOMY | {"slots_max": 16}))
    desk.checking = False
    for index in range(16):
        desk.arrive(desk.publish(f"r{index}"), prompt=3, new=200)
    desk.settle_commands()
    for index in range(waiting):
        desk.arrive(desk.publish(f"w{index}"), tenant=f"t{index % 7}")
    desk.settle_commands()
    for _ in range(4):
        desk.step()
    return desk


def test_the_cost_of_a_step_does_not_grow_with_the_adapters_that_find_no_room() -> None:
    few, many = crowded_desk(waiting=30), crowded_desk(waiting=600)
    assert many.core.statistics().waiting_for_adapter == 600
    assert calls_of_a_step(many) <= calls_of_a_step(few) + 5
