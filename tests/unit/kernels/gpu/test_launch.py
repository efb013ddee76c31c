"""Where the work of a step is cut: functions of its shapes, and of each sequence's own length."""

from itertools import pairwise

import numpy as np
import torch

from adex_kernels.gpu import launch

HEADS_PER_KV = 4


def parts_of(length: int, queries: int = 1) -> list[tuple[int, int]]:
    items, _, _ = launch.attention_words([0, queries], [length], HEADS_PER_KV)
    return [(int(low), int(high)) for low, high in items[:, 4:]]


def test_the_parts_of_a_sequence_are_all_of_its_keys_and_never_many() -> None:
    for length in [*range(1, 600, 7), 4096, 4097, 5000, 131072]:
        parts = parts_of(length)
        assert 1 <= len(parts) <= launch.KEY_SPLITS_MAX
        assert parts[0][0] == 0
        assert parts[-1][1] == length
        assert all(one[1] == next_[0] for one, next_ in pairwise(parts))


def test_where_a_sequence_is_cut_does_not_depend_on_the_others() -> None:
    lens = [5000, 3, 700, 131072]
    items, tiles, _ = launch.attention_words(range(len(lens) + 1), lens, HEADS_PER_KV)
    for sequence, length in enumerate(lens):
        mine = items[items[:, 0] == sequence]
        assert [tuple(part) for part in mine[:, 4:].tolist()] == parts_of(length)
        row, queries, first, count = tiles[sequence]
        assert (row, queries) == (sequence, 1)
        assert np.array_equal(items[first : first + count], mine)


def test_every_query_is_in_one_tile_and_sees_what_is_before_it() -> None:
    starts, lens = [0, 1, 4, 104], [9, 40, 150]
    items, tiles, whole = launch.attention_words(starts, lens, HEADS_PER_KV)
    rows = [row for first, n, *_ in tiles.tolist() for row in range(first, first + n)]
    rows += [row for _, first, n, *_ in whole.tolist() for row in range(first, first + n)]
    assert sorted(rows) == list(range(104))
    for sequence, first_row, queries, position, _, stop in [*items.tolist(), *whole.tolist()]:
        assert position == lens[sequence] - (starts[sequence + 1] - first_row)
        assert stop <= position + queries


def test_programs_are_as_many_as_the_device_runs_and_no_more_than_items() -> None:
    device = torch.device("cpu")
    assert launch.programs_for(1, 8, device) == 1
    assert launch.programs_for(10_000, 8, device) == launch.programs_for(20_000, 8, device) < 100
    assert launch.programs_for(10_000, 1000, device) == 1


def test_an_entry_has_rows_of_one_adapter() -> None:
    entries = launch.entries_of([(0, 20, 3), (20, 21, 1), (30, 30, 9)])
    assert entries.tolist() == [[0, 16, 3], [16, 4, 3], [20, 1, 1]]
    assert launch.entries_of([]).shape == (0, 3)
