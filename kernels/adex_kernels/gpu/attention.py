"""Attention over the block table: prefill chunks and decodes of one step, two or three launches.

A program holds some queries of one sequence together with all heads that share a key head, and
walks the keys a block of the table at a time. Short spans, the decodes above all, have too few
queries to fill a device, so their keys are split over programs (flash-decoding) and a second launch
merges the parts in order. Where a split falls depends on the sequence's own length only.

Sources: FlashAttention-2 (arXiv:2307.08691) for the running softmax, PagedAttention
(arXiv:2309.06180) for the table.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.batch import AttentionBatch, uploaded
from adex_kernels.gpu.dot import WIDEN, dot
from adex_kernels.gpu.launch import KEYS_PER_SPLIT, Tile, key_splits, power_of_two, query_tiles

_SPLIT_ROWS = 16
_WHOLE_ROWS = 64
_KEYS_AT_ONCE = 64


@dataclass(slots=True)
class AttentionWork:
    """A step's tiles, made once for all layers.

    `split` and `whole` are [tiles, 3] int32 (sequence, first query, queries); `sequences` is
    [sequences, 3] int32 (context length, queries, first row).
    """

    split: Tensor
    whole: Tensor
    sequences: Tensor
    tables: Tensor
    key_splits: int
    split_rows: int
    whole_rows: int

    @classmethod
    def of(cls, batch: AttentionBatch, heads_per_kv: int) -> "AttentionWork":
        """For query heads that share a key head in groups of `heads_per_kv`."""
        starts, lens = batch.query_starts, batch.context_lens
        counts = [stop - start for start, stop in pairwise(starts)]
        split_rows = max(_SPLIT_ROWS, power_of_two(heads_per_kv))
        whole_rows = max(_WHOLE_ROWS, power_of_two(heads_per_kv))
        split, _ = query_tiles(counts, split_rows // heads_per_kv)
        _, whole = query_tiles(counts, whole_rows // heads_per_kv)
        longest = max((lens[tile.sequence] for tile in split), default=0)
        device = batch.block_tables.device
        sequences = torch.tensor([lens, counts, starts[:-1]], dtype=torch.int32).t().contiguous()
        return cls(
            split=_uploaded(split, device),
            whole=_uploaded(whole, device),
            sequences=uploaded(sequences, device),
            tables=batch.block_tables,
            key_splits=key_splits(longest),
            split_rows=split_rows,
            whole_rows=whole_rows,
        )


def _uploaded(tiles: list[Tile], device: torch.device) -> Tensor:
    return uploaded(torch.tensor(tiles, dtype=torch.int32).view(-1, 3), device)


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
    Returns: [rows, heads * head_dim] in q's dtype.
    """
    rows, heads, head_dim = q.shape
    out = torch.empty((rows, heads * head_dim), dtype=q.dtype, device=q.device)
    shape = _Shape(layer, scale, window, softcap)
    if work.split.shape[0]:
        tiles, kv_heads = work.split.shape[0], kv.shape[4]
        size = (work.key_splits, tiles, kv_heads, work.split_rows, head_dim + 2)
        parts = out.new_empty(size, dtype=torch.float32)
        _launch(q, kv, out, parts, work.split, work, shape)
        _merge[(tiles, kv_heads)](
            out,
            parts,
            work.split,
            work.sequences,
            out.stride(0),
            parts.stride(0),
            parts.stride(1),
            head_dim,
            work.key_splits,
            HEADS=heads // kv_heads,
            ROWS=work.split_rows,
            DIM=max(16, power_of_two(head_dim)),
        )
    if work.whole.shape[0]:
        _launch(q, kv, out, None, work.whole, work, shape)
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
    parts: Tensor | None,
    tiles: Tensor,
    work: AttentionWork,
    shape: _Shape,
) -> None:
    """Attend the queries of `tiles`: into `parts`, keys split, or else whole into `out`."""
    heads, head_dim = q.shape[1:]
    kv_heads = kv.shape[4]
    splits = 1 if parts is None else parts.shape[0]
    _attend[(tiles.shape[0], kv_heads, splits)](
        q,
        kv,
        out,
        out if parts is None else parts,
        tiles,
        work.sequences,
        work.tables,
        kv.stride(0),
        shape.layer * kv.stride(1),
        kv.stride(2),
        kv.stride(3),
        q.stride(0),
        out.stride(0),
        work.tables.stride(0),
        0 if parts is None else parts.stride(0),
        0 if parts is None else parts.stride(1),
        head_dim,
        shape.scale,
        shape.softcap or 0.0,
        shape.window or 0,
        HEADS=heads // kv_heads,
        TOKENS=kv.shape[3],
        ROWS=work.whole_rows if parts is None else work.split_rows,
        KEYS=_KEYS_AT_ONCE,
        DIM=max(16, power_of_two(head_dim)),
        SPLIT=parts is not None,
        SPLIT_KEYS=KEYS_PER_SPLIT,
        WINDOWED=shape.window is not None,
        CAPPED=shape.softcap is not None,
        WIDEN=WIDEN,
    )


@triton.jit
def _attend(
    q_ptr,
    kv_ptr,
    out_ptr,
    parts_ptr,
    tiles_ptr,
    sequences_ptr,
    tables_ptr,
    page_stride,
    layer_offset,
    value_offset,
    token_stride,
    q_stride,
    out_stride,
    table_stride,
    split_stride,
    tile_stride,
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
    SPLIT_KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """One tile's queries and one key head: row r is query r // HEADS of head r % HEADS."""
    tile = tiles_ptr + tl.program_id(0) * 3
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    sequence = tl.load(tile)
    first_query = tl.load(tile + 1)
    queries = tl.load(tile + 2)
    length = tl.load(sequences_ptr + sequence * 3)
    begin = length - tl.load(sequences_ptr + sequence * 3 + 1) + first_query
    first_row = (tl.load(sequences_ptr + sequence * 3 + 2) + first_query).to(tl.int64)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    has_row = row // HEADS < queries
    has_dim = dim < head_dim
    position = begin + row // HEADS
    place = (first_row + row // HEADS)[:, None]
    column = ((kv_head * HEADS + row % HEADS) * head_dim)[:, None] + dim[None, :]
    mask = has_row[:, None] & has_dim[None, :]
    q = tl.load(q_ptr + place * q_stride + column, mask=mask, other=0.0)
    low, high = _keys_of(begin, queries, split, window, WINDOWED, SPLIT, SPLIT_KEYS)
    best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, DIM), dtype=tl.float32)
    keys_ptr = kv_ptr + layer_offset + kv_head * head_dim
    for start in range(low // KEYS * KEYS, high, KEYS):
        key = start + tl.arange(0, KEYS)
        has_key = (key >= low) & (key < high)
        page = tl.load(tables_ptr + sequence * table_stride + key // TOKENS, mask=has_key, other=0)
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
        part = parts_ptr + split * split_stride + tl.program_id(0) * tile_stride
        part += (kv_head * ROWS + row) * (head_dim + 2)
        tl.store(part[:, None] + dim[None, :], total, mask=mask)
        tl.store(part + head_dim, best, mask=has_row)
        tl.store(part + head_dim + 1, weight, mask=has_row)
    else:
        result = total / tl.where(has_row, weight, 1.0)[:, None]
        tl.store(out_ptr + place * out_stride + column, result.to(q.dtype), mask=mask)


@triton.jit
def _keys_of(
    begin,
    queries,
    split,
    window,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
):
    """The keys [low, high) that a program walks for queries from position `begin` on."""
    low = begin * 0
    high = begin + queries
    if WINDOWED:
        low = tl.maximum(low, begin - window + 1)
    if SPLIT:
        low = tl.maximum(low, split * SPLIT_KEYS)
        high = tl.minimum(high, (split + 1) * SPLIT_KEYS)
    return low, high


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


@triton.jit
def _merge(
    out_ptr,
    parts_ptr,
    tiles_ptr,
    sequences_ptr,
    out_stride,
    split_stride,
    tile_stride,
    head_dim,
    splits,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    DIM: tl.constexpr,
):
    """Add up the parts of one tile and key head, first to last."""
    tile = tiles_ptr + tl.program_id(0) * 3
    kv_head = tl.program_id(1)
    sequence = tl.load(tile)
    first_query = tl.load(tile + 1)
    queries = tl.load(tile + 2)
    row = tl.arange(0, ROWS)
    dim = tl.arange(0, DIM)
    has_row = row // HEADS < queries
    mask = has_row[:, None] & (dim < head_dim)[None, :]
    part = parts_ptr + tl.program_id(0) * tile_stride + (kv_head * ROWS + row) * (head_dim + 2)
    best = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    weight = tl.zeros((ROWS,), dtype=tl.float32)
    total = tl.zeros((ROWS, DIM), dtype=tl.float32)
    for _ in range(splits):
        its_best = tl.load(part + head_dim, mask=has_row, other=0.0)
        better = tl.maximum(best, its_best)
        shift = tl.where(better == float("-inf"), 0.0, better)
        fade = tl.exp(best - shift)
        share = tl.exp(its_best - shift)
        weight = weight * fade + share * tl.load(part + head_dim + 1, mask=has_row, other=1.0)
        its_total = tl.load(part[:, None] + dim[None, :], mask=mask, other=0.0)
        total = total * fade[:, None] + share[:, None] * its_total
        best = better
        part += split_stride
    first_row = (tl.load(sequences_ptr + sequence * 3 + 2) + first_query).to(tl.int64)
    place = (first_row + row // HEADS)[:, None]
    column = ((kv_head * HEADS + row % HEADS) * head_dim)[:, None] + dim[None, :]
    result = total / tl.where(has_row, weight, 1.0)[:, None]
    tl.store(out_ptr + place * out_stride + column, result.to(out_ptr.dtype.element_ty), mask=mask)
