"""The fast path against the oracle: on mixed batches, and on each sequence alone."""

import pytest
import torch
from torch import Tensor

from adex_kernels import dispatch, reference
from adex_kernels.batch import AttentionBatch, GroupWeights, LoraBatch
from adex_kernels.linear import linear, packed

HEADS, KV_HEADS, HEAD_DIM, LAYERS, BLOCK_TOKENS, PAGES = 6, 2, 8, 2, 4, 200
LAYER = 1

# (tokens in this step, context so far with them); the long ones are attended alone.
MIXES = {
    "one-decode": [(1, 9)],
    "equal-decodes": [(1, 9), (1, 10), (1, 12)],
    "decodes-of-all-lengths": [(1, 1), (1, 90), (1, 4), (1, 33), (1, 5)],
    "whole-prompts": [(5, 5), (6, 6), (1, 1), (70, 70)],
    "chunks": [(5, 20), (70, 100), (3, 3), (8, 31)],
    "decodes-between-chunks": [(1, 40), (5, 20), (1, 3), (7, 7), (1, 41), (66, 90), (1, 1)],
}

each_mix = pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())


def starts_of(mix: list[tuple[int, int]]) -> list[int]:
    starts = [0]
    for tokens, _ in mix:
        starts.append(starts[-1] + tokens)
    return starts


class World:
    """Keys and values of a few sequences on scattered pages; every other cell is NaN."""

    def __init__(self, mix: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(len(mix))
        self.mix = mix
        free = torch.randperm(PAGES).tolist()
        self.tables = [[free.pop() for _ in range(0, c, BLOCK_TOKENS)] for _, c in mix]
        self.kv = torch.full(
            (PAGES, LAYERS, 2, BLOCK_TOKENS, KV_HEADS, HEAD_DIM), float("nan"), dtype=dtype
        )
        former = [c - n for n, c in mix]
        self.rows = sum(n for n, _ in mix)
        self.batch = self.batch_of(range(len(mix)))
        if any(former):
            older = [i for i, n in enumerate(former) if n]
            starts = starts_of([(former[i], 0) for i in older])
            past = AttentionBatch.build(
                starts, [former[i] for i in older], [self.tables[i] for i in older], BLOCK_TOKENS
            )
            dispatch.clear_fresh_(self.kv, past)
            k, v = torch.randn(2, starts[-1], KV_HEADS, HEAD_DIM).to(dtype)
            reference.kv_write_(self.kv, LAYER, k, v, past)
        self.q = torch.randn(self.rows, HEADS, HEAD_DIM).to(dtype) * 2
        self.k, self.v = torch.randn(2, self.rows, KV_HEADS, HEAD_DIM).to(dtype)

    def batch_of(self, members: "range | list[int]") -> AttentionBatch:
        mix = [self.mix[i] for i in members]
        tables = [self.tables[i] for i in members]
        return AttentionBatch.build(starts_of(mix), [c for _, c in mix], tables, BLOCK_TOKENS)

    def write(self) -> None:
        dispatch.clear_fresh_(self.kv, self.batch)
        reference.kv_write_(self.kv, LAYER, self.k, self.v, self.batch)


@each_mix
def test_keys_and_values_go_where_the_reference_puts_them(mix: list[tuple[int, int]]) -> None:
    world = World(mix)
    expected = world.kv.clone()
    reference.kv_write_(expected, LAYER, world.k, world.v, world.batch)
    dispatch.kv_write_(world.kv, LAYER, world.k, world.v, world.batch)
    assert torch.equal(world.kv.nan_to_num(), expected.nan_to_num())


@each_mix
@pytest.mark.parametrize(("rotary_dim", "norms"), [(8, False), (8, True), (4, True)])
def test_heads_are_normed_turned_and_stored_as_the_reference_does(
    mix: list[tuple[int, int]], rotary_dim: int, norms: bool
) -> None:
    world = World(mix)
    heads = torch.cat((world.q, world.k, world.v), 1)
    angles = torch.rand(world.rows, 1, rotary_dim // 2) * 6
    cos, sin = angles.cos(), angles.sin()
    rotation = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    norm = torch.rand(HEADS + KV_HEADS, HEAD_DIM) if norms else None
    expected_kv = world.kv.clone()
    expected = reference.rotate_write_(
        heads, rotation, expected_kv, LAYER, world.batch, query_heads=HEADS, norm=norm, eps=1e-3
    )
    found = dispatch.rotate_write_(
        heads, rotation, world.kv, LAYER, world.batch, query_heads=HEADS, norm=norm, eps=1e-3
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(world.kv, expected_kv, equal_nan=True)


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_norms_equal_the_reference(dtype: torch.dtype, wide: bool, adds: bool) -> None:
    torch.manual_seed(1)
    hidden, out = torch.randn(2, 4, 40).to(dtype)
    weight = torch.rand(40) + (0.5 if wide else 0)
    weight = weight if wide else weight.to(dtype)
    sums = hidden.clone(), hidden.clone()
    expected = reference.add_norm_(sums[0], out if adds else None, weight, 1e-4)
    found = dispatch.add_norm_(sums[1], out if adds else None, weight, 1e-4)
    torch.testing.assert_close(
        found, expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-6
    )
    assert torch.equal(*sums)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_gates_equal_the_reference(activation: str) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 24) * 2
    expected = reference.gate(x, activation)
    torch.testing.assert_close(dispatch.gate(x, activation), expected, rtol=1e-5, atol=1e-6)


@each_mix
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 1, 6, 64])
def test_attention_equals_the_reference_whatever_other_pages_hold(
    mix: list[tuple[int, int]], window: int | None, softcap: float | None
) -> None:
    world = World(mix)
    world.write()
    options = {"scale": 0.3, "window": window, "softcap": softcap}
    expected = reference.attention(world.q, world.kv, LAYER, world.batch, **options)
    found = dispatch.attention(world.q, world.kv, LAYER, world.batch, **options)
    torch.testing.assert_close(found, expected.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_attention_in_half_precision_stays_within_its_rounding(
    dtype: torch.dtype, softcap: float | None
) -> None:
    world = World(MIXES["decodes-between-chunks"], dtype)
    world.write()
    options = {"scale": 0.3, "window": 12, "softcap": softcap}
    expected = reference.attention(world.q, world.kv, LAYER, world.batch, **options)
    found = dispatch.attention(world.q, world.kv, LAYER, world.batch, **options)
    torch.testing.assert_close(found, expected.flatten(1), rtol=0.03, atol=0.03)


@each_mix
def test_a_sequence_in_a_batch_is_attended_as_it_is_alone(mix: list[tuple[int, int]]) -> None:
    world = World(mix)
    world.write()
    together = dispatch.attention(world.q, world.kv, LAYER, world.batch, scale=0.3, window=30)
    starts = starts_of(mix)
    for sequence in range(len(mix)):
        rows = slice(starts[sequence], starts[sequence + 1])
        batch = world.batch_of([sequence])
        alone = dispatch.attention(world.q[rows], world.kv, LAYER, batch, scale=0.3, window=30)
        torch.testing.assert_close(together[rows], alone, rtol=1e-5, atol=1e-6)


def test_a_table_given_as_a_tensor_may_be_padded_with_anything() -> None:
    world = World(MIXES["decodes-of-all-lengths"])
    world.write()
    expected = dispatch.attention(world.q, world.kv, LAYER, world.batch, scale=0.3)
    unused = next(p for p in range(PAGES) if not any(p in table for table in world.tables))
    table = torch.full((len(world.tables), 40), unused)
    for row, pages in zip(table, world.tables, strict=True):
        row[: len(pages)] = torch.tensor(pages)
    lens = [c for _, c in world.mix]
    batch = AttentionBatch.build(world.batch.query_starts, lens, table, BLOCK_TOKENS)
    found = dispatch.attention(world.q, world.kv, LAYER, batch, scale=0.3)
    torch.testing.assert_close(found, expected)


class Slots:
    """Adapters of different ranks and modules in three slots; slot 3 has nothing in this group."""

    def __init__(self, in_features: int, dtype: torch.dtype) -> None:
        torch.manual_seed(11)
        self._weights: dict[int, GroupWeights] = {}
        parts = {1: ((0, 2, 0, 8), (2, 5, 8, 12)), 2: ((0, 7, 8, 12),)}
        for slot, spans in parts.items():
            slices = tuple((*s, torch.randn(s[1] - s[0], s[3] - s[2]).to(dtype)) for s in spans)
            rank_total = spans[-1][1]
            self._weights[slot] = GroupWeights(
                torch.randn(rank_total, in_features).to(dtype), slices
            )

    def record(self, slot: int) -> None:
        """Torch's path is what is looked at here."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        assert (layer, group) == (LAYER, 2)
        return self._weights.get(slot)


# Thin and wide segments, in one slot and in several; rows 4, 5 and 14 are the base model's.
SEGMENTS = [(0, 1, 1), (1, 4, 2), (6, 7, 3), (7, 13, 1), (13, 14, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_rank_terms_equal_the_reference_and_leave_base_rows_alone(dtype: torch.dtype) -> None:
    slots = Slots(10, dtype)
    x, y = torch.randn(15, 10).to(dtype), torch.randn(15, 14).to(dtype)
    expected, found = y.clone(), y.clone()
    lora = LoraBatch(SEGMENTS, slots)
    reference.lora_add_(expected, x, lora, LAYER, 2)
    dispatch.lora_add_(found, x, lora, LAYER, 2)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    untouched = [4, 5, 6, 14]
    assert torch.equal(found[untouched], y[untouched])
    assert torch.equal(found[:, 12:], y[:, 12:])


def test_low_rank_terms_go_into_a_part_of_a_wider_tensor() -> None:
    slots = Slots(10, torch.float32)
    x, wide = torch.randn(15, 10), torch.randn(15, 40)
    expected, found = wide.clone(), wide.clone()
    lora = LoraBatch(SEGMENTS, slots)
    reference.lora_add_(expected[:, 20:34], x, lora, LAYER, 2)
    dispatch.lora_add_(found[:, 20:34], x, lora, LAYER, 2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def rows_through(slot: int, x: Tensor, y: Tensor, slots: Slots) -> Tensor:
    answer = y.clone()
    reference.lora_add_(answer, x, LoraBatch([(0, len(x), slot)], slots), LAYER, 2)
    return answer


def test_each_row_goes_through_its_own_adapter() -> None:
    slots = Slots(10, torch.float32)
    x, y = torch.randn(14, 10), torch.randn(14, 14)
    found = y.clone()
    dispatch.lora_add_(found, x, LoraBatch(SEGMENTS, slots), LAYER, 2)
    for start, stop, slot in SEGMENTS:
        alone = rows_through(slot, x[start:stop], y[start:stop], slots)
        torch.testing.assert_close(found[start:stop], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 4, 70])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_packed_weight_gives_the_product_of_the_plain_one(
    dtype: torch.dtype, biased: bool, rows: int
) -> None:
    torch.manual_seed(5)
    weight, x = torch.randn(40, 24).to(dtype), torch.randn(rows, 24).to(dtype)
    bias = torch.randn(40).to(dtype) if biased else None
    found = linear(x, packed(weight), bias)
    exact = x.double() @ weight.double().T
    expected = (exact if bias is None else exact + bias.double()).to(dtype)
    assert found.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
