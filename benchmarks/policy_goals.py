"""What was wanted of the policy beside what the runs gave: one line for each goal, from figures."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# One run's figures, by seed; those of one scenario, by system; those of a group, by its name.
Seeds = dict[int, dict[str, Any]]
Cells = dict[str, Seeds]
Groups = dict[str, dict[Any, Cells]]
CacheRows = dict[tuple[str, int, float], list[dict[str, float]]]
MixDistance = Callable[[Counter[str], Counter[str]], float]


def goals(groups: Groups, rows: CacheRows, mix_distance: MixDistance) -> list[tuple[str, str]]:
    """(wanted, found) of every goal that the groups at hand can tell of."""
    found: list[tuple[str, str]] = []
    for name, cells in groups.get("saturated", {}).items():
        found.append(_saturated(name, cells, mix_distance))
    for group, least, tenth in (("open-1000", 1.2, True), ("open-10000", 1.5, False)):
        some = groups.get(group, {}).values()
        found += [_beside_blocking(groups, cells, least, tenth=tenth) for cells in some]
    for cells in groups.get("host", {}).values():
        extra = _seedwise(
            cells, "adex", "ideal", lambda a, b: 1000 * (a["ttft_p99_s"] - b["ttft_p99_s"])
        )
        wanted = "p99 TTFT within 50 ms of the ideal when adapters are in host memory"
        found.append((wanted, f"{spread(extra, 0)} ms above it; {_kept(extra, at_most=50)}"))
    found += _blocked(groups)
    if rows:
        found.append(_misses(rows))
    found += _loads(groups)
    if "flood" in groups:
        found += _flood(groups["flood"])
    found += _waits(groups)
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean, and the least and most where they differ."""
    mean = f"{statistics.mean(values):.{digits}f}"
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def _kept(
    values: Sequence[float], *, at_least: float | None = None, at_most: float | None = None
) -> str:
    """In how many of the seeds the goal is met."""
    low = float("-inf") if at_least is None else at_least
    high = float("inf") if at_most is None else at_most
    met = sum(low <= value <= high for value in values)
    return f"met in {met} of {len(values)} seeds"


def _seedwise(
    cells: Cells, one: str, other: str, figure: Callable[[dict[str, Any], dict[str, Any]], float]
) -> list[float]:
    """A figure of two systems' runs of the same seed."""
    return [figure(cells[one][seed], cells[other][seed]) for seed in sorted(cells[one])]


def _saturated(name: str, cells: Cells, mix_distance: MixDistance) -> tuple[str, str]:
    scenario = cells["adex"][0]["scenario"]
    least = 97 if scenario.adapters <= 1_000 else 95
    shares = _seedwise(
        cells, "adex", "ideal",
        lambda a, b: 100 * a["output_tokens_per_s"] / b["output_tokens_per_s"],
    )  # fmt: skip
    apart = _seedwise(
        cells, "adex", "ideal",
        lambda a, b: mix_distance(Counter(a["served"]), Counter(b["served"])),
    )  # fmt: skip
    wanted = f"{name}: at least {least} % of the ideal's tokens, with the same served mix"
    told = f"{spread(shares)} %; {_kept(shares, at_least=least)}"
    return wanted, f"{told}; mixes {spread(apart, 3)} apart (total variation)"


def _beside_blocking(groups: Groups, cells: Cells, least: float, *, tenth: bool) -> tuple[str, str]:
    """Throughput and p99 beside synchronous LRU, at the offered load and with the loop closed."""
    scenario = cells["adex"][0]["scenario"]
    ratios = _seedwise(
        cells, "adex", "sync-lru", lambda a, b: a["requests_per_s"] / b["requests_per_s"]
    )
    shorter = _seedwise(cells, "sync-lru", "adex", lambda a, b: a["ttft_p99_s"] / b["ttft_p99_s"])
    wanted = f"{scenario.name}: {least:g}x the throughput of synchronous LRU"
    told = (
        f"{spread(ratios, 2)}x at an offered {scenario.rate:g}/s, which bounds it "
        f"({_kept(ratios, at_least=least)})"
    )
    for closed in groups.get("reach", {}).values():
        cell = closed["adex"][0]["scenario"]
        if cell.streams and cell.adapters == scenario.adapters:
            full = _seedwise(
                closed, "adex", "sync-lru", lambda a, b: a["requests_per_s"] / b["requests_per_s"]
            )
            told += f", {spread(full, 2)}x saturated ({_kept(full, at_least=least)})"
    told += f"; p99 TTFT {spread(shorter, 0)} times shorter"
    if tenth:
        wanted += ", and a tenth of its p99 TTFT"
        told += f" ({_kept(shorter, at_least=10)})"
    return wanted, told


def _runs(groups: Groups, system: str) -> Iterator[dict[str, Any]]:
    for scenarios in groups.values():
        for cells in scenarios.values():
            yield from cells.get(system, {}).values()


def _blocked(groups: Groups) -> Iterator[tuple[str, str]]:
    ours = [run["blocked_share"] for run in _runs(groups, "adex")]
    if not ours:
        return
    told = f"{max(ours):.2f} of the time at worst, in {len(ours)} runs"
    others = [run["blocked_share"] for run in _runs(groups, "sync-lru") if run["blocked_share"]]
    if others:
        told += f"; synchronous LRU stands still up to {100 * max(others):.0f} % of it"
    yield "no step waits for a load", told


def _misses(rows: CacheRows) -> tuple[str, str]:
    saved: dict[bool, list[tuple[float, str]]] = {True: [], False: []}
    for (trace, adapters, share), seeds in rows.items():
        for seed in seeds:
            about = f"`{trace}`, {adapters} adapters, room for {share:.0%}"
            saved[trace in ("zipf", "drift")].append((1 - seed["adex"] / seed["LRU"], about))
    wanted = "misses at least 12 % cheaper than LRU's on Zipf and drift, nowhere over 5 % dearer"
    parts: list[str] = []
    if usual := saved[True]:
        met = sum(share >= 0.12 for share, _ in usual)
        worst, about = min(usual)
        parts.append(
            f"{_percent([s for s, _ in usual])} % cheaper (worst {100 * worst:.0f} %: {about}), "
            f"met in {met} of {len(usual)} replays"
        )
    if others := saved[False]:
        met = sum(share >= -0.05 for share, _ in others)
        worst, about = min(others)
        told = f"{100 * -worst:.1f} % dearer" if worst < 0 else f"{100 * worst:.1f} % cheaper"
        parts.append(f"elsewhere at worst {told} ({about}), met in {met} of {len(others)}")
    return wanted, "; ".join(parts)


def _percent(shares: Sequence[float]) -> str:
    return f"{100 * statistics.mean(shares):.0f}"


def _loads(groups: Groups) -> Iterator[tuple[str, str]]:
    for group in ("open-1000", "open-10000", "remote"):
        for name, cells in groups.get(group, {}).items():
            what = "fetches" if group == "remote" else "stages"
            fewer = _seedwise(
                cells, "adex", "async-lru", lambda a, b, what=what: 100 * (1 - a[what] / b[what])
            )
            yield f"{name}: fewer cold loads than LRU", f"{spread(fewer)} % fewer"


def _flood(scenarios: dict[Any, Cells]) -> Iterator[tuple[str, str]]:
    calm: dict[float, Cells] = {}
    for cells in scenarios.values():
        calm[cells["adex"][0]["scenario"].options["factor"]] = cells
    usual, flood = calm[min(calm)], calm[max(calm)]

    def p99(seeds: Seeds) -> str:
        return f"{1000 * statistics.mean(one['calm_p99_s'] for one in seeds.values()):.0f} ms"

    told = f"{p99(flood['adex'])} instead of {p99(usual['adex'])}"
    if "async-lru" in flood:
        told += f"; {p99(flood['async-lru'])} where there is no fairness"
    yield "one tenant floods: the others' p99 TTFT stays", told
    runs = list(flood["adex"].values())
    worst = max(run["charged_apart"] for run in runs)
    bound = min(run["charged_bound"] for run in runs)
    met = sum(run["charged_apart"] <= run["charged_bound"] for run in runs)
    yield (
        "what two waiting tenants are charged comes apart by no more than `fairness.lag_max`",
        f"{worst:.0f} at worst, the bound {bound:.0f} (in prompt tokens, for the largest request "
        f"in every place); met in {met} of {len(runs)} seeds",
    )


def _waits(groups: Groups) -> Iterator[tuple[str, str]]:
    runs = [run for run in _runs(groups, "adex") if "wait_s" in run]
    if not runs:
        return
    above = sum(run["waits_above"] for run in runs)
    each: list[str] = []
    for scenarios in groups.values():
        for name, cells in scenarios.items():
            told = [run for run in cells.get("adex", {}).values() if "wait_s" in run]
            if told and "reach" not in name:
                one = max(told, key=lambda run: run["wait_s"])
                each.append(f"{one['wait_s']:.1f} s of {one['bound_s']:.0f} s ({name})")
    wanted = "no wait for a first token above the bound of `core.starvation`"
    yield wanted, f"{above} of all requests in {len(runs)} runs; the longest: {', '.join(each)}"
