"""The policy's proof: our core beside the ideal and the baselines, simulated, over seeds.

    python benchmarks/policy.py [--seeds 5] [--only saturated reach] [--jobs 1] [--no-write]

Runs are kept as JSON under --work and not made again while the code they come from is the same,
so the whole can be stopped and goes on where it was. Writes a page and plots under
benchmarks/results/. About a quarter of an hour on one idle core.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import adex_proto
import adex_scheduler.core
import adex_scheduler.simulate
from adex_scheduler.simulate.cache_rows import cache_row, core_row
from adex_scheduler.simulate.loop import Course
from adex_scheduler.simulate.machine import Machine, Memory, read_machine
from adex_scheduler.simulate.result import RunResult, mix_distance
from adex_scheduler.simulate.systems import SHARING_LIMITS, SIMULATED_LIMITS, SYSTEMS, simulate
from adex_scheduler.simulate.workloads import RANK_SETS, WORKLOADS, Load
from policy_bounds import Lag, waits
from policy_report import write_report

H200 = read_machine("h200-llama-8b")
# Host memory for 64 GB as in the rest, and a disk that holds about a third of the adapters.
SMALL_DISK = replace(H200, memory=Memory(94.6e9, 64e9, 150e9))
ALL_ON_HOST = replace(H200, memory=Memory(94.6e9, 1e12, 4e12))
OURS = ("adex", "ideal")


@dataclass(frozen=True, slots=True)
class Scenario:
    """One cell of the grid; a run of it is one system and one seed."""

    name: str
    group: str
    systems: tuple[str, ...]
    adapters: int
    ranks: str
    rate: float
    duration_s: float
    from_s: float
    workload: str = "zipf"
    options: dict[str, float] = field(default_factory=dict)
    streams: int | None = None
    machine: str = "h200"
    remote: bool = False
    warm: bool = False
    prefix_cache: bool = False


MACHINES: dict[str, Machine] = {"h200": H200, "small-disk": SMALL_DISK, "all-on-host": ALL_ON_HOST}


def scenarios() -> Iterator[Scenario]:
    """The grid, the goals' cells first."""
    everyone = tuple(SYSTEMS)
    for adapters in (1_000, 10_000):
        for ranks in ("16", "mix"):
            yield Scenario(
                f"saturated, N={adapters}, ranks {ranks}", "saturated", OURS, adapters, ranks,
                rate=90, duration_s=60, from_s=20, streams=512,
            )  # fmt: skip
    yield Scenario("30/s, N=1000, mixed", "open-1000", everyone, 1_000, "mix", 30, 80, 15)
    yield Scenario("28/s, N=10000, mixed", "open-10000", everyone, 10_000, "mix", 28, 80, 15)
    yield Scenario(
        "24/s, N=1000, rank 64, all in host memory", "host",
        ("ideal", "adex", "async-lru-static", "lorax-like"), 1_000, "64", 24, 60, 15,
        machine="all-on-host", warm=True,
    )  # fmt: skip
    yield Scenario(
        "20/s, N=2000, mixed, Zipf 0.9, remote", "remote",
        ("ideal", "adex", "async-lru", "chameleon-like", "clairvoyant"), 2_000, "mix", 20, 240,
        120, options={"alpha": 0.9}, machine="small-disk", remote=True,
    )  # fmt: skip
    for workload, rate, options in (("instructed", 20, {}), ("sessions", 12, {"alpha": 1.0})):
        yield Scenario(
            f"{rate}/s, N=1000, mixed, `{workload}`, prefix caching", "prefixes", OURS, 1_000,
            "mix", rate, 80, 30, workload, options, prefix_cache=True,
        )  # fmt: skip
    for factor in (1.0, 10.0):
        yield Scenario(
            f"8 tenants, one asks {factor:g}x in the middle third", "flood",
            ("adex", "async-lru"), 1_000, "mix", 24, 90, 0, "tenant-flood", {"factor": factor},
        )  # fmt: skip
    for adapters in (1, 32, 256, 1_000, 4_000, 10_000):
        yield Scenario(
            f"reach, saturated, N={adapters}", "reach", ("ideal", "adex", "sync-lru"), adapters,
            "mix", rate=90, duration_s=40, from_s=15, streams=512,
        )  # fmt: skip
        yield Scenario(
            f"reach, 24/s, N={adapters}", "reach",
            ("ideal", "adex", "sync-lru", "async-lru-static"), adapters, "mix", 24, 60, 15,
        )  # fmt: skip


# Name, adapters, seconds at 30 requests a second.
CACHE_TRACES = (
    ("zipf", 1_000, 900),
    ("drift", 1_000, 900),
    ("sessions", 1_000, 900),
    ("functions", 1_000, 900),
    ("uniform", 1_000, 900),
    ("cold-storm", 1_000, 900),
    ("zipf", 10_000, 1200),
    ("drift", 10_000, 1200),
    ("sessions", 10_000, 1200),
)
CACHE_SHARES = (0.05, 0.2)


def run_cell(scenario: Scenario, system: str, seed: int) -> dict[str, Any]:
    """One run's figures, and what the report compares between runs."""
    ranks = RANK_SETS[scenario.ranks]
    load = Load(scenario.adapters, scenario.rate, scenario.duration_s, seed, ranks)
    requests = WORKLOADS[scenario.workload](load, **scenario.options)
    until = scenario.duration_s if scenario.streams else 1e9
    machine = MACHINES[scenario.machine]
    flooded, ours = scenario.group == "flood", SYSTEMS[system].rules is None
    lag = Lag({one.tenant for one in requests})
    began = time.perf_counter()
    result = simulate(
        system,
        machine,
        requests,
        course=Course(scenario.streams, until),
        remote=scenario.remote,
        warm=scenario.warm,
        limits=SHARING_LIMITS if scenario.prefix_cache else SIMULATED_LIMITS,
        watch=lag.look if flooded else None,
    )
    took = time.perf_counter() - began
    figures = asdict(result.figures(from_s=scenario.from_s))
    more = {"simulation_s": took, "served": result.served(from_s=scenario.from_s)}
    if scenario.streams is None:
        more["ttft_s"] = [round(one.ttft_s or 1e9, 4) for one in result.records]
    if flooded:
        more |= _flood(result) | (lag.figures(result, machine) if ours else {})
    elif ours and scenario.streams is None:
        more |= waits(result, machine)
    return figures | more


def _flood(result: RunResult) -> dict[str, Any]:
    """First tokens of those who did not flood, and by how much two backlogged tenants differed."""
    calm = sorted(one.ttft_s or 1e9 for one in result.records if one.request.tenant != "tenant-0")
    return {"calm_p99_s": calm[int(0.99 * len(calm))], "lag_tokens": _lag(result)}


def _lag(result: RunResult) -> float:
    """The most by which the service of two tenants differed while both always had some waiting.

    Service is prompt tokens plus twice the output tokens, these spread evenly over their time.
    """
    tenants = sorted({one.request.tenant for one in result.records})
    seconds = range(int(result.ended_at))
    service = {tenant: [0.0] * len(seconds) for tenant in tenants}
    waiting = {tenant: [False] * len(seconds) for tenant in tenants}
    for one in result.records:
        tenant = one.request.tenant
        first, last = one.first_at or 1e9, one.finished_at or 1e9
        for second in seconds[int(one.arrived_at) : int(first) + 1]:
            waiting[tenant][second] |= one.arrived_at <= second < first
        for second in seconds[int(first) :]:
            done = min(1.0, max(0.0, (second - first) / max(last - first, 1e-9)))
            service[tenant][second] += (
                one.request.prompt_tokens + 2 * done * one.request.output_tokens
            )
    worst = 0.0
    for index, one_tenant in enumerate(tenants):
        for other in tenants[index + 1 :]:
            low = high = None
            for second in seconds:
                gap = service[one_tenant][second] - service[other][second]
                both = waiting[one_tenant][second] and waiting[other][second]
                low, high = (min(gap, low or gap), max(gap, high or gap)) if both else (None, None)
                worst = max(worst, high - low if low is not None and high is not None else 0.0)
    return worst


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to run, and where its answer is kept."""

    kind: str
    about: tuple[Any, ...]
    path: Path


def perform(task: Task) -> None:
    """Run it, unless its answer is there."""
    if task.path.exists():
        return
    if task.kind == "run":
        answer = run_cell(*task.about)
    else:
        name, adapters, seconds, share, seed = task.about
        requests = WORKLOADS[name](Load(adapters, 30.0, seconds, seed, RANK_SETS["mix"]))
        row = cache_row if task.kind == "cache" else core_row
        answer = row(requests, share, bytes_per_rank=H200.model.adapter_rank_bytes)
    part = task.path.with_suffix(".part")
    part.write_text(json.dumps(answer))
    part.replace(task.path)


def fingerprint(*sources: Path) -> str:
    """Of the code and the coefficients in these folders and files."""
    digest = hashlib.sha256()
    for source in sources:
        within = [source] if source.is_file() else sorted(source.rglob("*"))
        for path in within:
            if path.suffix in (".py", ".toml"):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def tasks(options: argparse.Namespace) -> list[Task]:
    """Everything to run, in the order of the grid."""
    here = Path(__file__)
    modelled = fingerprint(
        Path(adex_scheduler.simulate.__path__[0]),
        Path(adex_proto.__path__[0]),
        here,
        here.with_name("policy_bounds.py"),
    )
    decided = modelled + fingerprint(Path(adex_scheduler.core.__path__[0]))
    found: list[Task] = []

    def add(kind: str, mark: str, *about: Any) -> None:
        told = json.dumps([asdict(a) if isinstance(a, Scenario) else a for a in about])
        name = hashlib.sha256(f"{kind} {mark} {told}".encode()).hexdigest()[:24]
        found.append(Task(kind, about, options.work / f"{name}.json"))

    for scenario in scenarios():
        if options.only and scenario.group not in options.only:
            continue
        for system in scenario.systems:
            mark = decided if SYSTEMS[system].rules is None else modelled
            for seed in range(options.seeds):
                add("run", mark, scenario, system, seed)
    if not options.only or "cache" in options.only:
        for trace in CACHE_TRACES:
            for share in CACHE_SHARES if trace[1] == 1_000 else CACHE_SHARES[:1]:
                for seed in range(min(options.cache_seeds, options.seeds)):
                    add("cache", modelled, *trace, share, seed)
                    add("core", decided, *trace, share, seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cache-seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="groups of the grid, or `cache`")
    default_root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "adex" / "policy"
    parser.add_argument("--work", type=Path, default=default_root.expanduser())
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    todo = tasks(options)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        Progress(*columns, TimeRemainingColumn()) as progress,
        multiprocessing.get_context("spawn").Pool(options.jobs) as pool,
    ):
        bar = progress.add_task("simulating", total=len(todo))
        for _ in pool.imap(perform, todo):
            progress.advance(bar)
    answers = [(task.kind, task.about, json.loads(task.path.read_text())) for task in todo]
    stem = f"policy-{datetime.now(UTC):%Y-%m-%d}"
    folder = None if options.no_write else Path(__file__).parent / "results"
    print(write_report(answers, folder, stem, mix_distance))


if __name__ == "__main__":
    main()
