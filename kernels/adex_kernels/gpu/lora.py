"""The low-rank terms of a step in two launches per group of linears, whatever its adapters are.

A step's rows are cut into entries of one slot each (`launch.entries_of`), once for all layers. The
shrink multiplies an entry's rows with the group's stacked A, cut along the input features; the
expand adds up the parts in order, multiplies with each module's B, and adds to the output. Both
find the matrices through a table with a line per (slot, layer, group), so neither a grid nor a
pointer depends on which adapters there are. Only ranks that exist are read; an absent module is
skipped. No atomics: a row's result does not depend on its batch. Long segments of one adapter are
plain products instead, where nothing is captured.

The work follows Punica's SGMV (arXiv:2310.18547) and S-LoRA's MBGMM (arXiv:2311.03285); what is
new is that one line of the table serves the three or two modules that share an input.
"""

from dataclasses import dataclass, field

import torch
import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import SlotViews, uploaded
from adex_kernels.dense_lora import add_dense_
from adex_kernels.gpu.dot import WIDEN, dot
from adex_kernels.gpu.launch import (
    DENSE_ROWS_MIN,
    ENTRY_ROWS,
    ENTRY_WORDS,
    entries_of,
    expand_outputs,
    processors,
    shrink_splits,
)
from adex_kernels.layout import GROUP_MODULES, Group, LinearShape

_RANKS_AT_ONCE = 16
_FEATURES_AT_ONCE = 128


@dataclass(slots=True)
class LoraWork:
    """One step's entries, [entries, 3] int32 (row_start, rows, slot), and float32 scratch.

    Lines of `entries` without rows do nothing. `shrunk` is [splits, rows, ranks]. The segments of
    `dense` are not in the entries: they go through plain products with the views of `slots`.
    """

    entries: Tensor
    table: AdapterTable
    shrunk: Tensor
    dense: list[tuple[int, int, int]] = field(default_factory=list)
    slots: SlotViews | None = None

    @classmethod
    def of(
        cls,
        segments: list[tuple[int, int, int]],
        rows: int,
        table: AdapterTable,
        slots: SlotViews | None = None,
    ) -> "LoraWork":
        """For a step of `rows` rows, segments (row_start, row_stop, slot) of them adapted.

        With `slots`, long segments are dense.
        """
        dense_rows_min = DENSE_ROWS_MIN if slots is not None else rows + 1
        dense = [s for s in segments if s[1] - s[0] >= dense_rows_min]
        listed = [s for s in segments if s[1] - s[0] < dense_rows_min]
        entries = torch.from_numpy(entries_of(listed))
        ranks = max((table.rank_total_max(slot) for _, _, slot in listed), default=1)
        shrunk = _scratch(rows if listed else 0, ranks, table)
        return cls(uploaded(entries, table.elements.device), table, shrunk, dense, slots)

    @classmethod
    def static(cls, entries: Tensor, ranks_max: int, table: AdapterTable) -> "LoraWork":
        """Over a buffer [rows, 3] int32 on the device that is filled anew for each step.

        It serves any step of as many rows, for entries are never more than rows; lines of zeros do
        nothing. `ranks_max` is the most that the ranks of a group's modules add up to.
        """
        assert entries.shape[1] == ENTRY_WORDS, "a line is (row_start, rows, slot)"
        return cls(entries, table, _scratch(entries.shape[0], ranks_max, table))


def _scratch(rows: int, ranks: int, table: AdapterTable) -> Tensor:
    # Whole tiles of ranks, so that no stride depends on the step's adapters in a way that Triton
    # compiles for.
    ranks = triton.cdiv(ranks, _RANKS_AT_ONCE) * _RANKS_AT_ONCE
    features = max(linear.in_features for linear in table.shape.linears)
    size = (shrink_splits(features), rows, ranks)
    return torch.empty(size, dtype=torch.float32, device=table.elements.device)


def lora_add_(y: Tensor, x: Tensor, work: LoraWork, layer: int, group: int) -> None:
    """Add each row's low-rank term to y [rows, out of the group] in place; x is [rows, in].

    Both have contiguous rows of the serving dtype. Rows outside every entry stay as they are.
    """
    if work.dense:
        assert work.slots is not None, "dense segments are read through views"
        add_dense_(y, x, work.slots, work.dense, layer, group)
    if work.entries.shape[0]:
        line = layer * len(Group) + group
        modules = [work.table.shape.linear(module) for module in GROUP_MODULES[group]]
        _launch_shrink(x, work, line, modules)
        _launch_expand(y, work, line, modules)


def _launch_shrink(x: Tensor, work: LoraWork, line: int, modules: list[LinearShape]) -> None:
    """Each entry's rows through the A matrices of a group, in parts, to `work.shrunk`."""
    words, shrunk = work.table.words, work.shrunk
    in_features = modules[0].in_features
    splits = shrink_splits(in_features)
    features = triton.cdiv(triton.cdiv(in_features, splits), _FEATURES_AT_ONCE) * _FEATURES_AT_ONCE
    _shrink[(work.entries.shape[0], len(modules), splits)](
        x,
        work.table.elements,
        words,
        work.entries,
        shrunk,
        line,
        words.stride(0),
        x.stride(0),
        shrunk.stride(0),
        shrunk.stride(1),
        in_features,
        features,
        WHOLE=features * splits == in_features,
        ROWS=ENTRY_ROWS,
        RANKS=_RANKS_AT_ONCE,
        FEATURES=_FEATURES_AT_ONCE,
        WIDEN=WIDEN,
    )


def _launch_expand(y: Tensor, work: LoraWork, line: int, modules: list[LinearShape]) -> None:
    """What `_launch_shrink` left through each module's B, added to y."""
    words, shrunk, entries = work.table.words, work.shrunk, work.entries.shape[0]
    outs = [module.out_features for module in modules]
    outputs = expand_outputs(entries, sum(outs), processors(y.device))
    outs += [0] * (3 - len(outs))
    tiles = [triton.cdiv(out, outputs) for out in outs]
    _expand[(entries, sum(tiles))](
        y,
        work.table.elements,
        words,
        work.entries,
        shrunk,
        line,
        words.stride(0),
        y.stride(0),
        shrunk.stride(0),
        shrunk.stride(1),
        *outs,
        tiles[0],
        tiles[1],
        WHOLE=all(out % outputs == 0 for out in outs),
        SPLITS=shrink_splits(modules[0].in_features),
        ROWS=ENTRY_ROWS,
        RANKS=_RANKS_AT_ONCE,
        OUTPUTS=outputs,
        WIDEN=WIDEN,
        # Most adapters have one tile of ranks: buffers for more would keep programs out.
        num_stages=2,
    )


# What differs between layers and steps is not compiled for: offsets in the table are told to be
# whole tiles of 16 elements (`layout.ALIGN_ELEMENTS`), which is what wide loads need.
@triton.jit(
    do_not_specialize=["line", "split_stride"], do_not_specialize_on_alignment=["entries_ptr"]
)
def _shrink(
    x_ptr,
    elements_ptr,
    words_ptr,
    entries_ptr,
    shrunk_ptr,
    line,
    slot_stride,
    x_stride,
    split_stride,
    row_stride,
    in_features,
    features_per_split,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One entry, one part of the input features, every n-th RANKS of its group's ranks."""
    entry = entries_ptr + tl.program_id(0) * 3
    split = tl.program_id(2)
    row_start = tl.load(entry).to(tl.int64)
    rows = tl.load(entry + 1)
    words = words_ptr + tl.load(entry + 2).to(tl.int64) * slot_stride + line * 8
    if rows == 0:
        return
    rank_total = tl.load(words + 1).to(tl.int32)
    a_ptr = elements_ptr + tl.multiple_of(tl.load(words), 16)
    row = tl.arange(0, ROWS)
    has_row = row < rows
    x_rows = x_ptr + (row_start + row)[:, None] * x_stride
    out_rows = shrunk_ptr + split.to(tl.int64) * split_stride
    out_rows += (row_start + row)[:, None] * row_stride
    first = split * features_per_split
    last = tl.minimum(first + features_per_split, in_features)
    for rank_start in range(tl.program_id(1) * RANKS, rank_total, tl.num_programs(1) * RANKS):
        rank = rank_start + tl.arange(0, RANKS)
        has_rank = rank < rank_total
        a_rows = a_ptr + rank[None, :].to(tl.int64) * in_features
        total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
        for step in range(0, features_per_split, FEATURES):
            feature = first + step + tl.arange(0, FEATURES)
            has_x = has_row[:, None]
            has_a = has_rank[None, :]
            if not WHOLE:
                has_x = has_x & (feature < last)[None, :]
                has_a = has_a & (feature < last)[:, None]
            x = tl.load(x_rows + feature[None, :], mask=has_x, other=0.0)
            a = tl.load(a_rows + feature[:, None], mask=has_a, other=0.0)
            total = dot(x, a, total, WIDEN)
        tl.store(out_rows + rank[None, :], total, mask=has_row[:, None] & has_rank[None, :])


@triton.jit(
    do_not_specialize=["line", "split_stride", "tiles_0", "tiles_1"],
    do_not_specialize_on_alignment=["entries_ptr"],
)
def _expand(
    y_ptr,
    elements_ptr,
    words_ptr,
    entries_ptr,
    shrunk_ptr,
    line,
    slot_stride,
    y_stride,
    split_stride,
    row_stride,
    out_0,
    out_1,
    out_2,
    tiles_0,
    tiles_1,
    WHOLE: tl.constexpr,
    SPLITS: tl.constexpr,
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One entry, OUTPUTS columns of one module."""
    entry = entries_ptr + tl.program_id(0) * 3
    tile = tl.program_id(1)
    row_start = tl.load(entry).to(tl.int64)
    rows = tl.load(entry + 1)
    words = words_ptr + tl.load(entry + 2).to(tl.int64) * slot_stride + line * 8
    in_first = tile < tiles_0
    in_second = tile < tiles_0 + tiles_1
    module = tl.where(in_first, 0, tl.where(in_second, 1, 2))
    tile -= tl.where(in_first, 0, tl.where(in_second, tiles_0, tiles_0 + tiles_1))
    out_features = tl.where(in_first, out_0, tl.where(in_second, out_1, out_2))
    out_start = tl.where(in_first, 0, tl.where(in_second, out_0, out_0 + out_1))
    if rows == 0:
        return
    ranks = tl.load(words + 3 + 2 * module).to(tl.int32)
    if ranks == 0:
        return
    rank_first = tl.load(words + 3, mask=module >= 1, other=0)
    rank_first += tl.load(words + 5, mask=module >= 2, other=0)
    b_ptr = elements_ptr + tl.multiple_of(tl.load(words + 2 + 2 * module), 16)
    row = tl.arange(0, ROWS)
    has_row = row < rows
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    shrunk_rows = shrunk_ptr + (row_start + row)[:, None] * row_stride + rank_first
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, ranks, RANKS):
        rank = start + tl.arange(0, RANKS)
        has_rank = rank < ranks
        has_b = has_rank[:, None]
        if not WHOLE:
            has_b = has_b & (output < out_features)[None, :]
        b = tl.load(
            b_ptr + rank[:, None].to(tl.int64) * out_features + output[None, :],
            mask=has_b,
            other=0.0,
        )
        part = shrunk_rows + rank[None, :]
        mask = has_row[:, None] & has_rank[None, :]
        shrunk = tl.load(part, mask=mask, other=0.0)
        for _ in tl.static_range(1, SPLITS):
            part += split_stride
            shrunk += tl.load(part, mask=mask, other=0.0)
        total = dot(shrunk.to(b.dtype), b, total, WIDEN)
    place = y_ptr + (row_start + row)[:, None] * y_stride + (out_start + output)[None, :]
    has_y = has_row[:, None]
    if not WHOLE:
        has_y = has_y & (output < out_features)[None, :]
    y = tl.load(place, mask=has_y, other=0.0).to(tl.float32) + total
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=has_y)
