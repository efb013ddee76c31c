"""The low-rank terms of a step in two launches per group of linears, whatever its adapters are.

A step's rows are cut into entries of one slot each (`launch.work_list`), once for all layers. The
shrink multiplies an entry's rows with the group's stacked A, cut along the input features; the
expand adds up the parts in order, multiplies with each module's B, and adds to the output. Both
find the matrices through a table with a line per (slot, layer, group), so neither a grid nor a
pointer depends on which adapters there are. Only ranks that exist are read; an absent module is
skipped. No atomics: a row's result does not depend on its batch.

The work follows Punica's SGMV (arXiv:2310.18547) and S-LoRA's MBGMM (arXiv:2311.03285); what is
new is that one line of the table serves the three or two modules that share an input.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import uploaded
from adex_kernels.gpu.dot import WIDEN, dot
from adex_kernels.gpu.launch import ENTRY_ROWS, shrink_splits, work_list
from adex_kernels.layout import GROUP_MODULES, Group

_RANKS_AT_ONCE = 16
_FEATURES_AT_ONCE = 128
_OUTPUTS_AT_ONCE = 128


@dataclass(slots=True)
class LoraWork:
    """One step's entries, [entries, 3] int32 (row_start, rows, slot), and float32 scratch.

    Lines of `entries` beyond those in use have no rows; `shrunk` is [splits, rows, ranks].
    """

    entries: Tensor
    table: AdapterTable
    shrunk: Tensor

    @classmethod
    def of(cls, segments: list[tuple[int, int, int]], rows: int, table: AdapterTable) -> "LoraWork":
        """For a step of `rows` rows, segments (row_start, row_stop, slot) of them adapted."""
        entries = torch.tensor(work_list(segments), dtype=torch.int32).view(-1, 3)
        features = max(linear.in_features for linear in table.shape.linears)
        ranks = max((table.rank_total_max(slot) for _, _, slot in segments), default=1)
        shrunk = torch.empty(
            (shrink_splits(features), rows, ranks),
            dtype=torch.float32,
            device=table.elements.device,
        )
        return cls(uploaded(entries, table.elements.device), table, shrunk)


def lora_add_(y: Tensor, x: Tensor, work: LoraWork, layer: int, group: int) -> None:
    """Add each row's low-rank term to y [rows, out of the group] in place; x is [rows, in].

    Both have contiguous rows of the serving dtype. Rows outside every entry stay as they are.
    """
    entries = work.entries.shape[0]
    if entries == 0:
        return
    shape, words = work.table.shape, work.table.words
    modules = GROUP_MODULES[group]
    in_features = shape.linear(modules[0]).in_features
    splits = shrink_splits(in_features)
    line = layer * len(Group) + group
    ranks = work.shrunk.shape[2]
    _shrink[(entries, triton.cdiv(ranks, _RANKS_AT_ONCE), splits)](
        x,
        work.table.elements,
        words,
        work.entries,
        work.shrunk,
        line,
        words.stride(0),
        x.stride(0),
        work.shrunk.stride(0),
        work.shrunk.stride(1),
        in_features,
        triton.cdiv(triton.cdiv(in_features, splits), _FEATURES_AT_ONCE) * _FEATURES_AT_ONCE,
        ROWS=ENTRY_ROWS,
        RANKS=_RANKS_AT_ONCE,
        FEATURES=_FEATURES_AT_ONCE,
        WIDEN=WIDEN,
    )
    outs = [shape.linear(module).out_features for module in modules]
    outs += [0] * (3 - len(outs))
    tiles = [triton.cdiv(out, _OUTPUTS_AT_ONCE) for out in outs]
    _expand[(entries, sum(tiles))](
        y,
        work.table.elements,
        words,
        work.entries,
        work.shrunk,
        line,
        words.stride(0),
        y.stride(0),
        work.shrunk.stride(0),
        work.shrunk.stride(1),
        outs[0],
        outs[1],
        outs[2],
        tiles[0],
        tiles[1],
        SPLITS=splits,
        ROWS=ENTRY_ROWS,
        RANKS=_RANKS_AT_ONCE,
        OUTPUTS=_OUTPUTS_AT_ONCE,
        WIDEN=WIDEN,
    )


@triton.jit
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
    ROWS: tl.constexpr,
    RANKS: tl.constexpr,
    FEATURES: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One entry, RANKS of its group's ranks, one part of the input features."""
    entry = entries_ptr + tl.program_id(0) * 3
    rank_start = tl.program_id(1) * RANKS
    split = tl.program_id(2)
    row_start = tl.load(entry).to(tl.int64)
    rows = tl.load(entry + 1)
    words = words_ptr + tl.load(entry + 2) * slot_stride + line * 8
    rank_total = tl.load(words + 1)
    if (rows == 0) | (rank_start >= rank_total):
        return
    a_ptr = elements_ptr + tl.load(words)
    row = tl.arange(0, ROWS)
    rank = rank_start + tl.arange(0, RANKS)
    has_row = row < rows
    has_rank = rank < rank_total
    x_rows = x_ptr + (row_start + row)[:, None] * x_stride
    a_rows = a_ptr + rank[None, :].to(tl.int64) * in_features
    total = tl.zeros((ROWS, RANKS), dtype=tl.float32)
    first = split * features_per_split
    last = tl.minimum(first + features_per_split, in_features)
    for start in range(first, last, FEATURES):
        feature = start + tl.arange(0, FEATURES)
        has_feature = feature < last
        x = tl.load(
            x_rows + feature[None, :], mask=has_row[:, None] & has_feature[None, :], other=0.0
        )
        a = tl.load(
            a_rows + feature[:, None], mask=has_rank[None, :] & has_feature[:, None], other=0.0
        )
        total = dot(x, a, total, WIDEN)
    out = (
        shrunk_ptr + split * split_stride + (row_start + row)[:, None] * row_stride + rank[None, :]
    )
    tl.store(out, total, mask=has_row[:, None] & has_rank[None, :])


@triton.jit
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
    words = words_ptr + tl.load(entry + 2) * slot_stride + line * 8
    in_first = tile < tiles_0
    in_second = tile < tiles_0 + tiles_1
    module = tl.where(in_first, 0, tl.where(in_second, 1, 2))
    tile -= tl.where(in_first, 0, tl.where(in_second, tiles_0, tiles_0 + tiles_1))
    out_features = tl.where(in_first, out_0, tl.where(in_second, out_1, out_2))
    out_start = tl.where(in_first, 0, tl.where(in_second, out_0, out_0 + out_1))
    rank_first = tl.where(module >= 1, tl.load(words + 3), 0)
    rank_first += tl.where(module >= 2, tl.load(words + 5), 0)
    ranks = tl.load(words + 3 + 2 * module)
    if (rows == 0) | (ranks == 0):
        return
    b_ptr = elements_ptr + tl.load(words + 2 + 2 * module)
    row = tl.arange(0, ROWS)
    has_row = row < rows
    output = tile * OUTPUTS + tl.arange(0, OUTPUTS)
    has_output = output < out_features
    shrunk_rows = shrunk_ptr + (row_start + row)[:, None] * row_stride + rank_first
    total = tl.zeros((ROWS, OUTPUTS), dtype=tl.float32)
    for start in range(0, ranks, RANKS):
        rank = start + tl.arange(0, RANKS)
        has_rank = rank < ranks
        part = shrunk_rows + rank[None, :]
        mask = has_row[:, None] & has_rank[None, :]
        shrunk = tl.load(part, mask=mask, other=0.0)
        for split in tl.static_range(1, SPLITS):
            shrunk += tl.load(part + split * split_stride, mask=mask, other=0.0)
        b = tl.load(
            b_ptr + rank[:, None].to(tl.int64) * out_features + output[None, :],
            mask=has_rank[:, None] & has_output[None, :],
            other=0.0,
        )
        total = dot(shrunk.to(b.dtype), b, total, WIDEN)
    place = y_ptr + (row_start + row)[:, None] * y_stride + (out_start + output)[None, :]
    mask = has_row[:, None] & has_output[None, :]
    y = tl.load(place, mask=mask, other=0.0).to(tl.float32) + total
    tl.store(place, y.to(y_ptr.dtype.element_ty), mask=mask)
