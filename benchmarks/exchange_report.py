"""The exchange benchmark's rows and plots."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from exchange_load import Request, Turns, Window
from report import quantile_ms

TIERS = ("device", "host", "disk", "remote")


@dataclass(slots=True)
class Run:
    """One cell: what was asked of which server, the answers, and what the metrics counted."""

    server: str
    mix: str
    loop: str
    adapters: int
    answers: Turns | Window
    counted: dict[str, float]
    """Increments of the server's counters over the run's `counted_s` seconds."""
    counted_s: float

    def counter(self, name: str) -> float:
        """How far a counter grew, over all values of the labels that `name` leaves open."""
        return sum(
            grown
            for full, grown in self.counted.items()
            if full == name or full.startswith(f"{name}{{")
        )


def throughput_table(runs: list[Run]) -> str:
    """Tokens per second of each cell beside N = 1 and beside everything resident."""
    by_key = {(r.server, r.mix, r.loop, r.adapters): r for r in runs}
    lines = [
        "| loop, mix | adapters | tok/s | of N = 1 | all resident tok/s | of all resident | "
        "TTFT p50 / p99 ms | all resident | inter-token p50 / p99 ms | all resident |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (server, mix, loop, adapters), run in by_key.items():
        if server != "crowded":
            continue
        rate = run.answers.tokens_per_s()
        one = by_key.get((server, mix, loop, 1))
        ideal = by_key.get(("resident", mix, loop, adapters))
        of_one = _percent(rate, one.answers.tokens_per_s() if one else 0)
        ideal_rate = ideal.answers.tokens_per_s() if ideal else 0.0
        lines.append(
            f"| {loop}, {mix} | {adapters} | {rate:.0f} | {of_one} | {ideal_rate:.0f} | "
            f"{_percent(rate, ideal_rate)} | {_firsts(run.answers.counted())} | "
            f"{_firsts(ideal.answers.counted()) if ideal else '-'} | {_gaps(run)} | "
            f"{_gaps(ideal) if ideal else '-'} |"
        )
    return "\n".join(lines)


def start_table(runs: list[Run]) -> str:
    """Each cell's requests by the tier in which they found their adapter."""
    lines = [
        "| server | loop, mix | adapters | requests | "
        + " | ".join(f"{tier} share, TTFT p50 / p99 ms, then inter-token" for tier in TIERS)
        + " | longest wait s |",
        "|---|---|---|---|" + "---|" * (len(TIERS) + 1),
    ]
    for run in runs:
        answered = run.answers.counted()
        by_tier: dict[str, list[Request]] = defaultdict(list)
        for request in answered:
            by_tier[request.tier].append(request)
        cells = []
        for tier in TIERS:
            some = by_tier[tier]
            gaps = [g for r in some for g in r.gaps_s]
            share = f"{_percent(len(some), len(answered))}, {_firsts(some)}"
            cells.append(f"{share}, {_pair(gaps)}" if some else "-")
        longest = max((r.first_s for r in answered), default=0.0)
        lines.append(
            f"| {run.server} | {run.loop}, {run.mix} | {run.adapters} | {len(answered)} | "
            + " | ".join(cells)
            + f" | {longest:.2f} |"
        )
    return "\n".join(lines)


# Heading of a column, and the counter whose growth it shows.
COUNTERS = {
    "fetches": "adex_adapter_fetch_seconds_count",
    "stages": "adex_adapter_stages_total",
    "page-ins": "adex_adapter_page_ins_total",
    "disk to host MB/s": 'adex_adapter_moved_bytes_total{link="disk_to_host"}',
    "host to device MB/s": 'adex_adapter_moved_bytes_total{link="host_to_device"}',
    "device evictions": 'adex_adapter_evictions_total{tier="device"}',
    "host evictions": 'adex_adapter_evictions_total{tier="host"}',
    "preemptions": "adex_preemptions_total",
    "steps": "adex_steps_total",
    "mean step ms": "adex_step_seconds_sum",
    "share of time in steps": "adex_step_seconds_sum",
}


def link_table(runs: list[Run]) -> str:
    """What moved between the tiers in each run, and what the worker's steps did meanwhile.

    A step that waited for a load would show as a smaller share of time in steps, beside the server
    that loads nothing.
    """
    lines = [
        "| server | loop, mix | adapters | " + " | ".join(COUNTERS) + " |",
        "|---|---|---|" + "---|" * len(COUNTERS),
    ]
    for run in runs:
        steps = run.counted.get("adex_steps_total", 0.0)
        units = {"MB/s": 1e-6 / run.counted_s, "ms": 1e3 / max(steps, 1)}
        units["steps"] = 1 / run.counted_s
        values = [
            run.counter(name) * (1 if name == "adex_steps_total" else _unit(title, units))
            for title, name in COUNTERS.items()
        ]
        lines.append(
            f"| {run.server} | {run.loop}, {run.mix} | {run.adapters} | "
            + " | ".join(f"{value:.4g}" for value in values)
            + " |"
        )
    return "\n".join(lines)


def _unit(title: str, units: dict[str, float]) -> float:
    return units.get(title.split()[-1], 1.0)


def plot_throughput(runs: list[Run], path: Path) -> None:
    """Throughput and p99 TTFT against the number of adapters, crowded beside all resident."""
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9, 8), sharex=True, layout="constrained")
    counts = sorted({r.adapters for r in runs})
    kinds = sorted({(r.mix, r.loop) for r in runs})
    for color, (mix, loop) in enumerate(kinds):
        for server, style in (("crowded", "-o"), ("resident", "--x")):
            some = sorted(
                (r for r in runs if (r.mix, r.loop, r.server) == (mix, loop, server)),
                key=lambda run: run.adapters,
            )
            if not some:
                continue
            x = [counts.index(r.adapters) for r in some]
            label = f"{loop}, {mix}, {server}"
            top.plot(x, [r.answers.tokens_per_s() for r in some], style, color=f"C{color}")
            firsts = [quantile_ms([q.first_s for q in r.answers.counted()], 0.99) for r in some]
            bottom.plot(x, firsts, style, color=f"C{color}", label=label)
    top.set_ylabel("output tokens per second")
    top.set_ylim(bottom=0)
    bottom.set_ylabel("TTFT p99, ms")
    bottom.set_yscale("log")
    bottom.set_xticks(range(len(counts)), [str(count) for count in counts])
    bottom.set_xlabel("distinct adapters (device holds about 32, host about 128)")
    top.set_title("Adapters far beyond memory, beside everything resident")
    for axes in (top, bottom):
        axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_disturbance(
    streams: list[Request], marks: list[tuple[float, float, str]], path: Path
) -> None:
    """Inter-token p50, p99 and maximum of running streams over time, with what went on beside."""
    events = sorted(
        (e, e - b) for r in streams for b, e in zip(r.ends_s, r.ends_s[1:], strict=False)
    )
    if not events:
        return
    origin, width = events[0][0], 1.0
    buckets: dict[int, list[float]] = defaultdict(list)
    for end, gap in events:
        buckets[int((end - origin) / width)].append(gap)
    figure, axes = plt.subplots(figsize=(10, 5), layout="constrained")
    x = sorted(buckets)
    for quantile, label in ((0.5, "p50"), (0.99, "p99"), (1.0, "max")):
        axes.plot(
            [i * width for i in x], [quantile_ms(buckets[i], quantile) for i in x], label=label
        )
    for index, (start, stop, label) in enumerate(marks):
        axes.axvspan(start - origin, stop - origin, alpha=0.15, color=f"C{index + 3}", label=label)
    axes.set_xlabel("seconds")
    axes.set_ylabel("inter-token time of running streams, ms")
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    axes.set_title("Running streams while cold, corrupt and hanging adapters are asked for")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _firsts(requests: list[Request]) -> str:
    return _pair([r.first_s for r in requests])


def _gaps(run: Run) -> str:
    return _pair([g for r in run.answers.counted() for g in r.gaps_s])


def _pair(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{quantile_ms(values, 0.5):.0f} / {quantile_ms(values, 0.99):.0f}"


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"
