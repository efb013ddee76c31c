"""The low-rank terms in Triton against the oracle: every mix of adapters, rank and shape."""

from typing import Any

import pytest
import torch

from adex_kernels import reference
from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import GroupWeights, LoraBatch
from adex_kernels.gpu.launch import DENSE_ROWS_MIN, entries_of
from adex_kernels.gpu.lora import LoraWork, lora_add_
from adex_kernels.layout import (
    GROUP_MODULES,
    BundleLayout,
    Group,
    LinearShape,
    ModelShape,
    Module,
    bundle_layout,
)

LAYERS, LAYER = 2, 1
# Odd sizes throughout; the last input is wide enough to be cut into parts.
SIZES = [(72, 72), (72, 24), (72, 24), (72, 72), (72, 136), (72, 136), (1100, 72)]
SHAPE = ModelShape(LAYERS, tuple(LinearShape(i, o) for i, o in SIZES))
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}

# Ranks by slot; a dictionary gives them by module, and what it lacks is absent.
RANKS: dict[int, Any] = {
    1: 1,
    2: 8,
    3: 16,
    4: 64,
    5: 256,
    6: {Module.Q: 4, Module.V: 7, Module.UP: 3},
    7: {Module.K: 5, Module.DOWN: 33},
    8: 3,
}
MIXES = {
    "identical": [(0, 20, 3)],
    "distinct": [(slot - 1, slot, slot) for slot in range(1, 9)],
    "uniform": [(4 * slot, 4 * slot + 4, slot) for slot in range(1, 9)],
    "zipf": [(0, 17, 2), (17, 25, 5), (25, 28, 6), (28, 29, 1), (29, 30, 7)],
    "skewed": [(0, 1, 5), (1, 41, 8)],
    "base-between": [(3, 5, 6), (9, 10, 4)],
    "base-only": [],
    "an-empty-segment": [(2, 2, 4), (2, 6, 2)],
}


class Slots:
    """Random adapters in one arena, as the table's offsets and as the reference's views."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(1)
        layouts = {slot: bundle_layout(SHAPE, ranks_of(ranks)) for slot, ranks in RANKS.items()}
        size = 64 + sum(layout.elements for layout in layouts.values())
        elements = (torch.randn(size, generator=generator) * 0.1).to(dtype)
        self.elements = elements.to(device)
        self.table = AdapterTable(SHAPE, len(RANKS) + 1, self.elements)
        self.views: dict[int, list[GroupWeights | None]] = {}
        self.on_device: dict[int, list[GroupWeights | None]] = {}
        first = 64
        for slot, layout in layouts.items():
            self.table.publish(slot, layout, first)
            self.views[slot] = views_of(layout, elements[first : first + layout.elements])
            self.on_device[slot] = views_of(layout, self.elements[first : first + layout.elements])
            first += layout.elements

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        return self.views[slot][layer * len(Group) + group]

    def record(self, slot: int) -> None:
        return None


class OnDevice:
    """The same adapters as views of where the kernels find them."""

    def __init__(self, slots: Slots) -> None:
        self.views = slots.on_device

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        return self.views[slot][layer * len(Group) + group]

    def record(self, slot: int) -> None:
        return None


def ranks_of(ranks: Any) -> dict[tuple[int, Module], int]:
    by_module = ranks if isinstance(ranks, dict) else dict.fromkeys(Module, ranks)
    return {(layer, m): r for layer in range(LAYERS) for m, r in by_module.items()}


def views_of(layout: BundleLayout, bundle: torch.Tensor) -> list[GroupWeights | None]:
    def matrix(offset: int, rows: int, columns: int) -> torch.Tensor:
        return bundle[offset : offset + rows * columns].view(rows, columns)

    return [
        None
        if extent is None
        else GroupWeights(
            matrix(extent.a_offset, extent.rank_total, extent.in_features),
            tuple(
                (
                    part.rank_start,
                    part.rank_start + part.rank,
                    part.out_start,
                    part.out_start + part.out_features,
                    matrix(part.b_offset, part.rank, part.out_features),
                )
                for part in extent.slices
            ),
        )
        for extent in layout.groups
    ]


@pytest.fixture(scope="module")
def slots_of(device: torch.device) -> Any:
    made: dict[torch.dtype, Slots] = {}

    def get(dtype: torch.dtype) -> Slots:
        if dtype not in made:
            made[dtype] = Slots(dtype, device)
        return made[dtype]

    return get


def tensors(
    group: Group, rows: int, dtype: torch.dtype, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    modules = GROUP_MODULES[group]
    out_features = sum(SHAPE.linear(module).out_features for module in modules)
    x = torch.randn(rows, SHAPE.linear(modules[0]).in_features, generator=generator).to(dtype)
    return x, torch.randn(rows, out_features, generator=generator).to(dtype)


def work_of(slots: Slots, segments: list[tuple[int, int, int]], rows: int) -> LoraWork:
    return LoraWork.of(segments, rows, slots.table)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_the_terms_of_every_mix_equal_the_reference(
    mix: list[tuple[int, int, int]], slots_of: Any, device: torch.device
) -> None:
    equal_to_the_reference(mix, (Group.QKV, Group.DOWN), slots_of(torch.float32), device)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_terms_of_every_group_and_type_equal_the_reference(
    dtype: torch.dtype, slots_of: Any, device: torch.device
) -> None:
    equal_to_the_reference(MIXES["distinct"], tuple(Group), slots_of(dtype), device)


def equal_to_the_reference(
    mix: list[tuple[int, int, int]],
    groups: tuple[Group, ...],
    slots: Slots,
    device: torch.device,
) -> None:
    rows, dtype = 44, slots.elements.dtype
    work = work_of(slots, mix, rows)
    for group in groups:
        x, y = tensors(group, rows, dtype)
        expected = y.clone()
        reference.lora_add_(expected, x, LoraBatch(mix, slots), LAYER, group)
        got = y.to(device)
        lora_add_(got, x.to(device), work, LAYER, group)
        scale = max(1.0, float(expected.abs().max()))
        worst = float((got.cpu().float() - expected.float()).abs().max())
        assert worst <= TOLERANCE[dtype] * scale, f"{group.name}: off by {worst}"
        untouched = [r for r in range(rows) if not any(a <= r < b for a, b, _ in mix)]
        assert torch.equal(got.cpu()[untouched], y[untouched])


def test_rows_that_are_not_next_to_each_other_in_memory_are_served(
    slots_of: Any, device: torch.device
) -> None:
    slots = slots_of(torch.float32)
    x, y = tensors(Group.QKV, 10, torch.float32)
    expected = y.clone()
    segments = [(1, 9, 3)]
    reference.lora_add_(expected, x, LoraBatch(segments, slots), LAYER, Group.QKV)
    wide_x = torch.full((10, 2 * x.shape[1]), float("nan"), device=device)
    wide_y = torch.full((10, 2 * y.shape[1]), float("nan"), device=device)
    spread_x, spread_y = wide_x[:, : x.shape[1]], wide_y[:, : y.shape[1]]
    spread_x.copy_(x)
    spread_y.copy_(y)
    lora_add_(spread_y, spread_x, work_of(slots, segments, 10), LAYER, Group.QKV)
    torch.testing.assert_close(spread_y.cpu(), expected, rtol=1e-4, atol=1e-4)
    assert wide_y[:, y.shape[1] :].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_do_not_depend_on_its_batch(
    dtype: torch.dtype, slots_of: Any, device: torch.device
) -> None:
    slots = slots_of(dtype)
    mix = [(4, 8, 1), (16, 20, 4), (20, 43, 6)]
    for group in (Group.QKV, Group.DOWN):
        x, y = tensors(group, 44, dtype)
        together = y.to(device)
        lora_add_(together, x.to(device), work_of(slots, mix, 44), LAYER, group)
        for row, slot in ((5, 1), (18, 4), (38, 6), (42, 6)):
            alone = y[row : row + 1].to(device)
            work = work_of(slots, [(0, 1, slot)], 1)
            lora_add_(alone, x[row : row + 1].to(device), work, LAYER, group)
            assert torch.equal(alone[0], together[row])


def test_a_buffer_filled_anew_serves_step_after_step_with_the_same_bits(
    slots_of: Any, device: torch.device
) -> None:
    """As a captured step sees it: room for an entry a row, of any adapter, most of it unused."""
    slots, rows = slots_of(torch.float32), 20
    buffer = torch.zeros((rows, 3), dtype=torch.int32, device=device)
    ranks_max = max(slots.table.rank_total_max(slot) for slot in RANKS)
    work = LoraWork.static(buffer, ranks_max, slots.table)
    for mix in (MIXES["distinct"], MIXES["identical"], MIXES["base-between"], MIXES["base-only"]):
        entries = torch.from_numpy(entries_of(mix))
        buffer.zero_()
        buffer[: len(entries)] = entries.to(device)
        for group in (Group.QKV, Group.DOWN):
            x, y = tensors(group, rows, torch.float32)
            replayed, eager = y.to(device), y.to(device)
            lora_add_(replayed, x.to(device), work, LAYER, group)
            lora_add_(eager, x.to(device), work_of(slots, mix, rows), LAYER, group)
            assert torch.equal(replayed, eager)


def test_a_long_segment_is_a_plain_product_beside_the_entries_of_others(
    slots_of: Any, device: torch.device
) -> None:
    slots, rows = slots_of(torch.float32), DENSE_ROWS_MIN + 8
    mix = [(0, 3, 4), (5, 5 + DENSE_ROWS_MIN, 6)]
    work = LoraWork.of(mix, rows, slots.table, OnDevice(slots))
    assert work.dense == [mix[1]]
    assert work.entries.shape[0] == 1
    for group in (Group.QKV, Group.DOWN):
        x, y = tensors(group, rows, torch.float32)
        expected = y.clone()
        reference.lora_add_(expected, x, LoraBatch(mix, slots), LAYER, group)
        got = y.to(device)
        lora_add_(got, x.to(device), work, LAYER, group)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_the_work_list_depends_on_rows_and_not_on_which_adapters(
    slots_of: Any, device: torch.device
) -> None:
    slots = slots_of(torch.float32)
    one = work_of(slots, [(0, 1, 1), (1, 20, 2)], 20)
    other = work_of(slots, [(0, 1, 5), (1, 20, 7)], 20)
    assert one.entries.shape == other.entries.shape == (3, 3)
