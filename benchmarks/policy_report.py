"""Runs of the policy benchmark to Markdown tables and plots."""

import statistics
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from policy_goals import CacheRows, Cells, Groups, MixDistance, goals
from policy_goals import spread as _spread

Answer = tuple[str, tuple[Any, ...], dict[str, Any]]
MARKS = {"ideal": "--", "adex": "-", "sync-lru": "-.", "async-lru-static": ":"}


def write_report(
    answers: Sequence[Answer], folder: Path | None, stem: str, mix_distance: MixDistance
) -> str:
    """The page as Markdown; with a folder it is written there with the plots."""
    groups: Groups = {}
    by_seed: dict[tuple[str, int, float], dict[int, dict[str, float]]] = {}
    for kind, about, answer in answers:
        if kind == "run":
            scenario, system, seed = about
            cells = groups.setdefault(scenario.group, {}).setdefault(scenario.name, {})
            cells.setdefault(system, {})[seed] = answer | {"scenario": scenario}
        else:
            name, adapters, _, share, seed = about
            seeds = by_seed.setdefault((name, adapters, share), {})
            seeds.setdefault(seed, {}).update(answer)
    rows = {about: list(seeds.values()) for about, seeds in by_seed.items()}
    wanted = goals(groups, rows, mix_distance)
    parts = [_head(stem, groups, rows)]
    if wanted:
        parts.append("## Wanted and found\n\n" + _table(("wanted", "found"), wanted))
    if asides := list(_asides(groups)):
        parts.append("What the runs also say:\n\n" + "\n".join(f"- {one}" for one in asides))
    if "saturated" in groups:
        parts.append(_saturated(groups["saturated"], mix_distance))
    for group in ("open-1000", "open-10000", "host", "remote", "prefixes"):
        parts += [_open(name, cells) for name, cells in groups.get(group, {}).items()]
    if "flood" in groups:
        parts.append(_flood(groups["flood"]))
    if rows:
        parts.append(_caches(rows))
    if folder is not None:
        if "reach" in groups:
            _plot_reach(groups["reach"], folder / f"{stem}-reach.png")
            parts.append(f"![throughput and p99 TTFT against adapters]({stem}-reach.png)")
        if rows:
            _plot_regret(rows, folder / f"{stem}-regret.png")
            parts.append(f"![miss cost beyond the bound]({stem}-regret.png)")
        (folder / f"{stem}.md").write_text("\n\n".join(parts) + "\n")
    return "\n\n".join(parts)


_HEAD = """# The policy, simulated, {date}

The scheduler's own core (as of {commit}) on a modelled H200 with Llama-3.1-8B, adapters on all
seven linears: a roofline step (4.3 TB/s, 790 TFLOP/s, low-rank terms at 75 % of the bandwidth),
94.6 GB for KV cache and adapters, 64 GB of host memory, NVMe at 6 GB/s, PCIe at 55 GB/s, remote
sources at 2 GB/s; prompts and answers uniform in 8 to 511 tokens; Zipf 1.0 where nothing else is
said. Mean of {seeds} seeds, the least and most in brackets. Baselines are models of policies, not
of anybody's engine ([docs/simulate.md](../../docs/simulate.md)). "Mixed" is ranks 8 to 128.

    python benchmarks/policy.py

That command writes all of this page, the table of goals too. Prefix caching is on only where it
says so, as the baselines have none. Not included: faults, more than one device, the time decisions
take (`benchmarks/decision_cost.py` measures it; a core that costs 0.3 ms a step would show against
steps of 10 to 20 ms). Nothing was measured on an H200.
"""


def _head(stem: str, groups: Groups, rows: CacheRows) -> str:
    """What was run, and on what code."""
    cells = [seeds for group in groups.values() for one in group.values() for seeds in one.values()]
    counts = sorted({len(seeds) for seeds in [*cells, *rows.values()]})
    seeds = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    here = Path(__file__).parent
    asked = ("git", "describe", "--always", "--dirty", "--exclude=*")
    told = subprocess.run(asked, cwd=here, capture_output=True, text=True, check=False).stdout
    date = stem.removeprefix("policy-")
    return _HEAD.format(date=date, commit=told.strip() or "an unknown commit", seeds=seeds).rstrip()


def _asides(groups: Groups) -> Iterator[str]:
    """What else the open runs show, as ratios of means over the seeds."""

    def mean(cells: Cells, system: str, field: str) -> float:
        return statistics.mean(_of(cells[system], field))

    for group in ("open-1000", "open-10000"):
        for name, cells in groups.get(group, {}).items():
            orders = ("adex", "async-lru", "chameleon-like", "clairvoyant")
            tails = [1000 * mean(cells, system, "ttft_p99_s") for system in orders]
            yield (
                f"{name}: under four orders of leaving, foresight among them, the p99 TTFT is "
                f"{min(tails):.0f} to {max(tails):.0f} ms."
            )
            static = mean(cells, "async-lru-static", "ttft_p99_s")
            ours, lru = (1000 * mean(cells, one, "ttft_p50_s") for one in ("adex", "async-lru"))
            yield (
                f"{name}: a static sixth of memory for adapters has {static:.1f} s of p99 TTFT, "
                f"{static / mean(cells, 'async-lru', 'ttft_p99_s'):.1f} times that of one elastic "
                f"pool under the same LRU. Planning two steps ahead shows in the median: "
                f"{ours:.0f} ms, and {lru:.0f} ms for a baseline that plans one."
            )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _of(seeds: dict[int, dict[str, Any]], field: str) -> list[float]:
    return [seeds[seed][field] for seed in sorted(seeds)]


def _saturated(scenarios: dict[str, Cells], mix_distance: MixDistance) -> str:
    rows: list[list[str]] = []
    for name, cells in scenarios.items():
        ours, ideal = cells["adex"], cells["ideal"]
        ratios = [
            100 * ours[seed]["output_tokens_per_s"] / ideal[seed]["output_tokens_per_s"]
            for seed in sorted(ours)
        ]
        apart = [
            mix_distance(Counter(ours[seed]["served"]), Counter(ideal[seed]["served"]))
            for seed in sorted(ours)
        ]
        rows.append(
            [
                name,
                _spread(_of(ideal, "requests_per_s")),
                _spread(_of(ours, "requests_per_s")),
                f"{_spread(ratios)} %",
                _spread(apart, 3),
                _spread(_of(ours, "blocked_share"), 2),
            ]
        )
    headings = ("closed loop, 512 callers", "ideal req/s", "adex req/s", "adex of ideal, tokens/s")
    more = ("served mix apart", "blocked on loads")
    return "## Saturated\n\n" + _table((*headings, *more), rows)


def _open(name: str, cells: Cells) -> str:
    rows: list[list[str]] = []
    for system, seeds in cells.items():
        rows.append(
            [
                system,
                _spread(_of(seeds, "requests_per_s")),
                _spread([1000 * v for v in _of(seeds, "ttft_p50_s")], 0),
                _spread([1000 * v for v in _of(seeds, "ttft_p99_s")], 0),
                _spread([1000 * v for v in _excess(seeds, cells.get("ideal", {}))], 0),
                _spread([1000 * v for v in _of(seeds, "token_gap_p99_s")]),
                _spread([100 * v for v in _of(seeds, "within_1s")]),
                _spread(_of(seeds, "blocked_share"), 2),
                _spread(_of(seeds, "fetches" if _remote(seeds) else "stages"), 0),
            ]
        )
    headings = (
        "system", "req/s", "TTFT p50 ms", "TTFT p99 ms", "longest wait beyond ideal ms",
        "inter-token p99 ms", "first token in 1 s %", "blocked on loads", "cold loads",
    )  # fmt: skip
    return f"## {name}\n\n" + _table(headings, rows)


def _remote(seeds: dict[int, dict[str, Any]]) -> bool:
    return any(cell["scenario"].remote for cell in seeds.values())


def _excess(seeds: dict[int, dict[str, Any]], ideal: dict[int, dict[str, Any]]) -> list[float]:
    """By how much the request that lost most waited longer than in the ideal, seed by seed."""
    return [
        max(
            ours - best
            for ours, best in zip(seeds[seed]["ttft_s"], ideal[seed]["ttft_s"], strict=True)
        )
        for seed in sorted(seeds)
        if seed in ideal
    ] or [0.0]


def _flood(scenarios: dict[str, Cells]) -> str:
    rows = [
        [
            name,
            system,
            _spread([1000 * v for v in _of(seeds, "calm_p99_s")], 0),
            _spread(_of(seeds, "lag_tokens"), 0),
            _charged(seeds),
        ]
        for name, cells in scenarios.items()
        for system, seeds in cells.items()
    ]
    headings = (
        "workload", "system", "the other tenants' TTFT p99 ms", "service apart, tokens",
        "charged apart (bound)",
    )  # fmt: skip
    return "## One tenant floods\n\n" + _table(headings, rows)


def _charged(seeds: dict[int, dict[str, Any]]) -> str:
    if "charged_apart" not in next(iter(seeds.values())):
        return "-"
    bound = min(_of(seeds, "charged_bound"))
    return f"{_spread(_of(seeds, 'charged_apart'), 0)} ({bound:.0f})"


def _caches(rows: dict[tuple[str, int, float], list[dict[str, float]]]) -> str:
    names = list(next(iter(rows.values()))[0])
    table: list[list[str]] = []
    for (trace, adapters, share), seeds in rows.items():
        cells = [
            f"{statistics.mean(seed['LRU'] / seed[name] for seed in seeds):.2f}"
            for name in names
            if name != "LRU"
        ]
        table.append([f"{trace}, N={adapters}, {share:.0%}", *cells])
    headings = ("trace, cache", *(name for name in names if name != "LRU"))
    return "## Cache only: how many times cheaper than LRU's misses\n\n" + _table(headings, table)


def _plot_reach(scenarios: dict[str, Cells], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, closed, field in ((left, True, "requests_per_s"), (right, False, "ttft_p99_s")):
        lines: dict[str, list[tuple[int, float]]] = {}
        for cells in scenarios.values():
            for system, seeds in cells.items():
                scenario = next(iter(seeds.values()))["scenario"]
                if (scenario.streams is not None) == closed:
                    mean = statistics.mean(_of(seeds, field))
                    lines.setdefault(system, []).append((scenario.adapters, mean))
        for system, points in lines.items():
            points.sort()
            counts, values = zip(*points, strict=True)
            axes.plot(counts, values, MARKS.get(system, "-"), marker="o", label=system)
        counts = sorted({count for points in lines.values() for count, _ in points})
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("adapters, ranks 8 to 128 mixed, Zipf 1.0")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    left.set_ylim(bottom=0)
    left.set_ylabel("requests per second")
    left.set_title("Saturated throughput")
    right.set_yscale("log")
    right.set_ylabel("p99 TTFT, seconds")
    right.set_title("First token at 24 requests a second")
    figure.suptitle("Simulated: Llama-3.1-8B on one H200, adapters on NVMe")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_regret(rows: dict[tuple[str, int, float], list[dict[str, float]]], path: Path) -> None:
    shown = ("LRU", "LFU", "W-TinyLFU", "S3-FIFO", "GDSF", "Chameleon", "mixture", "adex", "Belady")
    shown = tuple(name for name in shown if all(name in seed for s in rows.values() for seed in s))
    figure, axes = plt.subplots(figsize=(11, 5), layout="constrained")
    width = 0.85 / len(shown)
    for place, name in enumerate(shown):
        regrets = [
            statistics.mean(seed[name] / seed["PFOO"] - 1 for seed in seeds)
            for seeds in rows.values()
        ]
        offsets = [index + (place - (len(shown) - 1) / 2) * width for index in range(len(rows))]
        axes.bar(offsets, regrets, width, label=name)
    labels = [f"{trace}\nN={adapters}\n{share:.0%}" for trace, adapters, share in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=7)
    axes.set_yscale("log")
    axes.set_ylabel("cost of misses beyond the bound PFOO, as a share of it")
    axes.set_title("Regret by trace and cache size (share of all adapters' bytes)")
    axes.grid(visible=True, axis="y", alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)
