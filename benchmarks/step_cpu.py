"""Where does a step's time go on a CPU? The compiled call's parts, and Python before and after it.

    python benchmarks/step_cpu.py [--dtype bfloat16] [--threads 1] [--repeats 25] [--cases 1/0 8/8]

A worker's runner carries out plans over the benchmark's 88 M model, with ranks 8, 16 and 32 in turn
on all linears: decodes of 96 tokens and more, and, from 64 rows on, prompts of 64 tokens each.
Milliseconds of processor time, of all threads together, the least of the repeats, part by part:
what else the machine does then hardly shows. The floor is the bytes of weights, adapters and cache
over the bandwidth with which torch sums that much memory; prompts are bound by arithmetic instead.
`--torch` leaves all to torch, whose parts are not known.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adex_kernels.layout import Module, bundle_layout
from adex_kernels.native import library
from adex_kernels.native.step import PARTS
from adex_proto.outcome import WorkerInfo
from adex_proto.plan import Decodes, NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_worker import native
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.views import ResidentSlots
from adex_worker.config import default_cache_dir
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model
from adex_worker.run import runner as runner_module
from adex_worker.run.runner import Runner
from fixture import RANKS, prepare

CASES = ("1/0", "1/1", "8/0", "8/8", "32/0", "32/1", "32/8", "32/32", "512/0", "512/8")
CONTEXT, PROMPT, BLOCK_TOKENS, ADAPTERS_MAX = 96, 64, 16, 32
PYTHON = ("inputs", "model", "sampling", "rest")
GREEDY = SamplingParams(max_new_tokens=1024)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", type=Path, default=Path.home() / ".cache/adex/benchmark")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--cases", nargs="+", default=CASES, help="rows/adapters")
    parser.add_argument("--torch", action="store_true")
    return parser.parse_args()


class _Stopwatch:
    """This thread's processor time by name, without what is timed within it; in milliseconds."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PYTHON, 0.0)
        self._within = [0.0]

    def timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            self._within.append(0.0)
            started_s = time.thread_time()
            result = work(*arguments)
            whole = 1e3 * (time.thread_time() - started_s)
            self.spent[name] += whole - self._within.pop()
            self._within[-1] += whole
            return result

        return run


class _World:
    """A runner over an arena that holds the adapters, which the model reads as a worker's does."""

    def __init__(self, decoder: Decoder, threads: int) -> None:
        spec, dtype = decoder.spec, decoder.dtype
        page_bytes = kv_page_bytes(BLOCK_TOKENS, spec.layers, spec.kv_heads, spec.head_dim, dtype)
        self._arena = Arena(pages=3072, page_bytes=page_bytes, dtype=dtype, device="cpu")
        self._slots = ResidentSlots()
        self.adapter_bytes, self._page = list[int](), 0
        for slot in range(1, ADAPTERS_MAX + 1):
            self._publish(decoder, slot)
        info = WorkerInfo(
            model_id="benchmark",
            architecture="llama",
            dtype=str(dtype),
            device="cpu",
            layers=spec.layers,
            vocabulary=spec.vocabulary,
            positions_max=2048,
            block_tokens=BLOCK_TOKENS,
            page_bytes=page_bytes,
            pages=self._arena.pages,
            slots_max=ADAPTERS_MAX + 1,
            host_bytes=1,
            disk_bytes=1,
            rank_max=max(RANKS),
            step_tokens_max=8192,
            step_sequences_max=64,
            eos_token_ids=(1,),
        )
        kv = self._arena.kv(
            layers=spec.layers,
            block_tokens=BLOCK_TOKENS,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
        )
        self._watch = _Stopwatch()
        runner_module.step_inputs = self._watch.timed("inputs", runner_module.step_inputs)
        runner_module.sample = self._watch.timed("sampling", runner_module.sample)
        self._model, self._parts = decoder, torch.zeros((threads, len(PARTS)), dtype=torch.int64)
        self._runner = Runner(_Timed(decoder, self._watch), kv, self._arena, self._slots, info)
        self._sequences = self._steps = 0

    def _publish(self, decoder: Decoder, slot: int) -> None:
        rank = RANKS[slot % len(RANKS)]
        ranks = {(layer, m): rank for layer in range(decoder.spec.layers) for m in Module}
        layout = bundle_layout(decoder.spec.shape, ranks)
        elements = self._arena.run_elements(self._page, layout.elements)
        elements.copy_(torch.randn(layout.elements) * 0.02)
        self._slots.publish(slot, elements, layout)
        self.adapter_bytes.append(layout.elements * decoder.dtype.itemsize)
        self._page += self._arena.pages_for(self.adapter_bytes[-1])

    def take(self, plan: StepPlan) -> dict[str, float]:
        """Carry out the plan. Returns: milliseconds by part."""
        self._watch.spent = dict.fromkeys(PYTHON, 0.0)
        if self._model._native is not None:
            self._model._native.spent = self._parts.zero_()
        outcome = self._watch.timed("rest", self._runner.run)(plan)
        assert not outcome.failures, outcome.failures
        found = dict(zip(PARTS, (self._parts.sum(0) / 1e6).tolist(), strict=True))
        return found | self._watch.spent | {"model": self._model_ms()}

    def _model_ms(self) -> float:
        return self._watch.spent["model"] - float(self._parts[0].sum()) / 1e6

    def rounds(self, rows: int, adapters: int, repeats: int) -> list[dict[str, float]]:
        """The parts of each of `repeats` steps; the adapters have equally many sequences."""
        decodes = rows < PROMPT
        count, length = (rows, CONTEXT - 1) if decodes else (rows // PROMPT, PROMPT)
        found: list[dict[str, float]] = []
        while len(found) < repeats:
            numbers = range(self._sequences, self._sequences + count)
            self._sequences += count
            found += self._served(numbers, length, adapters, repeats - len(found), decodes)
        return found

    def _served(
        self, numbers: range, length: int, adapters: int, repeats: int, decodes: bool
    ) -> list[dict[str, float]]:
        each, page = len(numbers) // adapters if adapters else 0, self._page
        blocks = -(-length // BLOCK_TOKENS)
        arrived, spans = [], []
        for index, number in enumerate(numbers):
            tokens = tuple(range(2 + index, 2 + index + length))
            slot = 1 + index // each if adapters else 0
            arrived.append(NewSequence(number, tokens, length, slot, GREEDY))
            spans.append(Span(number, 0, length, True, tuple(range(page, page + blocks))))
            page += blocks
        found = [self.take(StepPlan(self._next_step(), tuple(arrived), tuple(spans)))]
        if decodes:
            found, known = [], length
            for _ in range(repeats):
                growing = tuple(numbers) if known % BLOCK_TOKENS == 0 else ()
                new = tuple(range(page, page + len(growing)))
                page, known = page + len(growing), known + 1
                step = StepPlan(
                    self._next_step(), (), (), decodes=Decodes(tuple(numbers), growing, new)
                )
                found.append(self.take(step))
        self._runner.run(StepPlan(self._next_step(), (), (), finished=tuple(numbers)))
        return found

    def _next_step(self) -> int:
        self._steps += 1
        return self._steps


class _Timed:
    """The model, as the runner sees it."""

    def __init__(self, decoder: Decoder, watch: _Stopwatch) -> None:
        self._prepare, self._watch = watch.timed("model", decoder.prepare), watch

    def prepare(self, *rest: Any) -> Callable[[Tensor], Tensor]:
        return self._watch.timed("model", self._prepare(*rest))


def _floor_ms(decoder: Decoder, rows: int, adapter_bytes: list[int], repeats: int) -> float:
    spec = decoder.spec
    linears = sum(each.in_features * each.out_features for each in spec.shape.linears)
    elements = linears * spec.layers + spec.hidden * spec.vocabulary
    cached = rows * CONTEXT * 2 * spec.kv_features * spec.layers if rows < PROMPT else 0
    read = torch.ones(((elements + cached) * decoder.dtype.itemsize + sum(adapter_bytes)) // 4)
    times = []
    for _ in range(repeats):
        started_s = time.thread_time()
        read.sum()
        times.append(1e3 * (time.thread_time() - started_s))
    return min(times)


def main() -> None:
    options = _options()
    model_dir, _ = prepare(options.root, 0, options.dtype)
    torch.set_num_threads(options.threads)
    # A model's weights are laid out for the way that is registered when it is loaded.
    library.register(None)
    if not options.torch:
        print("compiled for:", native.load(default_cache_dir(os.environ)))
    decoder = load_model(model_dir, device="cpu", dtype=options.dtype)
    world = _World(decoder, options.threads)
    columns = (*PARTS, *PYTHON)
    print("rows adapters |  floor  total |", " ".join(f"{name:>10}" for name in columns))
    for case in options.cases:
        rows, adapters = map(int, case.split("/"))
        rounds = world.rounds(rows, adapters, options.repeats)
        total = min(sum(each.values()) for each in rounds)
        floor = _floor_ms(decoder, rows, world.adapter_bytes[:adapters], options.repeats)
        cells = " ".join(f"{min(each[name] for each in rounds):10.2f}" for name in columns)
        print(f"{rows:4} {adapters:8} | {floor:6.1f} {total:6.1f} | {cells}", flush=True)


if __name__ == "__main__":
    main()
