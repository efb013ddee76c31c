"""`adex simulate`: a trace, a machine, so many adapters; what would users see, and what memory?"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from adex_proto.errors import AdexError, ValidationError
from adex_scheduler.config import read_pacing
from adex_scheduler.core.limits import Pacing
from adex_scheduler.simulate.loop import Course
from adex_scheduler.simulate.machine import Machine, read_machine, shipped_machines
from adex_scheduler.simulate.planning import Answer, Question, answer, faster, respread, with_memory
from adex_scheduler.simulate.replay import replay_against
from adex_scheduler.simulate.systems import SYSTEMS
from adex_scheduler.simulate.tables import failures, json_line, plot, table
from adex_scheduler.simulate.trace import (
    TOKENS_MAX,
    TracedRequest,
    ranks_of,
    read_trace,
    write_trace,
)
from adex_scheduler.simulate.workloads import RANK_SETS, WORKLOADS, Load

USER_ERROR = 2
# What a workload's options may be; those not named here are positive.
_WORKLOAD_COUNTS = ("tenants", "context_max", "shared")
_WORKLOAD_RANGES = {
    "alpha": (0.0, 10.0),
    "factor": (1.0, 1e6),
    "per_minute": (0.0, 1e6),
    "share": (0.0, 1.0),
    "shared": (0, TOKENS_MAX),
    "sigma": (0.0, 10.0),
    "tenants": (1, 10**6),
    "think_s": (0.0, 1e6),
    "turns": (1.0, 1e6),
}
_UNITS = {"": 1, "B": 1, "GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20, "TB": 10**12}


@dataclass(frozen=True, slots=True)
class Options:
    """Everything `adex simulate` can be told."""

    trace: Path | None
    workload: str
    workload_options: dict[str, float]
    hardware: str
    adapters: tuple[int, ...]
    device_bytes: tuple[float, ...]
    host_bytes: float | None
    systems: tuple[str, ...]
    ranks: tuple[int, ...]
    rate: float
    speed: float
    duration_s: float
    warm_up_s: float
    streams: int | None
    seed: int
    remote: bool
    prefix_cache: bool
    pacing: Pacing | None
    ttft_p99_s: float | None
    plot: Path | None
    write_trace: Path | None
    replay_against: str | None
    adapter_template: str
    prompt_word: str
    as_json: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0, or 2 for what the caller can mend."""
    try:
        options = parse_options(arguments)
        if options.write_trace is not None:
            write_trace(options.write_trace, _trace(options, options.adapters[0]))
            return 0
        if options.replay_against is not None:
            requests = _trace(options, options.adapters[0] if options.adapters else 0)
            replayed = replay_against(
                options.replay_against,
                requests,
                adapter_template=options.adapter_template,
                word=options.prompt_word,
            )
            sys.stdout.write("\n".join(replayed.lines()) + "\n")
            return 0
        _tell(options, [_answer(options, question) for question in _questions(options)])
    except AdexError as error:
        sys.stderr.write(f"adex simulate: {error}\n")
        return USER_ERROR
    return 0


def _tell(options: Options, answers: Sequence[Answer]) -> None:
    lines = [json_line(one) for one in answers] if options.as_json else table(answers)
    if not options.as_json:
        lines += failures(answers)
    if options.ttft_p99_s is not None and not options.as_json:
        lines += _least_memory(answers, options.ttft_p99_s)
    sys.stdout.write("\n".join(lines) + "\n")
    if options.plot is not None:
        plot(answers, options.plot)


def _least_memory(answers: Sequence[Answer], wanted_s: float) -> Iterator[str]:
    """For each number of adapters, the least device memory of those tried that is enough."""
    for adapters in dict.fromkeys(one.question.adapters for one in answers):
        enough = [
            one.question.machine.memory.device_bytes
            for one in answers
            if one.question.adapters == adapters
            and one.question.system == "adex"
            and one.figures.ttft_p99_s <= wanted_s
            and not one.figures.failed
        ]
        told = (
            f"{min(enough) / 1e9:.1f} GB of device memory is enough" if enough else "none is enough"
        )
        yield f"{adapters} adapters with p99 TTFT within {1000 * wanted_s:.0f} ms: {told}"


def _answer(options: Options, question: Question) -> Answer:
    until = options.duration_s if options.streams else 1e9
    return answer(
        question,
        course=Course(options.streams, until),
        remote=options.remote,
        from_s=options.warm_up_s,
        prefix_cache=options.prefix_cache,
        pacing=options.pacing,
    )


def _questions(options: Options) -> Iterator[Question]:
    machine = read_machine(options.hardware)
    machines: list[Machine] = [
        with_memory(machine, device_bytes=size, host_bytes=options.host_bytes)
        for size in options.device_bytes or (None,)
    ]
    for adapters in options.adapters or (0,):
        requests = _trace(options, adapters)
        for one in machines:
            for system in options.systems:
                yield Question(system, one, adapters or len(ranks_of(requests)), requests)


def _trace(options: Options, adapters: int) -> list[TracedRequest]:
    """The caller's trace over so many adapters (0: as it is), or a generated one."""
    if options.trace is not None:
        requests = faster(read_trace(options.trace), options.speed)
        return respread(requests, adapters, options.seed) if adapters else requests
    rate = options.rate * options.speed
    load = Load(adapters, rate, options.duration_s, options.seed, options.ranks)
    return WORKLOADS[options.workload](load, **options.workload_options)


def parse_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line.

    Raises ValidationError for a bad combination; argparse ends the process for an unknown flag.
    """
    flags = _parser().parse_args(arguments)
    name, _, told = flags.workload.partition(":")
    if name not in WORKLOADS:
        raise _bad("workload", f"{name!r} is none of {', '.join(WORKLOADS)}")
    adapters = tuple(flags.adapters or (() if flags.trace else (1000,)))
    if any(count < 1 for count in adapters):
        raise _bad("adapters", "must be 1 or more")
    for field in ("rate", "speed", "duration"):
        if not getattr(flags, field) > 0:
            raise _bad(field, "must be above 0")
    unknown = set(flags.systems) - set(SYSTEMS)
    if unknown:
        raise _bad("systems", f"{min(unknown)!r} is none of {', '.join(SYSTEMS)}")
    warm_up_s = flags.duration / 6 if flags.warm_up is None else flags.warm_up
    return Options(
        trace=flags.trace,
        workload=name,
        workload_options=_workload_options(name, told),
        hardware=flags.hardware,
        adapters=adapters,
        device_bytes=tuple(_bytes("device-memory", one) for one in flags.device_memory),
        host_bytes=_bytes("host-memory", flags.host_memory) if flags.host_memory else None,
        systems=tuple(flags.systems),
        ranks=_ranks(flags.ranks),
        rate=flags.rate,
        speed=flags.speed,
        duration_s=flags.duration,
        warm_up_s=warm_up_s,
        streams=flags.streams,
        seed=flags.seed,
        remote=flags.remote,
        prefix_cache=flags.prefix_cache,
        pacing=_pacing(flags.step_target_ms),
        ttft_p99_s=None if flags.ttft_p99_ms is None else flags.ttft_p99_ms / 1000,
        plot=flags.plot,
        write_trace=flags.write_trace,
        replay_against=flags.replay_against,
        adapter_template=flags.adapter_template,
        prompt_word=flags.prompt_word,
        as_json=flags.json,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="adex simulate",
        description="Run the scheduler on a simulated machine: what would users see, at what cost?",
    )
    add = parser.add_argument
    add("--trace", type=Path, metavar="FILE", help="requests as JSON lines; else one is generated")
    add("--workload", default="zipf", metavar="NAME[:OPTION=VALUE,...]", help=", ".join(WORKLOADS))
    add("--hardware", default="h200-llama-8b", metavar="FILE", help=", ".join(shipped_machines()))
    add("--adapters", type=int, nargs="+", metavar="N", help="a row for each number")
    add("--device-memory", nargs="+", default=[], metavar="SIZE", help="a row for each size")
    add("--host-memory", metavar="SIZE")
    add("--systems", nargs="+", default=["adex", "ideal"], metavar="NAME", help=", ".join(SYSTEMS))
    add("--ranks", default="mix", help=f"{', '.join(RANK_SETS)}, or numbers apart by commas")
    add("--rate", type=float, default=20.0, help="requests per second of a generated trace")
    add("--speed", type=float, default=1.0, help="play the trace so many times as fast")
    add("--duration", type=float, default=120.0, metavar="SECONDS", help="of a generated trace")
    add("--warm-up", type=float, metavar="SECONDS", help="not counted; a sixth of the duration")
    add("--streams", type=int, help="so many callers, each asking again when answered")
    add("--seed", type=int, default=0)
    add("--remote", action="store_true", help="no adapter is on disk at the start")
    add("--prefix-cache", action="store_true", help="share what prompts have in common")
    add(
        "--step-target-ms", default="auto", metavar="MS", help="as of adex serve: a time, auto, off"
    )
    add("--ttft-p99-ms", type=float, help="say which device memory is enough for this")
    add("--plot", type=Path, metavar="FILE")
    add("--json", action="store_true", help="one JSON object for each row")
    add("--write-trace", type=Path, metavar="FILE", help="write the generated trace and stop")
    add("--replay-against", metavar="URL", help="send the trace to a running server instead")
    add("--adapter-template", default="{adapter}", help="what a server calls the trace's {adapter}")
    add("--prompt-word", default="Hello", help="a prompt of n tokens is this word n times")
    return parser


def _workload_options(name: str, told: str) -> dict[str, float]:
    known = list(signature(WORKLOADS[name]).parameters)[1:]
    found: dict[str, float] = {}
    for pair in filter(None, told.split(",")):
        option, _, value = pair.partition("=")
        if option not in known:
            raise _bad("workload", f"{name} has no option {option!r}, but {', '.join(known)}")
        found[option] = _workload_option(option, value)
    return found


def _workload_option(option: str, told: str) -> float:
    whole = option in _WORKLOAD_COUNTS
    try:
        value = int(told) if whole else float(told)
    except ValueError as error:
        kind = "whole number" if whole else "number"
        raise _bad("workload", f"{option} must be a {kind}, got {told!r}") from error
    least, most = _WORKLOAD_RANGES.get(option, (1e-3, 1e6))
    if not least <= value <= most:
        raise _bad("workload", f"{option} must be from {least:g} to {most:g}, got {told}")
    return value


def _ranks(told: str) -> tuple[int, ...]:
    if told in RANK_SETS:
        return RANK_SETS[told]
    try:
        ranks = tuple(int(one) for one in told.split(","))
    except ValueError as error:
        raise _bad("ranks", f"must be numbers apart by commas, got {told!r}") from error
    if min(ranks) < 1:
        raise _bad("ranks", "must be 1 or more")
    return ranks


def _pacing(told: str) -> Pacing | None:
    try:
        return read_pacing(told)
    except ValueError as error:
        raise _bad("step-target-ms", str(error)) from error


def _bytes(field: str, told: str) -> float:
    number = told.rstrip("BGMTKi")
    unit = told[len(number) :]
    try:
        size = float(number) * _UNITS[unit]
    except (ValueError, KeyError) as error:
        raise _bad(field, f"must be a size such as 24GB or 24GiB, got {told!r}") from error
    if not size > 0:
        raise _bad(field, "must be above 0")
    return size


def _bad(field: str, what: str) -> ValidationError:
    return ValidationError(f"--{field} {what}", field=field)


if __name__ == "__main__":
    sys.exit(main())
