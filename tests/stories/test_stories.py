"""Recorded events and the instructions they must give: decisions change on purpose or not at all.

Each story is played once over a fake worker and kept in a file, one line for each event. The test
replays the file's events to a fresh core. To accept a change of decisions, run with
ADEX_UPDATE_STORIES=1 and review the difference of the files as one reviews code.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from adex_proto import adapter, errors, outcome, sampling
from adex_proto.plan import Span
from adex_scheduler.core import events
from adex_scheduler.core.events import Cancelled, Event, StopFound, Ticked, WorkerGone
from adex_scheduler.core.instructions import Instruction
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.testing.desk import Desk, key

HERE = Path(__file__).parent
UPDATE = os.environ.get("ADEX_UPDATE_STORIES") == "1"
KINDS: dict[str, Any] = {
    name: kind
    for module in (adapter, outcome, sampling, events)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and (dataclasses.is_dataclass(kind) or issubclass(kind, Enum))
}
KINDS["Limits"] = Limits


def encode(value: Any) -> Any:
    """A frozen value as JSON: defaults are left out, enumeration members are "@Kind.NAME"."""
    if isinstance(value, Enum):
        return f"@{type(value).__name__}.{value.name}"
    if isinstance(value, errors.AdexError):
        return {"is": "error", "code": value.code, "message": value.message}
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: encode(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != _default(field)
        }
        return {"is": type(value).__name__, **fields}
    if isinstance(value, Span):
        fields = {
            name: encode(item)
            for name, item in value._asdict().items()
            if item != Span._field_defaults.get(name)
        }
        return {"is": "Span", **fields}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    return value


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def decode(value: Any) -> Any:
    """What `encode` was given."""
    if isinstance(value, str) and value.startswith("@"):
        kind, name = value[1:].split(".")
        return KINDS[kind][name]
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if isinstance(value, dict) and value["is"] == "error":
        return errors.error_of(value["code"], value["message"])
    if isinstance(value, dict):
        fields = {name: decode(item) for name, item in value.items() if name != "is"}
        return KINDS[value["is"]](**fields)
    return value


class Recorder(Desk):
    """A desk that remembers every event, its time, and what it gave."""

    def __init__(self, limits: Limits | None = None, **info_changes: int) -> None:
        self.lines: list[tuple[float, Event, list[Instruction]]] = []
        super().__init__(limits, **info_changes)

    def decide(self, event: Event) -> list[Instruction]:
        at = self.now
        instructions = self.core.handle(event, at)
        self.lines.append((at, event, instructions))
        handle, self.core.handle = self.core.handle, lambda *_: instructions  # type: ignore[method-assign]
        try:
            return super().decide(event)
        finally:
            self.core.handle = handle  # type: ignore[method-assign]


def a_first_request_through_an_adapter() -> Recorder:
    desk = Recorder()
    desk.arrive(desk.publish("tone", 300), new=3)
    desk.arrive(new=3)
    desk.settle()
    return desk


def an_eviction_makes_room() -> Recorder:
    desk = Recorder(Limits(alias_ttl_s=1.0), pages=12, slots_max=2)
    for second, name in enumerate(("a", "b", "a", "c")):
        desk.now = float(second)
        desk.arrive(desk.publish(name, 400), prompt=2, new=2)
        desk.settle()
    return desk


def preemption_and_return() -> Recorder:
    desk = Recorder(pages=6, step_sequences_max=4)
    for _ in range(3):
        desk.arrive(new=12)
    desk.settle()
    return desk


def a_stop_and_a_cancellation_in_flight() -> Recorder:
    desk = Recorder()
    stopped, cancelled = desk.arrive(new=9), desk.arrive(new=9)
    desk.step()
    desk.step()
    desk.tell(StopFound(stopped))
    desk.tell(Cancelled(cancelled))
    desk.settle()
    return desk


def a_lost_worker() -> Recorder:
    desk = Recorder(Limits(worker_wait_s_max=30.0))
    desk.arrive(new=9)
    desk.step()
    desk.arrive(desk.publish("tone"))
    desk.arrive(key("missing"))
    desk.settle_commands()
    desk.worker.forget_device()
    desk.tell(WorkerGone("killed"))
    desk.now = 10.0
    desk.tell(Ticked())
    desk.reconnect()
    desk.settle()
    return desk


STORIES: tuple[Callable[[], Recorder], ...] = (
    a_first_request_through_an_adapter,
    an_eviction_makes_room,
    preemption_and_return,
    a_stop_and_a_cancellation_in_flight,
    a_lost_worker,
)


def told(play: Callable[[], Recorder]) -> Iterator[str]:
    """The story as lines: what the world is, then each event and what it gives."""
    desk = play()
    head = {"info": encode(desk.core.info), "limits": encode(desk.core.limits)}
    yield json.dumps(head)
    for at, event, instructions in desk.lines:
        yield json.dumps({"at": at, "event": encode(event), "gives": encode(instructions)})


@pytest.mark.parametrize("play", STORIES, ids=lambda play: play.__name__)
def test_recorded_events_give_the_recorded_instructions(play: Callable[[], Recorder]) -> None:
    file = HERE / f"{play.__name__}.jsonl"
    if UPDATE:
        file.write_text("\n".join(told(play)) + "\n")
    head, *lines = map(json.loads, file.read_text().splitlines())
    core = SchedulerCore(decode(head["info"]), decode(head["limits"]))
    for number, line in enumerate(lines, start=2):
        gives = encode(core.handle(decode(line["event"]), line["at"]))
        assert gives == line["gives"], f"{file.name}:{number}: {line['event']['is']}"


def test_every_recorded_story_is_still_told() -> None:
    assert {file.stem for file in HERE.glob("*.jsonl")} == {play.__name__ for play in STORIES}
