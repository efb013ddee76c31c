"""Tile sizes and grids as functions of shapes alone: nothing here asks which adapters there are.

What decides how a sum is split (`SHRINK_SPLIT_FEATURES`, `KEYS_PER_SPLIT`) depends on the model and
on the row's own sequence, never on the other rows, so that a row's result has the same bits in any
batch that takes the same route.
"""

from collections.abc import Sequence
from typing import NamedTuple

# Rows of one entry of the work list: the least a tensor core multiplies at once.
ENTRY_ROWS = 16
# Input features that one program of the shrink sums over.
SHRINK_SPLIT_FEATURES = 512
# Keys that one program of a decode's attention sees.
KEYS_PER_SPLIT = 512
# Queries of a sequence up to which its attention is split over keys.
SPLIT_QUERIES_MAX = 4


class Entry(NamedTuple):
    """Rows [row_start, row_start + rows) of a step, all of one slot."""

    row_start: int
    rows: int
    slot: int


def work_list(segments: Sequence[tuple[int, int, int]]) -> list[Entry]:
    """Segments (row_start, row_stop, slot) cut into entries of up to ENTRY_ROWS rows."""
    return [
        Entry(start, min(ENTRY_ROWS, stop - start), slot)
        for first, stop, slot in segments
        for start in range(first, stop, ENTRY_ROWS)
    ]


def shrink_splits(in_features: int) -> int:
    """Parts that the sum over `in_features` is cut into, added up in order by the expand."""
    return max(1, in_features // SHRINK_SPLIT_FEATURES)


class Tile(NamedTuple):
    """Queries [query_start, query_start + queries) of one sequence of the step."""

    sequence: int
    query_start: int
    queries: int


def query_tiles(counts: Sequence[int], queries_per_tile: int) -> tuple[list[Tile], list[Tile]]:
    """Each sequence's queries in tiles: those whose keys are split, and those that see them whole.

    `counts` are the queries of each sequence in this step.
    """
    split: list[Tile] = []
    whole: list[Tile] = []
    for sequence, count in enumerate(counts):
        tiles = split if count <= SPLIT_QUERIES_MAX else whole
        for start in range(0, count, queries_per_tile):
            tiles.append(Tile(sequence, start, min(queries_per_tile, count - start)))
    return split, whole


def key_splits(longest: int) -> int:
    """Programs over the keys of the longest context among the split tiles."""
    return -(-longest // KEYS_PER_SPLIT)


def power_of_two(number: int) -> int:
    """The least power of two that is not below `number`."""
    return 1 << max(0, number - 1).bit_length()
