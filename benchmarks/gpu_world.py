"""A model of random weights with adapters and sequences on one device, and steps of it to be timed.

The decoder, the arena, the device tier and the kernels are those that serve; what a worker adds,
sockets and plans, is not here. Needs torch, triton, numpy and safetensors only.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import LoraBatch
from adex_kernels.gpu.launch import entries_of
from adex_kernels.gpu.lora import LoraWork
from adex_kernels.layout import Module, bundle_layout
from adex_proto.adapter import AdapterVersion
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.core.bundle_header import BundleHeader
from adex_worker.adapters.device_tier import DeviceTier
from adex_worker.adapters.host_tier import HostCopy
from adex_worker.model.parameters import random_model
from adex_worker.model.spec import model_spec
from adex_worker.run.graphs import CudaRecorder, DecodeGraphs, GraphLimits
from adex_worker.run.inputs import StepInputs

BLOCK_TOKENS, RANK = 16, 16
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 64,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """What is measured: rows of decode steps, distinct adapters, positions of each sequence."""

    batches: tuple[int, ...]
    distinct: tuple[int, ...]
    context: int
    repeats: int
    adapters_max: int
    rows_max: int


SERVED = Sizes((1, 8, 32, 128), (1, 8, 32, 128), 512, 20, 256, 256)
TINY = Sizes((1, 3), (1, 2), 20, 1, 2, 3)

Step = Callable[[], Any]


def _again(launch: Step) -> Step:
    """Instead of recording, where there is nothing to record on."""
    return launch


def fitted(model: str, sizes: Sizes, free_bytes: int) -> Sizes:
    """`sizes`, or less of them where the device's memory is less."""
    spec = model_spec(_LLAMA | MODELS[model])
    linears = sum(each.in_features * each.out_features for each in spec.shape.linears)
    weights = 2 * (linears * spec.layers + 2 * spec.hidden * spec.vocabulary)
    adapter = (
        2 * RANK * spec.layers * sum(w.in_features + w.out_features for w in spec.shape.linears)
    )
    row = 2 * 2 * spec.kv_features * spec.layers * (sizes.context + BLOCK_TOKENS)
    rows, adapters = sizes.rows_max, sizes.adapters_max
    while rows > 1 and weights + rows * row + adapters * adapter > free_bytes * 8 // 10:
        rows, adapters = rows // 2, adapters // 2
    return replace(
        sizes,
        batches=tuple(n for n in sizes.batches if n <= rows),
        distinct=tuple(n for n in sizes.distinct if n <= adapters),
        rows_max=rows,
        adapters_max=adapters,
    )


class World:
    """One model with `sizes.adapters_max` resident adapters, and room for one more behind them.

    Every adapter has rank 16 on all linears, and bytes of its own.
    """

    def __init__(self, model: str, sizes: Sizes, device: torch.device) -> None:
        self.name, self.sizes, self.device = model, sizes, device
        self.on_cuda = device.type == "cuda"
        dtype = torch.bfloat16 if self.on_cuda else torch.float32
        self.spec = spec = model_spec(_LLAMA | MODELS[model])
        self.decoder = random_model(spec, device=device, dtype=dtype)
        self.layout = bundle_layout(
            spec.shape, {(layer, m): RANK for layer in range(spec.layers) for m in Module}
        )
        self.bundle_bytes = self.layout.elements * dtype.itemsize
        page_bytes = kv_page_bytes(BLOCK_TOKENS, spec.layers, spec.kv_heads, spec.head_dim, dtype)
        self.blocks = -(-sizes.context // BLOCK_TOKENS)
        self.bundle_pages = -(-self.bundle_bytes // page_bytes)
        self.first_block = (sizes.adapters_max + 1) * self.bundle_pages
        pages = self.first_block + sizes.rows_max * self.blocks
        arena = Arena(pages=pages, page_bytes=page_bytes, dtype=dtype, device=device)
        self.table = AdapterTable(spec.shape, sizes.adapters_max + 2, arena.elements)
        self.tier = DeviceTier(arena, self.table)
        self.kv = arena.kv(
            layers=spec.layers,
            block_tokens=BLOCK_TOKENS,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
        )
        self.kv[self.first_block :].normal_()
        bundle = torch.empty(self.layout.elements, dtype=dtype, pin_memory=self.on_cuda)
        bundle.copy_(torch.randn(self.layout.elements, device=device).mul_(0.02))
        self._bundle = bundle.view(torch.uint8)
        for slot in range(1, sizes.adapters_max + 1):
            self.page_in(slot)
        self._recorder: Callable[[Any], Any] = CudaRecorder(device) if self.on_cuda else _again

    def record(self, progress: Callable[[int, int], None]) -> None:
        """Record the decode steps, as a worker does before it serves."""
        limits = GraphLimits(
            rows_max=self.sizes.rows_max,
            positions_max=self.spec.positions_max,
            block_tokens=BLOCK_TOKENS,
            rank_max=RANK,
            vocabulary=self.spec.vocabulary,
            heads_per_kv=self.spec.heads // self.spec.kv_heads,
        )
        slots = self.tier.slots
        last = torch.zeros(self.sizes.rows_max, dtype=torch.int64, device=self.device)
        self.graphs = DecodeGraphs(self.decoder, self.kv, slots, last, limits, self._recorder)
        self.graphs.record(progress)

    def page_in(self, slot: int) -> None:
        """Copy an adapter from host memory into the run of `slot`, as a worker does."""
        copy = HostCopy(self._header(slot), self.layout, self._bundle)
        self.tier.page_in(copy, slot, (slot - 1) * self.bundle_pages, self.bundle_pages)

    def evict(self, slot: int) -> None:
        self.tier.evict(str(slot))

    def _header(self, slot: int) -> BundleHeader:
        version = AdapterVersion(str(slot), self.bundle_bytes, RANK, 7 * self.spec.layers)
        return BundleHeader(version, "", "", {}, "")

    def lora_batch(self, rows: int, distinct: int) -> LoraBatch:
        """`rows` rows in as many segments as there are adapters, over buffers as graphs have."""
        segments = _segments(rows, distinct)
        entries = torch.zeros((rows, 3), dtype=torch.int32)
        found = torch.from_numpy(entries_of(segments))
        entries[: len(found)] = found
        work = LoraWork.static(entries.to(self.device), 3 * RANK, self.table)
        return LoraBatch(segments, self.tier.slots, table=self.table, work=work)

    def inputs(self, rows: int, distinct: int) -> StepInputs:
        """A decode step of `rows` sequences on the host; no adapters where `distinct` is 0."""
        each, context = np.arange(rows), self.sizes.context
        blocks = np.arange(self.blocks) * self.sizes.rows_max
        return StepInputs(
            token_ids=each % self.spec.vocabulary,
            positions=np.full(rows, context - 1),
            segments=_segments(rows, distinct),
            logit_rows=each,
            sampled=each,
            table_rows=each,
            starts=np.full(rows, context - 1),
            stops=np.full(rows, context),
            query_starts=np.arange(rows + 1),
            tables=self.first_block + each[:, None] + blocks,
            known=np.full(rows, context),
            block_tokens=BLOCK_TOKENS,
        )

    def recorded(self, rows: int, distinct: int) -> Step:
        """The step as a worker computes it: one copy, one launch, and the greedy choice."""
        inputs = self.inputs(rows, distinct)
        return lambda: self.graphs.forward(inputs).argmax(1)

    def launched(self, rows: int, distinct: int) -> Step:
        """The same step, each kernel launched by the host."""
        inputs = self.inputs(rows, distinct)
        ids, positions = (
            torch.from_numpy(each).to(self.device) for each in (inputs.token_ids, inputs.positions)
        )

        def step() -> Tensor:
            attention = inputs.attention(self.device)
            lora = LoraBatch(inputs.segments, self.tier.slots, table=self.table)
            return self.decoder.forward(ids, positions, self.kv, attention, lora).argmax(1)

        return step

    def step_bytes(self, rows: int, distinct: int) -> int:
        """Bytes that a decode step cannot avoid to move: weights, cache, adapters, activations."""
        spec, size = self.spec, self.kv.element_size()
        linears = sum(each.in_features * each.out_features for each in spec.shape.linears)
        weights = linears * spec.layers + spec.hidden * spec.vocabulary
        cached = rows * self.sizes.context * 2 * spec.kv_features * spec.layers
        return (weights + cached) * size + self.lora_bytes(rows, distinct)

    def lora_bytes(self, rows: int, distinct: int) -> int:
        """Bytes of the low-rank terms: each adapter once, inputs read, outputs read and written."""
        if not distinct:
            return 0
        linears = self.spec.shape.linears
        each = sum(1 * w.in_features + 2 * w.out_features + 2 * RANK for w in linears)
        activations = rows * each * self.spec.layers * self.kv.element_size()
        return distinct * self.bundle_bytes + activations

    def captured(self, step: Step) -> Step:
        """The launches of `step` as one; on other devices the step itself."""
        with torch.inference_mode():
            return self._recorder(step)

    def rounds(self, steps: Sequence[Step], repeats: int | None = None) -> list[list[float]]:
        """Seconds on the device of each step in each round; in a round the steps take turns."""
        times: list[list[float]] = [[] for _ in steps]
        for _ in range(repeats or self.sizes.repeats):
            for index, step in enumerate(steps):
                times[index].append(self.seconds(step))
        return times

    def seconds(self, work: Step) -> float:
        """Of one call. On a GPU that is busy with the call before, as it is when serving: the host
        prepares a step while another runs."""
        if not self.on_cuda:
            started_s = time.perf_counter()
            work()
            return time.perf_counter() - started_s
        cuda: Any = torch.cuda
        before, after = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
        work()
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1000

    def medians(self, steps: Sequence[Step]) -> list[float]:
        """As `rounds`, the median of each step; what comes before does not count."""
        self.rounds(steps, min(2, self.sizes.repeats))
        return [statistics.median(times) for times in self.rounds(steps)]

    def copy_rate(self) -> float:
        """Bytes a second that a copy on the device reads and writes, together."""
        size = (1 << 30) if self.on_cuda else 1 << 20
        source = torch.randint(256, (size,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        (copied,) = self.medians([lambda: target.copy_(source)])
        return 2 * size / copied

    def pinned_rate(self) -> float:
        """Bytes a second of one plain copy of a bundle's bytes from pinned memory."""
        target = torch.empty(self.bundle_bytes, dtype=torch.uint8, device=self.device)
        (copied,) = self.medians([lambda: target.copy_(self._bundle, non_blocking=True)])
        return self.bundle_bytes / copied


def _segments(rows: int, distinct: int) -> list[tuple[int, int, int]]:
    edges = np.linspace(0, rows, distinct + 1).astype(int).tolist()
    return [(edges[i], edges[i + 1], i + 1) for i in range(distinct)]


def stacked(world: World, distinct: int, layer: int, group: int) -> tuple[Tensor, Tensor]:
    """The A matrices [adapters, ranks, in] and padded B matrices [adapters, ranks, out of the
    group] of the first adapters, as grouped products take them."""
    a_stack, b_stack = [], []
    for slot in range(1, distinct + 1):
        weights = world.tier.slots.group(slot, layer, group)
        assert weights is not None, "every linear is adapted"
        out_features = weights.slices[-1][3]
        b_all = weights.a.new_zeros((weights.a.shape[0], out_features))
        for rank_start, rank_stop, out_start, out_stop, b in weights.slices:
            b_all[rank_start:rank_stop, out_start:out_stop] = b
        a_stack.append(weights.a)
        b_stack.append(b_all)
    return torch.stack(a_stack), torch.stack(b_stack)
