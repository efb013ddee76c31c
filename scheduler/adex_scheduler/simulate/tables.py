"""Answers as a table for people, as JSON lines for programs, and as a plot."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot

from adex_scheduler.simulate.planning import Answer

HEADINGS = (
    "system", "adapters", "device GB", "req/s", "TTFT p50 ms", "TTFT p99 ms", "in 1 s %",
    "inter-token p99 ms", "loads waited for %", "KV GB", "adapters GB", "host GB", "all GB",
)  # fmt: skip


def table(answers: Sequence[Answer]) -> list[str]:
    """Columns apart by two spaces, numbers to the right."""
    rows = [HEADINGS, *map(_cells, answers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines: list[str] = []
    for row in rows:
        first, *rest = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]))
    return lines


def failures(answers: Sequence[Answer]) -> Iterator[str]:
    """A line for each answer in which requests failed: to its figures they wait to the end."""
    for one in answers:
        question, figures = one.question, one.figures
        if figures.failed:
            memory = _gb(question.machine.memory.device_bytes)
            yield (
                f"{question.system}, {question.adapters} adapters, {memory} GB: "
                f"{figures.failed} of {figures.requests} requests failed"
            )


def _cells(one: Answer) -> tuple[str, ...]:
    figures, peaks = one.figures, one.peaks
    ours = one.question.system == "adex"
    return (
        one.question.system,
        str(one.question.adapters),
        _gb(one.question.machine.memory.device_bytes),
        f"{figures.requests_per_s:.1f}",
        f"{1000 * figures.ttft_p50_s:.0f}",
        f"{1000 * figures.ttft_p99_s:.0f}",
        f"{100 * figures.within_1s:.1f}",
        f"{1000 * figures.token_gap_p99_s:.1f}",
        f"{100 * figures.blocked_share:.0f}",
        _gb(peaks.kv) if ours else "-",
        _gb(peaks.adapters) if ours else "-",
        _gb(peaks.host) if ours else "-",
        _gb(one.catalogue_bytes),
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}" if size < 1e11 else f"{size / 1e9:.0f}"


def json_line(one: Answer) -> str:
    """The answer as one JSON object; sizes in bytes, times in seconds."""
    return json.dumps(
        {
            "system": one.question.system,
            "hardware": one.question.machine.name,
            "device_bytes": one.question.machine.memory.device_bytes,
            "adapters": one.question.adapters,
            "catalogue_bytes": one.catalogue_bytes,
            **asdict(one.figures),
            **{f"peak_{name}_bytes": size for name, size in asdict(one.peaks).items()},
        }
    )


def plot(answers: Sequence[Answer], path: Path) -> None:
    """Requests per second, and p99 TTFT, against the number of adapters or the device's memory."""
    mpl.use("Agg")
    by_memory = len({one.question.adapters for one in answers}) == 1
    horizontal: Callable[[Answer], float] = (
        (lambda one: one.question.machine.memory.device_bytes / 1e9)
        if by_memory
        else (lambda one: one.question.adapters)
    )
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for system in dict.fromkeys(one.question.system for one in answers):
        for size in sorted({one.question.machine.memory.device_bytes for one in answers}):
            points = sorted(
                (horizontal(one), one.figures.requests_per_s, one.figures.ttft_p99_s)
                for one in answers
                if one.question.system == system
                and (by_memory or one.question.machine.memory.device_bytes == size)
            )
            several = not by_memory and len({one.question.machine for one in answers}) > 1
            label = f"{system}, {size / 1e9:.0f} GB" if several else system
            across, rates, waits = zip(*points, strict=True)
            left.plot(across, rates, marker="o", label=label)
            right.plot(across, [1000 * wait for wait in waits], marker="o", label=label)
            if by_memory:
                break
    for axes in (left, right):
        axes.set_xlabel("device memory for KV cache and adapters, GB" if by_memory else "adapters")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
        if not by_memory:
            counts = sorted({one.question.adapters for one in answers})
            axes.set_xscale("log")
            axes.set_xticks(counts, [str(count) for count in counts])
            axes.minorticks_off()
    left.set_ylim(0, 1.1 * max(one.figures.requests_per_s for one in answers))
    left.set_ylabel("requests per second")
    waited = [one.figures.ttft_p99_s for one in answers]
    if max(waited) > 10 * min(waited):
        right.set_yscale("log")
    else:
        right.set_ylim(0, 1100 * max(waited))
    right.set_ylabel("p99 TTFT, milliseconds")
    figure.suptitle(f"Simulated: {answers[0].question.machine.name}")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
