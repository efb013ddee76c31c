"""Work lists, tile sizes and grids as functions of shapes alone, never of which adapters there are.

What decides how a sum is split (`shrink_splits`, `keys_per_split`) depends on the model and on the
row's own sequence, never on the other rows, so that a row's result has the same bits in any batch
that takes the same route.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

# Rows of one entry of the work list: the least a tensor core multiplies at once.
ENTRY_ROWS = 16
# Words of an entry: (first row, rows, slot).
ENTRY_WORDS = 3
# Rows of one adapter from which plain products are the better way, where nothing is captured: they
# read each matrix once, where entries of `ENTRY_ROWS` would read it once each.
DENSE_ROWS_MIN = 256
# Input features that one program of the shrink sums over, and in how many parts at most.
SHRINK_SPLIT_FEATURES = 512
SHRINK_SPLITS_MAX = 16
# Keys that one program of a decode's attention sees at least, and among how many at most a sequence
# is split.
KEYS_PER_SPLIT = 256
KEY_SPLITS_MAX = 16
# Queries of a sequence up to which its attention is split over keys.
SPLIT_QUERIES_MAX = 4
# Queries times heads of one tile: at least what a tensor core multiplies at once.
SPLIT_ROWS = 16
WHOLE_ROWS = 64
# Words of an item: (line of the block table, first row, queries, position of the first query,
# first key, key past the last); and of a tile: (first row, queries, first item, items).
ITEM_WORDS = 6
TILE_WORDS = 4
# Programs that a processor of the device is given at once, of those that go on to the next item.
_PROGRAMS_PER_PROCESSOR = 4
# Splits begin at multiples of the most keys that are seen at once.
_KEYS_AT_ONCE_MAX = 64

Words = NDArray[np.int32]


def entries_of(segments: Sequence[tuple[int, int, int]]) -> Words:
    """Segments (row_start, row_stop, slot) in entries of up to ENTRY_ROWS rows: [entries, 3]."""
    entries = [
        (start, min(ENTRY_ROWS, stop - start), slot)
        for first, stop, slot in segments
        for start in range(first, stop, ENTRY_ROWS)
    ]
    return np.array(entries, np.int32).reshape(-1, ENTRY_WORDS)


def shrink_splits(in_features: int) -> int:
    """Parts that the sum over `in_features` is cut into, added up in order by the expand."""
    return min(SHRINK_SPLITS_MAX, max(1, in_features // SHRINK_SPLIT_FEATURES))


def expand_outputs(entries: int, out_features: int, processors: int) -> int:
    """Output columns of one program: many where even so every processor has two programs."""
    return 256 if entries * out_features >= 512 * processors else 64


class AttentionWords(NamedTuple):
    """A step's attention: `items` and `whole` [n, 6], `tiles` [n, 4] to merge the items of."""

    items: Words
    tiles: Words
    whole: Words


def attention_words(
    starts: Sequence[int], context_lens: Sequence[int], heads_per_kv: int
) -> AttentionWords:
    """The items of a step; rows of sequence i are [starts[i], starts[i + 1]).

    Sequences of few queries, the decodes above all, have an item for each part of their keys and a
    tile that merges them; the others see their keys whole.
    """
    edges, lens = np.array(starts, np.int32), np.array(context_lens, np.int32)
    counts = np.diff(edges)
    few = counts <= SPLIT_QUERIES_MAX
    whole = _tiles(np.flatnonzero(~few), edges, lens, rows_of_tile(WHOLE_ROWS, heads_per_kv)[1])
    tiles = _tiles(np.flatnonzero(few), edges, lens, rows_of_tile(SPLIT_ROWS, heads_per_kv)[1])
    spans = keys_per_split(lens[tiles[:, 0]])
    splits = -(-tiles[:, 5] // spans)
    firsts = np.cumsum(splits) - splits
    items = np.repeat(tiles, splits, 0)
    spans = np.repeat(spans, splits)
    items[:, 4] = (np.arange(len(items)) - np.repeat(firsts, splits)) * spans
    items[:, 5] = np.minimum(items[:, 5], items[:, 4] + spans)
    merged = np.stack((tiles[:, 1], tiles[:, 2], firsts, splits), 1).astype(np.int32)
    return AttentionWords(items, merged, whole)


def _tiles(chosen: NDArray[np.int64], edges: Words, lens: Words, queries_per_tile: int) -> Words:
    """The queries of the `chosen` sequences in tiles that see all their keys: [tiles, 6]."""
    counts = np.diff(edges)[chosen]
    each = -(-counts // queries_per_tile)
    sequence = np.repeat(chosen, each)
    nth = np.arange(len(sequence)) - np.repeat(np.cumsum(each) - each, each)
    first = nth * queries_per_tile
    queries = np.minimum(queries_per_tile, np.repeat(counts, each) - first)
    position = lens[sequence] - np.repeat(counts, each) + first
    columns = (
        sequence,
        edges[sequence] + first,
        queries,
        position,
        np.zeros_like(first),
        position + queries,
    )
    return np.stack(columns, 1).astype(np.int32)


def keys_per_split(context_lens: Words) -> Words:
    """Keys of one item, for each sequence by its own length."""
    even = -(-context_lens // (KEY_SPLITS_MAX * _KEYS_AT_ONCE_MAX)) * _KEYS_AT_ONCE_MAX
    return np.maximum(KEYS_PER_SPLIT, even)


def keys_at_once(row_bytes: int) -> int:
    """Keys, of `row_bytes` each, that fit in registers and shared memory beside the queries."""
    return max(16, min(_KEYS_AT_ONCE_MAX, (1 << 14) // row_bytes))


def whole_warps(row_bytes: int) -> int:
    """Warps among which a tile of `WHOLE_ROWS` queries keeps within its registers."""
    return 8 if row_bytes > 128 else 4


def rows_of_tile(least: int, heads_per_kv: int) -> tuple[int, int]:
    """(rows, queries) of a tile: a power of two that holds at least one query of all its heads."""
    rows = max(least, power_of_two(heads_per_kv))
    return rows, rows // heads_per_kv


def programs_for(items: int, kv_heads: int, device: torch.device) -> int:
    """Programs that share `items`, each for one key head: as many as the device runs at once."""
    return max(1, min(items, _PROGRAMS_PER_PROCESSOR * processors(device) // kv_heads))


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; in the interpreter, few enough that a program has several items."""
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
