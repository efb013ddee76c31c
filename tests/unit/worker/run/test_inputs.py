"""Spans become rows, segments and positions; what does not fit is named, and the rest goes on."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.plan import Decodes, NewSequence, Span
from adex_proto.sampling import SamplingParams
from adex_worker.run.inputs import PoolLimits, StepInputs, step_inputs
from adex_worker.run.sampling_table import SamplingTable
from adex_worker.run.sequences import SequenceTable

BLOCK_TOKENS = 4
CPU = torch.device("cpu")
GREEDY = SamplingParams(max_new_tokens=9)
LIMITS = PoolLimits(
    pages=1000,
    block_tokens=BLOCK_TOKENS,
    step_tokens_max=500,
    step_sequences_max=50,
    positions_max=100,
    holds_adapter=lambda page: page < 10,
)
NO_DECODES = Decodes()


def table_of(*sequences: tuple[int, list[int], int]) -> SequenceTable:
    """A table of (number, tokens, slot)."""
    table = SequenceTable(vocabulary=1000, positions_max=100, sequences_max=100)
    for number, tokens, slot in sequences:
        table.add(NewSequence(number, tuple(tokens), len(tokens), slot, GREEDY))
    return table


def build(
    spans: list[Span],
    table: SequenceTable,
    resident: tuple[int, ...] = (1, 2, 3),
    decodes: Decodes = NO_DECODES,
) -> tuple[StepInputs, list[int]]:
    inputs, failures = step_inputs(tuple(spans), decodes, table, LIMITS, resident.__contains__)
    assert inputs is not None
    return inputs, [failure.sequence for failure in failures]


def test_rows_of_one_slot_are_neighbours_and_the_base_model_has_no_segment() -> None:
    prompts = {number: list(range(10 * number, 10 * number + 6)) for number in range(1, 7)}
    slots = {1: 2, 2: 0, 3: 1, 4: 2, 5: 0, 6: 1}
    table = table_of(*((number, prompts[number], slots[number]) for number in prompts))
    spans = [Span(n, 0, 6, n % 2 == 0, (10 + 2 * n, 11 + 2 * n)) for n in prompts]
    inputs, failed = build(spans, table)
    assert failed == []
    slot_of_row = np.zeros(36, np.int64)
    for start, stop, slot in inputs.segments:
        slot_of_row[start:stop] = slot
    assert len(inputs.segments) == 2
    owners = (inputs.token_ids // 10).tolist()
    assert [slots[owner] for owner in owners] == slot_of_row.tolist()
    # Every sequence's rows are together and in order, wherever they are.
    for number, prompt in prompts.items():
        rows = [row for row, owner in enumerate(owners) if owner == number]
        assert rows == list(range(rows[0], rows[0] + 6))
        assert inputs.token_ids[rows].tolist() == prompt
        assert inputs.positions[rows].tolist() == list(range(6))
    sampled = [owners[row] for row in inputs.logit_rows.tolist()]
    assert sorted(sampled) == [2, 4, 6]
    assert table.numbers[inputs.sampled].tolist() == sampled


def test_the_whole_known_length_goes_with_each_chunk_of_a_prompt() -> None:
    """Where a rotation depends on the length, a chunk is turned as the whole prompt would be."""
    table = table_of((1, list(range(20)), 0))
    inputs, _ = build([Span(1, 0, 5, False, (10, 11))], table)
    assert inputs.attention(CPU).row_lens.tolist() == [20] * 5
    assert inputs.attention(CPU).context_lens == [5]


def test_a_decode_computes_the_last_token_sampled_here() -> None:
    table = table_of((1, [5, 6, 7], 0))
    build([Span(1, 0, 3, True, (10, 11))], table)
    row = table.rows_of([1])
    table.computed[row] = 3
    table.expect(row)
    table.learn(row, np.array([42]))
    inputs, _ = build([Span(1, 3, 1, True)], table)
    assert inputs.token_ids.tolist() == [42]
    assert inputs.positions.tolist() == [3]
    assert inputs.attention(CPU).write_pages.tolist() == [10]
    assert inputs.attention(CPU).write_offsets.tolist() == [3]


def test_pages_come_from_each_sequences_own_table_in_order() -> None:
    table = table_of((1, list(range(9)), 0), (2, list(range(9)), 0))
    inputs, _ = build([Span(1, 0, 9, True, (50, 20, 30)), Span(2, 0, 9, True, (60, 15, 40))], table)
    pages = inputs.attention(CPU).write_pages.tolist()
    assert pages[:9] == [50] * 4 + [20] * 4 + [30]
    assert pages[9:] == [60] * 4 + [15] * 4 + [40]


def test_a_prefix_may_begin_where_another_sequences_cache_ends_but_never_leave_a_gap() -> None:
    table = table_of((1, list(range(20)), 0))
    inputs, _ = build([Span(1, 8, 4, False, (10, 11, 12))], table)
    assert inputs.positions.tolist() == [8, 9, 10, 11]
    table.computed[table.rows_of([1])] = 12
    _, failures = step_inputs(
        (Span(1, 13, 2, False, (13,)),), NO_DECODES, table, LIMITS, lambda _: True
    )
    assert "leaves a gap" in str(failures[0].error)


def test_two_spans_never_write_one_block() -> None:
    table = table_of((1, [1] * 9, 0), (2, [1] * 9, 0), (3, [1] * 9, 0))
    spans = [
        Span(1, 0, 9, True, (10, 11, 12)),
        Span(2, 0, 9, True, (13, 14, 12)),
        # It reads what the first two blocks of sequence 1 hold, and writes only its own third.
        Span(3, 8, 1, True, (10, 11, 15)),
    ]
    inputs, failed = build(spans, table)
    assert failed == [2]
    assert len(inputs.table_rows) == 2


def sampled_once(*sequences: tuple[int, int]) -> SequenceTable:
    """Sequences (number, slot) of four tokens, one full block, with a fifth sampled here."""
    table = table_of(*((number, [7] * 4, slot) for number, slot in sequences))
    build([Span(number, 0, 4, True, (10 + number,)) for number, _ in sequences], table)
    rows = table.rows_of([number for number, _ in sequences])
    table.computed[rows] = 4
    table.expect(rows)
    table.learn(rows, 90 + rows)
    return table


def test_decodes_are_laid_out_as_spans_of_the_last_token_would_be() -> None:
    sequences = ((1, 2), (2, 0), (3, 1), (4, 2))
    numbers = tuple(number for number, _ in sequences)
    as_spans, failed = build(
        [Span(n, 4, 1, True, (20 + n,)) for n in numbers], sampled_once(*sequences)
    )
    assert failed == []
    decodes = Decodes(numbers, numbers, tuple(20 + n for n in numbers))
    inputs, failed = build([], sampled_once(*sequences), decodes=decodes)
    assert failed == []
    assert inputs.segments == as_spans.segments
    for name in ("token_ids", "positions", "logit_rows"):
        assert getattr(inputs, name).tolist() == getattr(as_spans, name).tolist()
    assert inputs.sampled.tolist() == as_spans.sampled.tolist()
    assert inputs.tables.tolist() == as_spans.tables.tolist()


def test_a_sequence_that_the_plan_places_elsewhere_fails_alone_where_its_blocks_end() -> None:
    table = sampled_once((1, 0), (2, 0), (3, 0))
    # Sequence 1 grows as it must; the plan takes 2 for one token back, and 3 for one ahead.
    ahead = table.rows_of([3])
    table.extend_blocks(int(ahead[0]), (23,))
    table.computed[ahead] = 5
    table.expect(ahead)
    table.learn(ahead, ahead)
    decodes = Decodes((1, 2, 3), (1, 3), (21, 33))
    inputs, failures = step_inputs((), decodes, table, LIMITS, lambda _: True)
    assert inputs is not None
    assert table.numbers[inputs.table_rows].tolist() == [1]
    told = {failure.sequence: str(failure.error) for failure in failures}
    assert "beyond its blocks" in told[2]
    assert "has blocks to come already" in told[3]


def test_a_sequence_that_grows_without_a_part_in_the_step_is_refused() -> None:
    table = sampled_once((1, 0), (2, 0))
    inputs, failed = build([], table, decodes=Decodes((1,), (1, 2), (21, 22)))
    assert failed == [2]
    assert len(inputs.table_rows) == 1


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(0, 29), st.integers(-2, 40)),
        min_size=1,
        max_size=12,
    )
)
def test_every_span_is_either_computed_or_refused_and_none_twice(
    shapes: list[tuple[int, int, int, int]],
) -> None:
    table = table_of(*((i, [7] * length, slot) for i, (length, slot, _, _) in enumerate(shapes)))
    spans = tuple(
        Span(i, start, count, start + count == length, tuple(range(10 + 20 * i, 18 + 20 * i)))
        for i, (length, _, start, count) in enumerate(shapes)
    )
    inputs, failures = step_inputs(spans, NO_DECODES, table, LIMITS, (1, 2).__contains__)
    computed = [] if inputs is None else table.numbers[inputs.table_rows].tolist()
    refused = [failure.sequence for failure in failures]
    assert sorted(computed + refused) == list(range(len(shapes)))
    fits = [
        count > 0 and start + count <= length and slot != 3 for length, slot, start, count in shapes
    ]
    assert sorted(computed) == [i for i, fit in enumerate(fits) if fit]


def test_rows_are_reused_and_grow_without_mixing_sequences_up() -> None:
    table = SequenceTable(vocabulary=10**6, positions_max=100, sequences_max=10**6)
    for number in range(500):
        table.add(NewSequence(number, (number,), 1, number % 7, GREEDY))
    for number in range(0, 500, 3):
        table.remove(number)
    for number in range(1000, 1100):
        table.add(NewSequence(number, (number,), 1, number % 7, GREEDY))
    alive = [number for number in range(500) if number % 3] + list(range(1000, 1100))
    rows = table.rows_of(alive)
    assert len(set(rows.tolist())) == len(alive) == len(table)
    assert table.numbers[rows].tolist() == alive
    assert table.slot[rows].tolist() == [number % 7 for number in alive]
    assert [int(table.prompt(row)[0]) for row in rows.tolist()] == alive
    assert (table.block_count[rows] == 0).all()
    assert table.rows_of([0, 9999]).tolist() == [-1, -1]


def test_a_sequence_that_leaves_takes_all_that_was_kept_for_its_sampling() -> None:
    table = SamplingTable(vocabulary=100, eos_token_ids=(2,))
    sampling = SamplingParams(
        max_new_tokens=9,
        min_new_tokens=3,
        repetition_penalty=1.5,
        logit_bias=((5, 1.0),),
        logprobs=2,
    )
    table.set(4, sampling, np.array([1, 2, 3]), 2)
    assert (list(table.bias), list(table.end_ids), list(table.history)) == ([4], [4], [4])
    table.drop(4)
    assert (table.bias, table.end_ids, table.history) == ({}, {}, {})
    table.set(4, GREEDY, np.array([1]), 1)
    assert table.needs[4] == 0
