"""Recorded steps of decodes: what is launched again reads words and tables, and nothing else."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import _python_dispatch as torch_dispatch

from adex_kernels import dispatch
from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import LoraBatch
from adex_kernels.layout import Module, bundle_layout
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.views import ResidentSlots
from adex_worker.model import rope
from adex_worker.model.decoder import Decoder
from adex_worker.model.parameters import random_model
from adex_worker.model.spec import model_spec
from adex_worker.run.inputs import UNREAD, StepInputs
from adex_worker.testing import tiny_config

pytest.importorskip("triton", reason="Triton is not made for this platform")

from adex_kernels.gpu.kernels import TritonKernels
from adex_worker.recording import recorded
from adex_worker.run.graphs import CudaRecorder, DecodeGraphs, GraphLimits, Launch, padded_sizes

# Rows of padding hold whatever memory held, and compute with it.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value):RuntimeWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
LAST = torch.arange(100, 110, device=DEVICE)
TOKENS, PAGES, KV_PAGES, SLOTS, RANK_MAX, ROWS_MAX = 16, 96, 60, 5, 8, 4


class Tape(torch_dispatch.TorchDispatchMode):
    """What a function does, operation by operation and launch by launch, each with its tensors.

    Played again, it does that to the same tensors and asks the function nothing: as a graph does.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._entries: list[Launch] = []
        self._patch = patch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        made = func(*args, **named)

        def again() -> None:
            result = func(*args, **named)
            if isinstance(made, torch.Tensor) and made.data_ptr() != result.data_ptr():
                made.copy_(result)

        self._entries.append(again)
        return made

    def record(self, launch: Launch) -> Launch:
        from triton.runtime.interpreter import InterpretedFunction

        run = InterpretedFunction.run

        def taped(kernel: Any, *args: Any, **named: Any) -> None:
            with torch_dispatch._disable_current_modes():
                run(kernel, *args, **named)
            self._entries.append(lambda: run(kernel, *args, **named))

        with self._patch.context() as patch:
            patch.setattr(InterpretedFunction, "run", taped)
            with self:
                launch()
        return self._play

    def _play(self) -> None:
        for again in self._entries:
            again()


@dataclass
class World:
    """A tiny model over an arena, and adapters that come and go."""

    arena: Arena
    decoder: Decoder
    kv: torch.Tensor
    slots: ResidentSlots
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def load(self, slot: int, rank: int) -> None:
        """Another adapter in the slot, elsewhere in the arena."""
        shape = self.decoder.spec.shape
        ranks = {
            (layer, module): rank
            for layer in range(shape.layers)
            for module in Module
            if self.random.random() < 0.7
        }
        layout = bundle_layout(shape, ranks)
        first = KV_PAGES + 9 * (slot - 1) + int(self.random.integers(2))
        elements = self.arena.run_elements(first, layout.elements)
        assert self.arena.pages_for(layout.elements * 4) <= 8
        elements.copy_(torch.from_numpy(self.random.normal(0, 0.2, layout.elements)).float())
        table = self.slots.table
        assert table is not None
        table.publish(slot, layout, int(elements.storage_offset()))
        self.slots.publish(slot, elements, layout)

    def step(self, rows: int, *, adapted: bool) -> StepInputs:
        """Decodes of sequences of random lengths and slots, over random pages."""
        stops = self.random.integers(1, 60, rows)
        stops[0] = 300
        slots = np.sort(self.random.integers(0, SLOTS, rows)) if adapted else np.zeros(rows, int)
        blocks = -(-stops // TOKENS)
        pages = self.random.permutation(KV_PAGES)
        tables = np.zeros((rows, blocks.max()), np.int64)
        for row, count in enumerate(blocks):
            tables[row, :count], pages = pages[:count], pages[count:]
        edges = [0, *(np.flatnonzero(np.diff(slots)) + 1), rows]
        runs = [(int(a), int(b), int(slots[a])) for a, b in pairwise(edges)]
        each = np.arange(rows)
        return StepInputs(
            token_ids=self.random.integers(3, 200, rows),
            positions=stops - 1,
            segments=[run for run in runs if run[2]],
            logit_rows=each,
            sampled=each,
            table_rows=each[::-1].copy(),
            starts=stops - 1,
            stops=stops,
            query_starts=np.arange(rows + 1),
            tables=tables,
            known=stops,
            block_tokens=TOKENS,
        )

    def eager(self, inputs: StepInputs, kv: torch.Tensor) -> torch.Tensor:
        """The same step launched by the host."""
        lora = LoraBatch(inputs.segments, self.slots, table=self.slots.table)
        sampled = LAST.cpu().numpy()[inputs.table_rows]
        return self.decoder.forward(
            torch.from_numpy(np.where(inputs.token_ids == UNREAD, sampled, inputs.token_ids)).to(
                DEVICE
            ),
            torch.from_numpy(inputs.positions).to(DEVICE),
            kv,
            inputs.attention(DEVICE),
            lora,
        )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(dispatch, "_KERNELS", {DEVICE.type: TritonKernels()})
    # As on a GPU: a CPU's short way past torch's operations is none that a graph would have.
    monkeypatch.setattr(rope, "_on_this_thread", rope._by_operations)
    spec = model_spec(tiny_config("qwen3"))
    decoder = random_model(spec, seed=3, device=DEVICE, spread=0.3)
    page_bytes = kv_page_bytes(TOKENS, spec.layers, spec.kv_heads, spec.head_dim, torch.float32)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=torch.float32, device=DEVICE)
    kv = arena.kv(
        layers=spec.layers, block_tokens=TOKENS, kv_heads=spec.kv_heads, head_dim=spec.head_dim
    )
    kv[:KV_PAGES].normal_()
    slots = ResidentSlots(AdapterTable(spec.shape, SLOTS, arena.elements))
    made = World(arena, decoder, kv, slots)
    for slot in range(1, SLOTS):
        made.load(slot, rank=slot)
    return made


def graphs_of(world: World, recorder: Any) -> DecodeGraphs:
    spec = world.decoder.spec
    limits = GraphLimits(
        rows_max=ROWS_MAX,
        positions_max=spec.positions_max,
        block_tokens=TOKENS,
        rank_max=RANK_MAX,
        vocabulary=spec.vocabulary,
        heads_per_kv=spec.heads // spec.kv_heads,
    )
    return DecodeGraphs(world.decoder, world.kv, world.slots, LAST, limits, recorder)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    if not INTERPRETED:
        return CudaRecorder(DEVICE)
    return lambda launch: Tape(monkeypatch).record(launch)


def test_recorded_steps_equal_launched_ones_while_adapters_come_and_go(
    world: World, recorder: Any
) -> None:
    graphs, by_host = graphs_of(world, recorder), graphs_of(world, lambda launch: launch)
    told: list[tuple[int, int]] = []
    graphs.record(lambda done, total: told.append((done, total)))
    assert told[-1] == (6, 6), "three sizes, with adapters and without"
    by_host.record(lambda done, total: None)
    for rows, adapted in ((3, True), (ROWS_MAX, True), (1, False), (2, True)):
        inputs = world.step(rows, adapted=adapted)
        # Some tokens are those that the step before has sampled, which are on the device only.
        inputs.token_ids[::2] = UNREAD
        assert graphs.take(inputs)
        before = world.kv.clone()
        launched = before.clone()
        expected = world.eager(inputs, launched)
        found = graphs.forward(inputs)
        assert torch.equal(found, by_host.forward(inputs))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(world.kv[:KV_PAGES], launched[:KV_PAGES], rtol=1e-4, atol=1e-4)
        # Padding writes nowhere: what the step does not write is as it was.
        written = inputs.tables[np.arange(rows), (inputs.stops - 1) // TOKENS]
        others = np.setdiff1d(np.arange(PAGES), written)
        assert torch.equal(world.kv[others], before[others])
        world.load(int(world.random.integers(1, SLOTS)), rank=int(world.random.integers(1, 8)))


def test_only_decodes_are_taken_and_no_more_than_were_recorded(world: World, recorder: Any) -> None:
    graphs = graphs_of(world, recorder)
    assert graphs.take(world.step(ROWS_MAX, adapted=False))
    assert not graphs.take(world.step(ROWS_MAX + 1, adapted=False))
    chunk = world.step(2, adapted=False)
    chunk.token_ids = np.concatenate((chunk.token_ids, [7]))
    assert not graphs.take(chunk)


def test_rows_that_do_not_sample_have_no_logits(world: World, recorder: Any) -> None:
    graphs = graphs_of(world, recorder)
    graphs.record(lambda done, total: None)
    inputs = world.step(3, adapted=False)
    everyone = graphs.forward(inputs).clone()
    inputs.logit_rows = np.array([0, 2])
    assert torch.equal(graphs.forward(inputs), everyone[[0, 2]])


def test_a_recorder_that_records_something_else_is_found_out(world: World) -> None:
    right = graphs_of(world, lambda launch: launch)
    right.record(lambda done, total: None)
    assert right.fault() is None

    def forgets(launch: Callable[[], None]) -> Callable[[], None]:
        return lambda: None

    wrong = graphs_of(world, forgets)
    wrong.record(lambda done, total: None)
    assert str(wrong.fault()).startswith("a recorded step is off by")


def test_where_nothing_can_be_recorded_the_reason_is_told(world: World) -> None:
    info: Any = SimpleNamespace(
        step_sequences_max=2, positions_max=64, block_tokens=TOKENS, rank_max=8, vocabulary=256
    )

    def fails(launch: Launch) -> Launch:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    found, told = recorded(world.decoder, world.kv, world.slots, LAST, info, fails)
    assert found is None
    assert told == "none (RuntimeError: operation not permitted when stream is capturing)"
    found, told = recorded(world.decoder, world.kv, world.slots, LAST, info, lambda launch: launch)
    assert found is not None
    assert told == "up to 2 rows"


@pytest.mark.parametrize("rows_max", [1, 2, 3, 8, 33, 100, 256, 1000])
def test_sizes_rise_to_the_largest_step_and_pad_little(rows_max: int) -> None:
    sizes = padded_sizes(rows_max)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[0] == 1
    assert sizes[-1] == rows_max
    assert len(sizes) < 40
    for size, larger in pairwise(sizes):
        assert larger - size <= max(8, size // 4)
