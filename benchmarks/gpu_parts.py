"""What is measured on a GPU: each part answers its lines of the report."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from adex_kernels import dispatch, draw
from adex_kernels.dense_lora import add_dense_
from adex_kernels.draw import DrawnRows
from adex_kernels.layout import GROUP_MODULES, Group
from adex_kernels.noise import draw_keys
from gpu_world import RANK, Step, World, stacked

# Decode step over base-only step: (rows, adapters) to the most that is wanted; (0, 1) is any batch.
WANTED = {(0, 1): 1.10, (128, 32): 1.25, (128, 128): 1.70}
_BASE_OVER_FLOOR, _COPY_SHARE, _PIN_SHARE = 1.25, 0.70, 0.85
_PAGE_IN_MS, _SLOWED = 3.0, 1.05
# Layers whose low-rank terms are timed alone: enough bytes to overflow any cache.
_LAYERS_ALONE = 8
# (top-k, top-p) of the draws that are timed.
_FILTERS = {"none": (0, 1.0), "top-k": (50, 1.0), "top-p": (0, 0.95), "both": (50, 0.95)}


@dataclass(slots=True)
class Report:
    """Lines of Markdown, which kernels served, what was missed of what is wanted, and curves of
    (adapters, tokens/s)."""

    served: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def judged(self, what: str, found: float, limit: float, *, least: bool = False) -> str:
        """`found` for a table, with a mark where it misses `limit`."""
        if found >= limit if least else found <= limit:
            return f"{found:.2f}"
        self.missed.append(f"{what}: {found:.3g}, wanted {'>=' if least else '<='} {limit:.3g}")
        return f"**{found:.2f}**"


Progress = Callable[[str, int, int], None]


def decode(world: World, report: Report, progress: Progress) -> None:
    """Decode steps with adapters over those without, beside the bytes that each must move."""
    rate, sizes = world.copy_rate(), world.sizes
    report.lines += [
        f"### Decode steps, {world.name}, context {sizes.context}",
        "",
        f"A copy on the device moves {rate / 1e9:.0f} GB/s; the floor of a step is its bytes at"
        " that rate.",
        "",
        "| batch / distinct | step ms | over base | floor's | over own floor | launched singly |",
        "|---|---|---|---|---|---|",
    ]
    for done, rows in enumerate(sizes.batches):
        progress(f"decode {world.name}", done, len(sizes.batches))
        cases = [0, *(d for d in sizes.distinct if d <= rows)]
        times = world.medians([world.recorded(rows, distinct) for distinct in cases])
        slow = world.medians([world.launched(rows, distinct) for distinct in cases])
        floors = [world.step_bytes(rows, distinct) / rate for distinct in cases]
        for distinct, time_s, floor_s, eager_s in zip(cases, times, floors, slow, strict=True):
            over, case = time_s / times[0], f"{rows} / {distinct}"
            limit = WANTED.get((rows, distinct), WANTED[0, 1] if distinct == 1 else None)
            shown = f"{over:.2f}" if limit is None else report.judged(case, over, limit)
            own = time_s / floor_s
            what = f"{case} over its floor"
            judged = report.judged(what, own, _BASE_OVER_FLOOR) if not distinct else f"{own:.2f}"
            report.lines.append(
                f"| {case} | {1e3 * time_s:.2f} | {shown} | {floor_s / floors[0]:.2f} | {judged} |"
                f" {1e3 * eager_s:.2f} |"
            )
    report.lines.append("")


def kernels(world: World, report: Report, progress: Progress) -> None:
    """The low-rank terms alone beside other ways, as shares of the copy rate."""
    rate, layers = world.copy_rate(), min(_LAYERS_ALONE, world.spec.layers)
    report.lines += [
        f"### Low-rank terms alone, {world.name}, {layers} layers",
        "",
        "| batch / distinct | Triton: ms, share of copy rate | bmm on stacks, gathered each step |"
        " bmm on stacks at hand | a loop over adapters |",
        "|---|---|---|---|---|",
    ]
    rows = max(world.sizes.batches)
    for done, distinct in enumerate(world.sizes.distinct):
        progress(f"kernels {world.name}", done, len(world.sizes.distinct))
        moved = world.lora_bytes(rows, distinct) * layers / world.spec.layers
        ways = [world.captured(way) for way in _ways(world, rows, distinct, layers)]
        times = world.medians(ways)
        share = moved / times[0] / rate
        what = f"kernels at {rows} / {distinct}, share of the copy rate"
        wanted = rows == distinct
        shown = report.judged(what, share, _COPY_SHARE, least=True) if wanted else f"{share:.2f}"
        others = " | ".join(f"{1e3 * t:.2f} ({t / times[0]:.1f}x)" for t in times[1:])
        report.lines.append(f"| {rows} / {distinct} | {1e3 * times[0]:.2f}, {shown} | {others} |")
    report.lines.append("")


def _ways(world: World, rows: int, distinct: int, layers: int) -> Iterator[Step]:
    """The terms of all groups of `layers` layers: our kernels, two grouped products, a loop."""
    lora, shape = world.lora_batch(rows, distinct), world.spec.shape
    kind = {"device": world.device, "dtype": world.decoder.dtype}
    sides: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for group in Group:
        linears = [shape.linear(module) for module in GROUP_MODULES[group]]
        outs = sum(linear.out_features for linear in linears)
        sides[group] = (
            torch.randn(rows, linears[0].in_features, **kind),
            torch.randn(rows, outs, **kind),
        )

    def each(term: Callable[[int, int], object]) -> Step:
        def all_of() -> None:
            for layer in range(layers):
                for group in Group:
                    term(layer, group)

        return all_of

    def ours(layer: int, group: int) -> None:
        x, y = sides[group]
        dispatch.lora_add_(y, x, lora, layer, group)

    def loop(layer: int, group: int) -> None:
        x, y = sides[group]
        add_dense_(y, x, world.tier.slots, lora.segments, layer, group)

    # One layer's stacks serve as every layer's where the bytes are gathered anew: the copies are
    # what is timed, and more would not fit beside the adapters on small devices.
    stacks = {(0, group): stacked(world, distinct, 0, group) for group in Group}
    owners = torch.zeros(rows, dtype=torch.int64)
    for start, stop, slot in lora.segments:
        owners[start:stop] = slot - 1
    owner = owners.to(world.device)
    at_hand = {group: [m[owner] for m in stacks[0, group]] for group in Group}

    def gathered(layer: int, group: int) -> None:
        a, b = (matrices.index_select(0, owner) for matrices in stacks[0, group])
        _grouped(sides[group], a, b)

    def at_once(layer: int, group: int) -> None:
        _grouped(sides[group], *at_hand[group])

    yield each(ours)
    yield each(gathered)
    yield each(at_once)
    yield each(loop)


def _grouped(sides: tuple[torch.Tensor, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> None:
    x, y = sides
    shrunk = torch.bmm(x.unsqueeze(1), a.transpose(1, 2))
    y += torch.bmm(shrunk, b).squeeze(1)


def paging(world: World, report: Report, progress: Progress) -> None:
    """Page-ins of one adapter: how long, and what they cost the decode steps beside them."""
    pinned, extra = world.pinned_rate(), world.sizes.adapters_max + 1
    spans: list[float] = []
    count = 10 * world.sizes.repeats
    for done in range(count):
        progress(f"paging {world.name}", done, count)
        spans.append(_page_in_seconds(world, extra))
    rows = max(world.sizes.batches)
    step = world.recorded(rows, min(rows, max(world.sizes.distinct)))
    (alone,) = world.medians([step])
    stop = threading.Event()

    def keep_paging() -> None:
        while not stop.is_set():
            _page_in_seconds(world, extra)

    pager = threading.Thread(target=keep_paging)
    pager.start()
    try:
        (beside,) = world.medians([step])
    finally:
        stop.set()
        pager.join()
    middle, worst = statistics.median(spans), sorted(spans)[int(0.99 * len(spans))]
    share = world.bundle_bytes / middle / pinned
    where = f"page-in, {world.name}"
    shown = report.judged(f"{where}, p99 ms", 1e3 * worst, _PAGE_IN_MS)
    of_rate = f"{where}, share of {pinned / 1e9:.1f} GB/s"
    shown += f" | {report.judged(of_rate, share, _PIN_SHARE, least=True)}"
    shown += f" | {report.judged(f'{where}, steps beside it', beside / alone, _SLOWED)}"
    report.lines += [
        f"### Page-in of rank {RANK}, {world.name}: {world.bundle_bytes / 1e6:.1f} MB",
        "",
        "| p50 ms | p99 ms | share of a pinned copy's rate | decode step beside it over alone |",
        "|---|---|---|---|",
        f"| {1e3 * middle:.2f} | {shown} |",
        "",
    ]


def _page_in_seconds(world: World, slot: int) -> float:
    started_s = time.perf_counter()
    world.page_in(slot)
    seconds = time.perf_counter() - started_s
    world.evict(slot)
    return seconds


def draws(world: World, report: Report, progress: Progress) -> None:
    """What drawing the tokens of a step adds to it, beside taking the most probable ones."""
    report.lines += [
        f"### Draws, {world.name}, from {world.spec.vocabulary} tokens",
        "",
        "Each is timed with a copy of the logits, which it overwrites.",
        "",
        "| batch, filters | Triton ms | torch ms | the most probable, ms |",
        "|---|---|---|---|",
    ]
    rows = max(world.sizes.batches)
    given = 3 * torch.randn(rows, world.spec.vocabulary, device=world.device)
    logits, chosen = torch.empty_like(given), torch.zeros(rows, dtype=torch.int64).to(world.device)
    finite = torch.ones(rows, dtype=torch.bool, device=world.device)

    def most_probable() -> None:
        logits.copy_(given).argmax(1)

    for done, (name, filters) in enumerate(_FILTERS.items()):
        progress(f"draws {world.name}", done, len(_FILTERS))
        drawn = _drawn(rows, *filters)

        def by(way: Any, drawn: DrawnRows = drawn) -> Step:
            return lambda: way.draw_(chosen, logits.copy_(given), finite, drawn)

        times = world.medians([by(dispatch), by(draw), most_probable])
        shown = " | ".join(f"{1e3 * time_s:.2f}" for time_s in times)
        report.lines.append(f"| {rows}, {name} | {shown} |")
    report.lines.append("")


def _drawn(rows: int, top_k: int, top_p: float) -> DrawnRows:
    ones = np.ones(rows, np.float32)
    return DrawnRows(
        rows=np.arange(rows),
        keys=draw_keys(np.arange(rows, dtype=np.uint64), np.arange(rows)),
        temperature=ones,
        top_k=np.full(rows, top_k),
        top_p=np.full(rows, top_p, np.float32),
        min_p=0 * ones,
        typical_p=ones,
    )


def throughput(world: World, report: Report, progress: Progress) -> None:
    """Tokens a second of the largest batch, by the number of its adapters."""
    rows, rate = world.sizes.rows_max, world.copy_rate()
    cases = [d for d in (1, 2, 4, 8, 16, 32, 64, 128, 256) if d <= rows]
    cases = [d for d in cases if d <= world.sizes.adapters_max]
    report.lines += [
        f"### Throughput of {rows} rows, {world.name}",
        "",
        "| distinct | tokens/s | floor's | of it |",
        "|---|---|---|---|",
    ]
    for done, distinct in enumerate([0, *cases]):
        progress(f"throughput {world.name}", done, len(cases) + 1)
        (time_s,) = world.medians([world.recorded(rows, distinct)])
        found, floor = rows / time_s, rows * rate / world.step_bytes(rows, distinct)
        report.lines.append(f"| {distinct} | {found:.0f} | {floor:.0f} | {found / floor:.2f} |")
        if distinct:
            report.curves.setdefault(world.name, []).append((distinct, found))
            report.curves.setdefault(f"{world.name}, floor", []).append((distinct, floor))
    report.lines.append("")


def profiled(world: World, report: Report, progress: Progress) -> None:
    """Where the time of one decode step goes, kernel by kernel."""
    progress(f"profile {world.name}", 0, 1)
    rows = max(world.sizes.batches)
    distinct = min(32, max(world.sizes.distinct))
    step = world.launched(rows, distinct)
    step()
    activities = [ProfilerActivity.CPU]
    if world.on_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        step()
        if world.on_cuda:
            torch.cuda.synchronize()
    averages: Any = found.key_averages()
    order = "self_device_time_total" if world.on_cuda else "self_cpu_time_total"
    table = averages.table(sort_by=order, row_limit=25, max_name_column_width=60)
    report.lines += [
        f"### Profile of one step, {world.name}, {rows} / {distinct}",
        "",
        "```",
        *(line.rstrip() for line in table.splitlines()),
        "```",
        "",
    ]


PARTS: dict[str, Callable[[World, Report, Progress], None]] = {
    "decode": decode,
    "kernels": kernels,
    "paging": paging,
    "draws": draws,
    "throughput": throughput,
    "profile": profiled,
}
