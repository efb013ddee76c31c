"""What a decision costs: CPU time of `SchedulerCore.handle`, event by event, under a full load.

    python benchmarks/decision_cost.py [--registered 100 1000] [--running 1 64 256] [--prefixes on]

The core runs against the modelled worker of `adex simulate`: so many callers, each asking for the
next request of a Zipf trace over adapters of mixed ranks as soon as it is answered, so sequences
begin and end and adapters come and go all the while. Each row tells of step outcomes, whose
handling plans the next step, of the moves of adapters that are decided after it, and of everything
else. CPU time of the thread is counted, collections of garbage included. Equal events give equal
decisions, so a run is repeated, and each decision's time is the median of its times: what is left
is the decision's own and not the machine's chance.
Writes a table under benchmarks/results/, and above it what a step and its messages cost in which
sequences only go on, and how much memory the core's books take.
"""

import argparse
import gc
import os
import platform
import time
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median

from adex_proto.codec import (
    FromWorkerMessage,
    ToWorkerMessage,
    decode_from_worker,
    decode_to_worker,
    encode_from_worker,
    encode_to_worker,
)
from adex_proto.outcome import SampledTokens, StepOutcome
from adex_proto.plan import Decodes, StepPlan
from adex_scheduler.collecting import collect_rarely
from adex_scheduler.core.events import Event, MovesDue
from adex_scheduler.core.instructions import Instruction
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.simulate.loop import Course, Simulation
from adex_scheduler.simulate.machine import Memory, read_machine
from adex_scheduler.simulate.systems import SHARING_LIMITS, SIMULATED_LIMITS
from adex_scheduler.simulate.trace import TracedRequest, adapter_name
from adex_scheduler.simulate.worker import ModelledWorker
from adex_scheduler.simulate.workloads import RANK_SETS, Load, zipf

RESULTS = Path(__file__).parent / "results"
# Host memory for a few hundred adapters, and a disk for all.
MACHINE = replace(read_machine("h200-llama-8b"), memory=Memory(94.6e9, 64e9, 1e15))
STEPS = 3000
WARM = 500
REPEATS = 3
BOOKS = 10_000
# Sequences of the step in which nothing else happens, one in BLOCK_TOKENS of whom needs a block.
GOING = 256
BLOCK_TOKENS = MACHINE.model.block_tokens
HEADING = """\
# What a scheduling decision costs

{now}, {machine}, Python {python}: `python benchmarks/decision_cost.py`

CPU time of `SchedulerCore.handle` in microseconds, garbage collected as in the scheduler's process,
under a closed loop of as many callers as sequences run, on a simulated H200 with 94.6 GB for KV
cache and adapters and 64 GB of host memory, Zipf over adapters of mixed ranks. A step's event plans
the next one; once that has left, moves of adapters are decided. Prefixes: whether the beginnings of
prompts are kept for reuse, as a server does unless told not to. Here no two are alike, so that all
of it is cost. Each decision's time is the median of those in {repeats} equal runs.
Fixed work that decides nothing takes {fixed[0]} at the median and
{fixed[1]} at the 99th percentile of as many goes: so much of the spread is the
machine's, where {busy:.1f} processes wanted a core at the start.

Where all that happens is that {going} sequences go on, a step's event takes {going_on} at the
median. Its plan takes {wire[0]} to bytes and {wire[1]} back, {wire[2]} bytes; its outcome {wire[3]}
and {wire[4]}, {wire[5]} bytes.

A core that has served each of {registered} adapters once holds {books:.0f} MB (`tracemalloc`).

| prefixes | registered | running | step p50, p99 | moves p50, p99 | others p50, p99 | page-ins |
|---|---|---|---|---|---|---|
"""


@dataclass(slots=True)
class Timed:
    """A core whose every decision is timed; it ends the run when it has seen enough."""

    core: SchedulerCore
    kinds: list[type] = field(default_factory=list[type])
    seconds: list[float] = field(default_factory=list[float])
    steps: int = 0

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """As the core does."""
        began = time.thread_time_ns()
        instructions = self.core.handle(event, now)
        self.seconds.append((time.thread_time_ns() - began) / 1e9)
        self.kinds.append(type(event))
        self.steps += isinstance(event, StepOutcome)
        if self.steps == STEPS + WARM:
            raise StopIteration
        return instructions

    def of(self, *kinds: type) -> list[float]:
        """Seconds of events of these kinds, or without any of all but steps and moves; without
        those of the first WARM steps.
        """
        steps = [place for place, kind in enumerate(self.kinds) if kind is StepOutcome]
        pairs = list(zip(self.kinds, self.seconds, strict=True))[steps[WARM] :]
        others = {StepOutcome, MovesDue}
        return [s for kind, s in pairs if (kind in kinds if kinds else kind not in others)]


def measure(registered: int, running: int, *, prefixes: bool) -> tuple[Timed, int]:
    """Runs of STEPS steps. Returns: median times, and how many adapters came to the device."""
    load = Load(adapters=registered, ranks=RANK_SETS["mix"], rate=100.0, duration_s=300.0, seed=1)
    requests = zipf(load)
    ranks = {adapter_name(i): load.ranks[i % len(load.ranks)] for i in range(registered)}
    ranks |= {one.adapter: one.rank for one in requests if one.adapter is not None}
    limits = SHARING_LIMITS if prefixes else SIMULATED_LIMITS
    runs = [_served(requests, ranks, running, limits) for _ in range(REPEATS)]
    seconds = [median(times) for times in zip(*[run.seconds for run in runs], strict=True)]
    timed = Timed(runs[0].core, runs[0].kinds, seconds)
    return timed, timed.core.statistics().page_ins


def _served(
    requests: Sequence[TracedRequest], ranks: Mapping[str, int], running: int, limits: Limits
) -> Timed:
    worker = ModelledWorker(MACHINE, ranks)
    timed = Timed(SchedulerCore(worker.info(), limits))
    collect_rarely()
    with suppress(StopIteration):
        Simulation(timed, worker, requests, Course(streams=running)).run()
    return timed


def going_on() -> str:
    """The median of a step in which all that happens is that GOING sequences go on."""
    lengths = [BLOCK_TOKENS + index % BLOCK_TOKENS for index in range(GOING)]
    requests = [TracedRequest(0.0, "", None, one, WARM + 2 * STEPS, 8) for one in lengths]
    return _micro(_served(requests, {}, GOING, SHARING_LIMITS).of(StepOutcome), 0.5)


def messages() -> list[str]:
    """Of such a step's plan, then of its outcome: to bytes, back again, and how many bytes."""
    numbers = tuple(range(10**6, 10**6 + GOING))
    growing = numbers[::BLOCK_TOKENS]
    plan = StepPlan(10**5, (), (), (), Decodes(numbers, growing, tuple(range(len(growing)))))
    tokens = tuple(7919 * number % 128_000 for number in numbers)
    outcome = StepOutcome(10**5, SampledTokens(numbers, tokens), (), 0.01)
    told: list[str] = []
    for write, read in (
        (lambda: encode_to_worker(plan).SerializeToString(), _plan_of),
        (lambda: encode_from_worker(outcome).SerializeToString(), _outcome_of),
    ):
        told += [_median(write), _median(partial(read, write())), str(len(write()))]
    return told


def _plan_of(message: bytes) -> object:
    return decode_to_worker(ToWorkerMessage.FromString(message))


def _outcome_of(message: bytes) -> object:
    return decode_from_worker(FromWorkerMessage.FromString(message))


def _median(work: Callable[[], object]) -> str:
    seconds: list[float] = []
    for _ in range(STEPS):
        began = time.thread_time_ns()
        work()
        seconds.append((time.thread_time_ns() - began) / 1e9)
    return _micro(seconds, 0.5)


def books_mb(registered: int) -> float:
    """What a core holds that has served so many adapters once each, and runs nothing any more."""
    tracemalloc.start()
    ranks = RANK_SETS["mix"]
    known = {adapter_name(index): ranks[index % len(ranks)] for index in range(registered)}
    requests = [TracedRequest(0.0, "", name, 8, 2, rank) for name, rank in known.items()]
    worker = ModelledWorker(MACHINE, known)
    core = SchedulerCore(worker.info(), SIMULATED_LIMITS)
    Simulation(core, worker, requests, Course(streams=64)).run()
    assert len(core.tiers.adapters) == registered
    # The core alone is left, and what goes with it is counted, adapters' names among it.
    del worker, requests, known
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    del core
    gc.collect()
    held = before - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / 1e6


def yardstick() -> tuple[str, str]:
    """What the machine itself makes of fixed work about as long as a large step: p50, p99."""
    seconds: list[float] = []
    for _ in range(STEPS):
        began = time.thread_time_ns()
        rows = [(number, number + 1, 1, True, ()) for number in range(1000)]
        assert len({row[0] for row in rows}) == len(rows)
        seconds.append((time.thread_time_ns() - began) / 1e9)
    return _micro(seconds, 0.5), _micro(seconds, 0.99)


def row(registered: int, running: int, prefixes: str) -> str:
    timed, moved = measure(registered, running, prefixes=prefixes == "on")
    kinds = (timed.of(StepOutcome), timed.of(MovesDue), timed.of())
    cells = [f"{_micro(seconds, 0.5)}, {_micro(seconds, 0.99)}" for seconds in kinds]
    return f"| {prefixes} | {registered} | {running} | " + " | ".join(cells) + f" | {moved} |"


def _micro(seconds: Sequence[float], quantile: float) -> str:
    ordered = sorted(seconds)
    return f"{1e6 * ordered[min(int(quantile * len(ordered)), len(ordered) - 1)]:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--registered", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--running", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--prefixes", choices=["on", "off"], nargs="+", default=["on", "off"])
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args()
    machine = f"{_cores()}-core {platform.machine()}, {_cpu()}"
    today = datetime.now(UTC)
    text = HEADING.format(
        now=f"{today:%Y-%m-%d}",
        repeats=REPEATS,
        machine=machine,
        python=platform.python_version(),
        fixed=yardstick(),
        busy=os.getloadavg()[0],
        going=GOING,
        going_on=going_on(),
        wire=messages(),
        registered=BOOKS,
        books=books_mb(BOOKS),
    )
    print(text, end="", flush=True)
    rows = product(options.prefixes, options.registered, options.running)
    for prefixes, registered, running in rows:
        line = row(registered, running, prefixes)
        print(line, flush=True)
        text += line + "\n"
    if not options.no_write:
        name = f"decision-cost-{today:%Y-%m-%d}-{_cores()}-core-{platform.machine()}.md"
        (RESULTS / name).write_text(text, encoding="utf-8")


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown processor"


if __name__ == "__main__":
    main()
