"""What do adapters add to a decode step on a CPU? The compiled low-rank terms beside torch's.

    python benchmarks/lora_cpu.py [--threads 1 2] [--repeats 15]

One process steps the benchmark's 88 M model in bfloat16 for sequences of 64 tokens, with ranks
8, 16 and 32 in turn on all linears. The ways take turns, step by step, so that what else the
machine does falls on all alike; medians. The floor is the adapters' bytes over the bandwidth with
which torch sums that much memory: no way that reads each matrix once can add less.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.layout import Module, bundle_layout
from adex_kernels.native import library
from adex_worker import native
from adex_worker.adapters.views import ResidentSlots, group_views
from adex_worker.config import default_cache_dir
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model
from fixture import RANKS, prepare

CASES = ((1, 1), (8, 8), (1, 32), (8, 32), (32, 32))  # (adapters, rows)
CONTEXT, BLOCK_TOKENS = 64, 16


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache/adex/benchmark")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
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
        decoder.forward(token_ids, positions, kv, attention, batch)

    return step


def _seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def _ways(
    step: Callable[[LoraBatch | None], None],
    segments: list[tuple[int, int, int]],
    slots: ResidentSlots,
    native_library: library.Library | None,
    read: torch.Tensor,
) -> dict[str, Callable[[], object]]:
    def through(chosen: library.Library | None) -> None:
        library.register(chosen)
        step(LoraBatch(segments, slots))

    return {
        "base": lambda: step(None),
        "torch": lambda: through(None),
        "native": lambda: through(native_library),
        "read": lambda: read.sum(),
    }


def main() -> None:
    options = _options()
    model_dir, _ = prepare(options.root, 0, "bfloat16")
    decoder = load_model(model_dir, device=torch.device("cpu"), dtype="bfloat16")
    slots, sizes = _resident(decoder, max(adapters for adapters, _ in CASES))
    print("low-rank terms:", native.load(default_cache_dir(os.environ)))
    found = library.registered()
    print(
        "threads adapters rows |  base ms torch ms native ms | added: torch  native  floor | gain"
    )
    for threads in options.threads:
        torch.set_num_threads(threads)
        for adapters, rows in CASES:
            each = rows // adapters
            segments = [(i * each, (i + 1) * each, i + 1) for i in range(adapters)]
            read = torch.ones(sum(sizes[:adapters]) // 4)
            ways = _ways(_step(decoder, rows), segments, slots, found, read)
            for way in ways.values():
                way()
            rounds = [{n: _seconds(w) for n, w in ways.items()} for _ in range(options.repeats)]
            _print_row(threads, adapters, rows, rounds)


def _print_row(threads: int, adapters: int, rows: int, rounds: list[dict[str, float]]) -> None:
    """What is added, and the gain, are taken within each round: its steps shared the machine."""
    base, plain, compiled, read = (
        1e3 * statistics.median(r[way] for r in rounds)
        for way in ("base", "torch", "native", "read")
    )
    plain_more, compiled_more = (
        1e3 * statistics.median(r[way] - r["base"] for r in rounds) for way in ("torch", "native")
    )
    gain = statistics.median(r["torch"] / r["native"] for r in rounds)
    print(
        f"{threads:7} {adapters:8} {rows:4} | {base:8.1f} {plain:8.1f} {compiled:9.1f} |"
        f"       {plain_more:6.1f} {compiled_more:7.1f} {read:6.1f} | {gain:4.2f}"
    )


if __name__ == "__main__":
    main()
