"""Attention over the block table: prefill chunks and decodes of one step, two or three launches.

A program holds some queries of one sequence together with all heads that share a key head, and
walks the keys some blocks of the table at a time. Short spans, the decodes above all, have too few
queries to fill a device, so their keys are split over programs (flash-decoding) and a second launch
merges the parts in order. Where a split falls depends on the sequence's own length only.

What there is to do is a list of items on the device with its length beside it, and as many programs
as the device runs at once go through it: no grid depends on how long the contexts are.

Sources: FlashAttention-2 (arXiv:2307.08691) for the running softmax, PagedAttention
(arXiv:2309.06180) for the table.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.batch import AttentionBatch, uploaded
from adex_kernels.gpu.dot import WIDEN, dot
from adex_kernels.gpu.launch import (
    ITEM_WORDS,
    KEY_SPLITS_MAX,
    SPLIT_ROWS,
    TILE_WORDS,
    WHOLE_ROWS,
    Words,
    attention_words,
    keys_at_once,
    power_of_two,
    programs_for,
    rows_of_tile,
    whole_warps,
)


@dataclass(slots=True)
class AttentionWork:
    """A step's items (`launch.attention_words`), int32, made once for all layers.

    `items` [n, 6] see a part of their keys and are merged by `tiles` [n, 4]; `whole` [n, 6] see all
    of theirs. `counts` [2] says how many of `items` and of `whole` there are: lines beyond are not
    read, and a tile without queries does nothing. `part_rows` is queries times heads of a tile.
    """

    counts: Tensor
    tiles: Tensor
    items: Tensor
    whole: Tensor
    tables: Tensor
    part_rows: int

    @classmethod
    def of(cls, batch: AttentionBatch, heads_per_kv: int) -> "AttentionWork":
        """For query heads that share a key head in groups of `heads_per_kv`."""
        items, tiles, whole = attention_words(batch.query_starts, batch.context_lens, heads_per_kv)
        counts = np.array([len(items), len(whole)], np.int32)
        packed = np.concatenate((counts, tiles.ravel(), items.ravel(), whole.ravel()))
        words = uploaded(torch.from_numpy(packed), batch.block_tables.device)
        part_rows = int(tiles[:, 1].max(initial=1)) * heads_per_kv
        sizes = (len(tiles), len(items), len(whole))
        return cls._over(words, sizes, batch.block_tables, part_rows)

    @classmethod
    def static(cls, words: Tensor, tables: Tensor, heads_per_kv: int) -> "AttentionWork":
        """Over buffers on the device that are filled anew for each step of decodes.

        Args:
            words: [static_words(sequences)] int32, as `fill_static` leaves it.
            tables: [sequences, blocks_max], the pages of each.
        """
        sequences = tables.shape[0]
        return cls._over(words, (sequences, sequences * KEY_SPLITS_MAX, 0), tables, heads_per_kv)

    @classmethod
    def _over(
        cls, words: Tensor, sizes: tuple[int, int, int], tables: Tensor, part_rows: int
    ) -> "AttentionWork":
        tiles, items, whole = sizes
        parts = words.split((2, tiles * TILE_WORDS, items * ITEM_WORDS, whole * ITEM_WORDS))
        return cls(
            counts=parts[0],
            tiles=parts[1].view(-1, TILE_WORDS),
            items=parts[2].view(-1, ITEM_WORDS),
            whole=parts[3].view(-1, ITEM_WORDS),
            tables=tables,
            part_rows=part_rows,
        )


def static_words(sequences: int) -> int:
    """Words that `AttentionWork.static` takes for that many sequences."""
    return 2 + sequences * (TILE_WORDS + KEY_SPLITS_MAX * ITEM_WORDS)


def fill_static(words: Words, sequences: int, context_lens: list[int], heads_per_kv: int) -> None:
    """Write decodes of the given contexts, at most `sequences`, to `words` on the host."""
    starts = list(range(len(context_lens) + 1))
    items, tiles, _ = attention_words(starts, context_lens, heads_per_kv)
    words[:2] = len(items), 0
    room = words[2 : 2 + sequences * TILE_WORDS]
    room[: tiles.size] = tiles.ravel()
    room[tiles.size :] = 0
    # What lies beyond the counted items is not read.
    words[2 + len(room) :][: items.size] = items.ravel()


def attention(
    q: Tensor,
    kv: Tensor,
    layer: int,
    work: AttentionWork,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of every row over its sequence's blocks, this step's rows included.

    Args:
        q: [rows, heads, head_dim], heads and head_dim contiguous; heads a multiple of kv_heads.
        kv: [pages, layers, 2, block_tokens, kv_heads, head_dim], contiguous.
        window: positions a row sees, itself included; None is all.
        softcap: scores s become softcap * tanh(s / softcap) before the mask.
    Returns: [rows, heads * head_dim] in q's dtype; rows that no item names hold anything.
    """
    rows, heads, head_dim = q.shape
    kv_heads = kv.shape[4]
    out = torch.empty((rows, heads * head_dim), dtype=q.dtype, device=q.device)
    shape = _Shape(layer, scale, window, softcap)
    if tiles := work.tiles.shape[0]:
        size = (work.items.shape[0], kv_heads, work.part_rows)
        parts = out.new_empty((*size, head_dim), dtype=torch.float32)
        weights = out.new_empty((*size, 2), dtype=torch.float32)
        _launch(q, kv, out, (parts, weights), work, shape)
        _merge[(tiles, kv_heads)](
            out,
            parts,
            weights,
            work.tiles,
            out.stride(0),
            work.part_rows,
            head_dim,
            HEADS=heads // kv_heads,
            ROWS=rows_of_tile(SPLIT_ROWS, heads // kv_heads)[0],
            DIM=max(16, power_of_two(head_dim)),
        )
    if work.whole.shape[0]:
        _launch(q, kv, out, None, work, shape)
    return out


class _Shape(NamedTuple):
    layer: int
    scale: float
    window: int | None
    softcap: float | None


def _launch(
    q: Tensor,
    kv: Tensor,
    out: Tensor,
    parts: tuple[Tensor, Tensor] | None,
    work: AttentionWork,
    shape: _Shape,
) -> None:
    """Attend the items: into `parts`, keys split, or else the whole ones into `out`."""
    heads, head_dim = q.shape[1:]
    kv_heads = kv.shape[4]
    items = work.whole if parts is None else work.items
    programs = items.shape[0]
    if parts is not None:
        programs = programs_for(programs, kv_heads, q.device)
    least = WHOLE_ROWS if parts is None else SPLIT_ROWS
    dim = max(16, power_of_two(head_dim))
    row_bytes = dim * kv.element_size()
    _attend[(programs, kv_heads)](
        q,
        kv,
        out,
        *((out, out) if parts is None else parts),
        items,
        work.counts[1:] if parts is None else work.counts,
        work.tables,
        kv.stride(0),
        shape.layer,
        kv.stride(1),
        kv.stride(2),
        kv.stride(3),
        q.stride(0),
        out.stride(0),
        work.tables.stride(0),
        work.part_rows,
        head_dim,
        shape.scale,
        shape.softcap or 0.0,
        shape.window or 0,
        HEADS=heads // kv_heads,
        TOKENS=kv.shape[3],
        ROWS=rows_of_tile(least, heads // kv_heads)[0],
        KEYS=keys_at_once(row_bytes),
        DIM=dim,
        SPLIT=parts is not None,
        WINDOWED=shape.window is not None,
        CAPPED=shape.softcap is not None,
        WIDEN=WIDEN,
        num_warps=4 if parts is not None else whole_warps(row_bytes),
    )


# What differs between layers and steps is not compiled for.
@triton.jit(
    do_not_specialize=["layer", "table_stride", "part_rows", "window"],
    do_not_specialize_on_alignment=["items_ptr", "counts_ptr", "tables_ptr"],
)
def _attend(
    q_ptr,
    kv_ptr,
    out_ptr,
    parts_ptr,
    weights_ptr,
    items_ptr,
    counts_ptr,
    tables_ptr,
    page_stride,
    layer,
    layer_stride,
    value_offset,
    token_stride,
    q_stride,
    out_stride,
    table_stride,
    part_rows,
    head_dim,
    scale,
    softcap,
    window,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    DIM: tl.constexpr,
    SPLIT: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """Items, and one key head: row r of an item is query r // HEADS of head r % HEADS."""
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1).to(tl.int64)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    has_dim = dim < head_dim
    column = ((kv_head * HEADS + row % HEADS) * head_dim)[:, None] + dim[None, :]
    keys_ptr = kv_ptr + layer.to(tl.int64) * layer_stride + kv_head * head_dim
    for index in range(tl.program_id(0), tl.load(counts_ptr), tl.num_programs(0)):
        sequence, first_row, queries, begin, low, high = _item(items_ptr + index * 6)
        if WINDOWED:
            low = tl.maximum(low, begin - window + 1)
        has_row = row // HEADS < queries
        position = begin + row // HEADS
        place = (first_row + row // HEADS)[:, None]
        mask = has_row[:, None] & has_dim[None, :]
        q = tl.load(q_ptr + place * q_stride + column, mask=mask, other=0.0)
        best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
        weight = tl.zeros((ROWS,), dtype=tl.float32)
        total = tl.zeros((ROWS, DIM), dtype=tl.float32)
        pages = tables_ptr + sequence * table_stride
        for start in range(low // KEYS * KEYS, high, KEYS):
            key = start + tl.arange(0, KEYS)
            has_key = (key >= low) & (key < high)
            page = tl.load(pages + key // TOKENS, mask=has_key, other=0)
            cell = page.to(tl.int64) * page_stride + (key % TOKENS) * token_stride
            k = tl.load(
                keys_ptr + cell[None, :] + dim[:, None],
                mask=has_key[None, :] & has_dim[:, None],
                other=0.0,
            )
            seen = has_key[None, :] & (key[None, :] <= position[:, None])
            if WINDOWED:
                seen = seen & (key[None, :] > position[:, None] - window)
            scores = _scores(q, k, seen, scale, softcap, ROWS, KEYS, CAPPED, WIDEN)
            better = tl.maximum(best, tl.max(scores, 1))
            # A row that has seen nothing yet has no best: minus infinity less itself is no number.
            shift = tl.where(better == float("-inf"), 0.0, better)
            share = tl.exp(scores - shift[:, None])
            fade = tl.exp(best - shift)
            v = tl.load(
                keys_ptr + value_offset + cell[:, None] + dim[None, :],
                mask=has_key[:, None] & has_dim[None, :],
                other=0.0,
            )
            weight = weight * fade + tl.sum(share, 1)
            total = dot(share.to(v.dtype), v, total * fade[:, None], WIDEN)
            best = better
        if SPLIT:
            part = (index * kv_heads + kv_head) * part_rows + row
            tl.store(parts_ptr + part[:, None] * head_dim + dim[None, :], total, mask=mask)
            tl.store(weights_ptr + part * 2, best, mask=has_row)
            tl.store(weights_ptr + part * 2 + 1, weight, mask=has_row)
        else:
            result = total / tl.where(has_row, weight, 1.0)[:, None]
            tl.store(out_ptr + place * out_stride + column, result.to(q.dtype), mask=mask)


@triton.jit
def _item(item):
    """Line of the block table, first row, queries, first position, first key, key past the last."""
    first_row = tl.load(item + 1).to(tl.int64)
    return (
        tl.load(item),
        first_row,
        tl.load(item + 2),
        tl.load(item + 3),
        tl.load(item + 4),
        tl.load(item + 5),
    )


@triton.jit
def _scores(
    q,
    k,
    seen,
    scale,
    softcap,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """[ROWS, KEYS] float32, minus infinity where a query does not see a key."""
    scores = dot(q, k, tl.zeros((ROWS, KEYS), dtype=tl.float32), WIDEN) * scale
    if CAPPED:
        # tanh(x) = 2 sigmoid(2 x) - 1
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    return tl.where(seen, scores, float("-inf"))


@triton.jit(do_not_specialize=["part_rows"], do_not_specialize_on_alignment=["tiles_ptr"])
def _merge(
    out_ptr,
    parts_ptr,
    weights_ptr,
    tiles_ptr,
    out_stride,
    part_rows,
    head_dim,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Add up the items of one tile and key head, first to last."""
    tile = tiles_ptr + tl.program_id(0) * 4
    kv_head = tl.program_id(1)
    kv_heads = tl.num_programs(1).to(tl.int64)
    first_row = tl.load(tile).to(tl.int64)
    queries = tl.load(tile + 1)
    first_item = tl.load(tile + 2)
    items = tl.load(tile + 3)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    has_row = row // HEADS < queries
    mask = has_row[:, None] & (dim < head_dim)[None, :]
    best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, DIM), dtype=tl.float32)
    for item in range(first_item, first_item + items):
        part = (item * kv_heads + kv_head) * part_rows + row
        its_best = tl.load(weights_ptr + part * 2, mask=has_row, other=0.0)
        better = tl.maximum(best, its_best)
        shift = tl.where(better == float("-inf"), 0.0, better)
        fade = tl.exp(best - shift)
        share = tl.exp(its_best - shift)
        its_weight = tl.load(weights_ptr + part * 2 + 1, mask=has_row, other=1.0)
        weight = weight * fade + share * its_weight
        place = parts_ptr + part[:, None] * head_dim + dim[None, :]
        total = total * fade[:, None] + share[:, None] * tl.load(place, mask=mask, other=0.0)
        best = better
    place = (first_row + row // HEADS)[:, None]
    column = ((kv_head * HEADS + row % HEADS) * head_dim)[:, None] + dim[None, :]
    result = total / tl.where(has_row, weight, 1.0)[:, None]
    tl.store(out_ptr + place * out_stride + column, result.to(out_ptr.dtype.element_ty), mask=mask)
