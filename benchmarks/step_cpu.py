"""How long does a decode step take on a CPU, beside the bytes it must read? Compiled and torch's.

    python benchmarks/step_cpu.py [--dtype bfloat16] [--threads 1 2] [--repeats 15] [--profile 32]

One process steps the benchmark's 88 M model for sequences of 96 tokens, with ranks 8, 16 and 32 in
turn on all linears. The ways take turns, step by step, so that what else the machine does falls on
all alike; medians, and beside them the least. The floor is the bytes of weights, adapters and cache
over the bandwidth with which torch sums that much memory. `--profile ROWS` prints torch's profile
of its own operations instead, where no step is compiled.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.layout import Module, bundle_layout
from adex_kernels.native import library
from adex_worker import native
from adex_worker.adapters.views import ResidentSlots, group_views
from adex_worker.config import default_cache_dir
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model
from fixture import RANKS, prepare

CASES = ((1, 0), (1, 1), (8, 0), (8, 8), (32, 0), (32, 1), (32, 8), (32, 32))  # (rows, adapters)
CONTEXT, BLOCK_TOKENS = 96, 16


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache/adex/benchmark")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--profile", type=int)
    return parser.parse_args()


def _resident(decoder: Decoder, adapters: int) -> tuple[ResidentSlots, list[int]]:
    """Slots 1 to `adapters`, and the bytes of each."""
    slots, sizes = ResidentSlots(), []
    for slot in range(1, adapters + 1):
        rank = RANKS[slot % len(RANKS)]
        ranks = {(layer, m): rank for layer in range(decoder.spec.layers) for m in Module}
        layout = bundle_layout(decoder.spec.shape, ranks)
        elements = (torch.randn(layout.elements) * 0.02).to(decoder.dtype)
        slots.publish(slot, group_views(elements, layout))
        sizes.append(layout.elements * decoder.dtype.itemsize)
    return slots, sizes


def _step(decoder: Decoder, rows: int) -> Callable[[LoraBatch | None], None]:
    pages = rows * CONTEXT // BLOCK_TOKENS
    kv = torch.zeros(decoder.kv_shape(pages, BLOCK_TOKENS), dtype=decoder.dtype)
    tables = [list(range(i, pages, rows)) for i in range(rows)]
    starts, lens = range(rows + 1), [CONTEXT] * rows
    token_ids, positions = torch.arange(rows), torch.full((rows,), CONTEXT - 1)

    def step(batch: LoraBatch | None) -> None:
        attention = AttentionBatch.build(starts, lens, tables, BLOCK_TOKENS)
        decoder.forward(token_ids, positions, kv, attention, batch).argmax(1)

    return step


def _milliseconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started_s)


def _floor_bytes(decoder: Decoder, rows: int, sizes: list[int]) -> int:
    spec = decoder.spec
    linears = sum(each.in_features * each.out_features for each in spec.shape.linears)
    elements = linears * spec.layers + spec.hidden * spec.vocabulary
    cached = rows * CONTEXT * 2 * spec.kv_features * spec.layers
    return (elements + cached) * decoder.dtype.itemsize + sum(sizes)


def _print_row(key: tuple[int, int, int], rounds: list[dict[str, float]]) -> None:
    ways = ("torch", "native", "floor")
    middle = {way: statistics.median(r[way] for r in rounds) for way in ways}
    least = {way: min(r[way] for r in rounds) for way in ways}
    gain = statistics.median(r["torch"] / r["native"] for r in rounds)
    cells = " | ".join(f"{middle[way]:6.1f} {least[way]:6.1f}" for way in ways)
    print("{:7} {:4} {:8} | {} | {:.2f}".format(*key, cells, gain), flush=True)


def _profile(decoder: Decoder, rows: int) -> None:
    step = _step(decoder, rows)
    step(None)
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        for _ in range(10):
            step(None)
    print(taken.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


def main() -> None:
    options = _options()
    model_dir, _ = prepare(options.root, 0, options.dtype)
    # A model's weights are laid out for the way that is registered when it is loaded.
    library.register(None)
    plain = load_model(model_dir, device="cpu", dtype=options.dtype)
    if options.profile:
        torch.set_num_threads(options.threads[-1])
        _profile(plain, options.profile)
        return
    print("compiled for:", native.load(default_cache_dir(os.environ)))
    compiled = library.registered()
    decoder = load_model(model_dir, device="cpu", dtype=options.dtype)
    slots, sizes = _resident(decoder, max(adapters for _, adapters in CASES))
    print("threads rows adapters |  torch ms least |    native least |     floor least | gain")
    for threads in options.threads:
        torch.set_num_threads(threads)
        for rows, adapters in CASES:
            each = rows // adapters if adapters else 0
            segments = [(i * each, (i + 1) * each, i + 1) for i in range(adapters)]
            read = torch.ones(_floor_bytes(decoder, rows, sizes[:adapters]) // 4)
            steps = {
                "torch": (_step(plain, rows), None),
                "native": (_step(decoder, rows), compiled),
            }
            rounds = []
            for _ in range(options.repeats + 1):
                times = {"floor": _milliseconds(read.sum)}
                for way, (step, registered) in steps.items():
                    library.register(registered)
                    batch = LoraBatch(segments, slots) if segments else None
                    times[way] = _milliseconds(lambda s=step, b=batch: s(b))
                rounds.append(times)
            _print_row((threads, rows, adapters), rounds[1:])


if __name__ == "__main__":
    main()
