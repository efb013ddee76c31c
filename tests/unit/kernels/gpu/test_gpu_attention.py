"""Attention in Triton against the oracle, over scattered pages whose other cells are NaN."""

import numpy as np
import pytest
import torch

from adex_kernels import reference
from adex_kernels.batch import AttentionBatch
from adex_kernels.gpu.attention import AttentionWork, attention, fill_static, static_words
from adex_kernels.gpu.launch import KEYS_PER_SPLIT

PAGES, LAYERS, LAYER, TOKENS = 220, 2, 1, 16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

# (queries in this step, context so far with them)
MIXES = {
    "decodes": [(1, 1), (1, 90), (1, 16), (1, 17)],
    "long-decodes": [(1, KEYS_PER_SPLIT + 5), (1, 2 * KEYS_PER_SPLIT), (1, 3)],
    "chunks": [(33, 33), (40, 90), (5, 5)],
    "mixed": [(1, 600), (20, 64), (3, 70), (2, 2)],
}
# (heads, kv_heads, head_dim, window, softcap)
SHAPES = {
    "plain": (4, 4, 32, None, None),
    "grouped": (12, 4, 64, None, None),
    "one-key-head": (8, 1, 16, None, 30.0),
    "three-to-one-and-odd": (6, 2, 24, 20, None),
    "capped-window": (4, 2, 40, 7, 5.0),
}


class World:
    """Random keys and values of the mix's sequences, and this step's queries."""

    def __init__(
        self,
        mix: list[tuple[int, int]],
        heads: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        generator = torch.Generator().manual_seed(len(mix))
        free = torch.randperm(PAGES, generator=generator).tolist()
        self.mix = mix
        self.tables = [[free.pop() for _ in range(0, length, TOKENS)] for _, length in mix]
        query_heads, kv_heads, head_dim = heads
        shape = (PAGES, LAYERS, 2, TOKENS, kv_heads, head_dim)
        self.kv = torch.full(shape, float("nan"), dtype=dtype)
        for table, (_, length) in zip(self.tables, mix, strict=True):
            for block, page in enumerate(table):
                cells = min(TOKENS, length - block * TOKENS)
                noise = torch.randn(LAYERS, 2, cells, kv_heads, head_dim, generator=generator)
                self.kv[page, :, :, :cells] = noise.to(dtype)
        rows = sum(queries for queries, _ in mix)
        self.q = torch.randn(rows, query_heads, head_dim, generator=generator).to(dtype)
        self.device = device

    def batch(self, members: list[int], device: torch.device) -> AttentionBatch:
        starts = [0]
        for member in members:
            starts.append(starts[-1] + self.mix[member][0])
        lens = [self.mix[member][1] for member in members]
        tables = [self.tables[member] for member in members]
        return AttentionBatch.build(starts, lens, tables, TOKENS, device=device)

    def attend(self, members: list[int], window: int | None, softcap: float | None) -> torch.Tensor:
        firsts = [sum(n for n, _ in self.mix[:member]) for member in members]
        rows = [f + i for f, m in zip(firsts, members, strict=True) for i in range(self.mix[m][0])]
        q, kv = self.q[rows].to(self.device), self.kv.to(self.device)
        work = AttentionWork.of(self.batch(members, self.device), q.shape[1] // kv.shape[4])
        scale = q.shape[2] ** -0.5
        return attention(q, kv, LAYER, work, scale=scale, window=window, softcap=softcap).cpu()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_attention_equals_the_reference(
    mix: list[tuple[int, int]],
    shape: tuple[int, int, int, int | None, float | None],
    device: torch.device,
) -> None:
    heads, kv_heads, head_dim, window, softcap = shape
    world = World(mix, (heads, kv_heads, head_dim), torch.float32, device)
    everyone = list(range(len(mix)))
    batch = world.batch(everyone, torch.device("cpu"))
    expected = reference.attention(
        world.q, world.kv, LAYER, batch, scale=head_dim**-0.5, window=window, softcap=softcap
    )
    got = world.attend(everyone, window, softcap)
    torch.testing.assert_close(got, expected.flatten(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_as_its_rounding(
    dtype: torch.dtype, device: torch.device
) -> None:
    world = World(MIXES["mixed"], (12, 4, 64), dtype, device)
    everyone = list(range(len(world.mix)))
    batch = world.batch(everyone, torch.device("cpu"))
    expected = reference.attention(world.q, world.kv, LAYER, batch, scale=0.125).flatten(1)
    got = world.attend(everyone, None, None)
    assert float((got.float() - expected.float()).abs().max()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sequences_bits_do_not_depend_on_the_others(
    dtype: torch.dtype, device: torch.device
) -> None:
    world = World(MIXES["mixed"], (6, 2, 24), dtype, device)
    together = world.attend(list(range(len(world.mix))), None, None)
    row = 0
    for member, (queries, _) in enumerate(world.mix):
        assert torch.equal(world.attend([member], None, None), together[row : row + queries])
        row += queries


def test_buffers_filled_anew_serve_step_after_step_with_the_same_bits(device: torch.device) -> None:
    """As a captured step sees them: room for more sequences, and older lines behind the new."""
    sequences = 6
    for_steps = [MIXES["long-decodes"], MIXES["decodes"], [(1, 700)]]
    words = np.full(static_words(sequences), 7, np.int32)
    buffer = torch.empty(len(words), dtype=torch.int32, device=device)
    tables = torch.zeros((sequences, PAGES), dtype=torch.int64, device=device)
    work = AttentionWork.static(buffer, tables, 2)
    for mix in for_steps:
        world = World(mix, (4, 2, 32), torch.float32, device)
        fill_static(words, sequences, [length for _, length in mix], 2)
        buffer.copy_(torch.from_numpy(words))
        for line, pages in enumerate(world.tables):
            tables[line, : len(pages)] = torch.tensor(pages)
        q = torch.zeros((sequences, 4, 32), device=device)
        q[: len(mix)] = world.q
        found = attention(q, world.kv.to(device), LAYER, work, scale=32**-0.5)
        expected = world.attend(list(range(len(mix))), None, None)
        assert torch.equal(found[: len(mix)].cpu(), expected)
