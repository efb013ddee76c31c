"""Any step's rows are each attended once, and as the reference attends them."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_kernels import dispatch, reference
from adex_kernels.batch import AttentionBatch

BLOCK_TOKENS, KV_HEADS, HEADS, HEAD_DIM = 4, 1, 2, 4

# (tokens in this step, positions before it)
spans = st.tuples(st.one_of(st.just(1), st.integers(1, 80)), st.integers(0, 60))
steps = st.lists(spans, min_size=1, max_size=7)


def batch_of(step: list[tuple[int, int]]) -> AttentionBatch:
    starts, lens, tables, page = [0], [], [], 0
    for tokens, before in step:
        starts.append(starts[-1] + tokens)
        lens.append(before + tokens)
        blocks = -(-lens[-1] // BLOCK_TOKENS)
        tables.append(list(range(page + blocks - 1, page - 1, -1)))
        page += blocks
    return AttentionBatch.build(starts, lens, tables, BLOCK_TOKENS)


@given(step=steps)
def test_every_row_is_in_one_group_and_padding_at_most_doubles_it(
    step: list[tuple[int, int]],
) -> None:
    batch = batch_of(step)
    rows: list[int] = []
    for group in batch.groups:
        padded = group.sequences * group.queries
        if group.rows is None or group.targets is None:
            rows += range(group.row_start, group.row_start + padded)
        else:
            rows += group.targets.tolist()
            assert padded < 2 * len(group.targets)
    assert sorted(rows) == list(range(batch.query_starts[-1]))


@given(step=steps)
def test_every_row_writes_a_cell_of_its_own(step: list[tuple[int, int]]) -> None:
    batch = batch_of(step)
    cells = set(zip(batch.write_pages.tolist(), batch.write_offsets.tolist(), strict=True))
    assert len(cells) == batch.query_starts[-1]


@settings(max_examples=25)
@given(step=steps, window=st.one_of(st.none(), st.integers(1, 150)), seed=st.integers(0, 99))
def test_attention_of_any_step_equals_the_reference(
    step: list[tuple[int, int]], window: int | None, seed: int
) -> None:
    batch = batch_of(step)
    generator = torch.Generator().manual_seed(seed)
    pages = int(batch.block_tables.max()) + 1
    kv = torch.randn(pages, 1, 2, BLOCK_TOKENS, KV_HEADS, HEAD_DIM, generator=generator)
    q = torch.randn(batch.query_starts[-1], HEADS, HEAD_DIM, generator=generator)
    found = dispatch.attention(q, kv, 0, batch, scale=0.5, window=window)
    expected = reference.attention(q, kv, 0, batch, scale=0.5, window=window)
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-4, atol=1e-5)
