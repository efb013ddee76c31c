"""What a trace would see on a machine, for so many adapters and so much memory: one row each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adex_scheduler.core.limits import PACING, Pacing
from adex_scheduler.core.statistics import CoreStatistics
from adex_scheduler.simulate.loop import Course
from adex_scheduler.simulate.machine import Machine
from adex_scheduler.simulate.result import Figures
from adex_scheduler.simulate.systems import SHARING_LIMITS, SIMULATED_LIMITS, simulate
from adex_scheduler.simulate.trace import TracedRequest, adapter_name, ranks_of


@dataclass(frozen=True, slots=True)
class Question:
    """One row: a system on a machine with so many adapters."""

    system: str
    machine: Machine
    adapters: int
    requests: Sequence[TracedRequest]


@dataclass(slots=True)
class Peaks:
    """The most that was in use at any tick, in bytes; of our own core only."""

    kv: float = 0.0
    adapters: float = 0.0
    host: float = 0.0
    disk: float = 0.0

    def note(self, now: CoreStatistics, page_bytes: int) -> None:
        """Take one look into account."""
        self.kv = max(self.kv, now.pages_kv * page_bytes)
        self.adapters = max(self.adapters, now.pages_adapters * page_bytes)
        self.host = max(self.host, now.host_bytes)
        self.disk = max(self.disk, now.disk_bytes)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the system did, from `from_s` on, and what memory it used."""

    question: Question
    figures: Figures
    peaks: Peaks
    catalogue_bytes: float
    """What all adapters take together, wherever they are."""


def answer(
    question: Question,
    *,
    course: Course,
    remote: bool,
    from_s: float,
    prefix_cache: bool = False,
    pacing: Pacing | None = PACING,
) -> Answer:
    """Simulate the one row."""
    machine, peaks = question.machine, Peaks()
    result = simulate(
        question.system,
        machine,
        question.requests,
        course=course,
        remote=remote,
        limits=replace(SHARING_LIMITS if prefix_cache else SIMULATED_LIMITS, pacing=pacing),
        watch=lambda core: peaks.note(core.statistics(), machine.page_bytes),
    )
    ranks = ranks_of(question.requests)
    total = sum(machine.adapter_bytes(rank) for rank in ranks.values())
    return Answer(question, result.figures(from_s=from_s), peaks, total)


def respread(requests: Sequence[TracedRequest], adapters: int, seed: int) -> list[TracedRequest]:
    """The same requests over another number of adapters.

    With more adapters, each of the trace's becomes several, and each request (a session as a whole)
    goes to one of them at random. With fewer, several become one, which takes the first one's rank.
    """
    ranks = ranks_of(requests)
    places = {name: place for place, name in enumerate(ranks)}
    known = list(ranks.values())
    if adapters == len(known) or not known:
        return list(requests)
    chance = np.random.RandomState(seed)
    of_session: dict[int, float] = {}
    found: list[TracedRequest] = []
    for request in requests:
        if request.adapter is None:
            found.append(request)
            continue
        drawn = float(chance.random_sample())
        if request.session is not None:
            drawn = of_session.setdefault(request.session, drawn)
        place = places[request.adapter]
        if adapters > len(known):
            clones = (adapters - place - 1) // len(known) + 1
            place += int(drawn * clones) * len(known)
        else:
            place %= adapters
        rank = known[place % len(known)]
        found.append(replace(request, adapter=adapter_name(place), rank=rank))
    return found


def faster(requests: Sequence[TracedRequest], speed: float) -> list[TracedRequest]:
    """The same requests, `speed` times as fast."""
    return [replace(request, time_s=request.time_s / speed) for request in requests]


def with_memory(
    machine: Machine, *, device_bytes: float | None, host_bytes: float | None
) -> Machine:
    """The machine with other sizes of memory; None leaves them."""
    memory = machine.memory
    return replace(
        machine,
        memory=replace(
            memory,
            device_bytes=device_bytes or memory.device_bytes,
            host_bytes=host_bytes or memory.host_bytes,
        ),
    )
