"""Draws follow the distribution, depend on seed and position alone, and survive rounding."""

import math

import numpy as np
import pytest
import torch

from adex_kernels.noise import TAIL, draw_keys, log_exponentials, spread
from adex_proto.sampling import SEED_MAX, SamplingParams
from adex_worker.run.sample import sample
from adex_worker.run.sampling_table import SamplingTable


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """The statistic, in standard deviations above its mean (Wilson and Hilferty's cube root)."""
    freedom = len(counts) - 1
    statistic = float((((counts - expected) ** 2) / expected).sum())
    cube = (statistic / freedom) ** (1 / 3)
    return (cube - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))


def draws(
    logits: torch.Tensor, seeds: np.ndarray, positions: np.ndarray, **sampling: float
) -> np.ndarray:
    """One token for each (seed, position) from the same logits [vocabulary]."""
    table = SamplingTable(vocabulary=len(logits), eos_token_ids=())
    for row, seed in enumerate(seeds.tolist()):
        params = SamplingParams(
            max_new_tokens=10,
            seed=seed,
            **({"temperature": 1.0} | sampling),  # type: ignore[arg-type]
        )
        table.set(row, params, np.array([0]), 1)
    rows = np.arange(len(seeds))
    return sample(logits.repeat(len(seeds), 1), rows, positions, table).read().token_ids


LOGITS = torch.linspace(2.0, -2.0, 40)
DRAWS = 40_000


@pytest.mark.parametrize(
    "seeds_and_positions",
    [
        (np.arange(DRAWS, dtype=np.uint64), np.zeros(DRAWS, np.int64)),
        (np.full(DRAWS, 7, np.uint64), np.arange(DRAWS)),
        (np.arange(DRAWS, dtype=np.uint64) % 200, np.arange(DRAWS) // 200),
        (np.uint64(SEED_MAX) - np.arange(DRAWS, dtype=np.uint64), np.arange(DRAWS)),
    ],
    ids=["seeds", "positions", "both", "largest-seeds"],
)
def test_draws_follow_the_distribution(
    seeds_and_positions: tuple[np.ndarray, np.ndarray],
) -> None:
    drawn = draws(LOGITS, *seeds_and_positions)
    expected = LOGITS.double().softmax(0).numpy() * DRAWS
    assert abs(chi_square(np.bincount(drawn, minlength=40), expected)) < 4


def test_draws_through_filters_follow_what_the_filters_leave() -> None:
    seeds = np.arange(DRAWS, dtype=np.uint64)
    drawn = draws(LOGITS, seeds, np.zeros(DRAWS, np.int64), top_k=12, temperature=1.7)
    counts = np.bincount(drawn, minlength=40)
    assert counts[12:].sum() == 0
    expected = (LOGITS[:12].double() / 1.7).softmax(0).numpy() * DRAWS
    assert abs(chi_square(counts[:12], expected)) < 4


def test_neighbouring_positions_and_seeds_draw_independently() -> None:
    even = torch.zeros(16)
    seeds = np.arange(DRAWS, dtype=np.uint64)
    positions = np.tile([5, 6], DRAWS // 2)
    same_position = np.full(DRAWS, 5)
    for drawn in (draws(even, seeds // 2, positions), draws(even, seeds, same_position)):
        pairs = np.bincount(drawn[::2] * 16 + drawn[1::2], minlength=256)
        assert abs(chi_square(pairs, np.full(256, len(drawn) / 2 / 256))) < 4.5


def test_exponentials_are_of_mean_and_variance_one() -> None:
    keys = torch.from_numpy(draw_keys(np.arange(500, dtype=np.uint64), np.arange(500)))
    noise = log_exponentials(keys, spread(torch.arange(2000)).unsqueeze(0)).exp()
    assert bool((noise > 0).all())
    # One in 2**25 is so slow that float32 calls it infinite.
    assert int(noise.isinf().sum()) <= 2
    noise = noise[noise.isfinite()]
    assert float(noise.mean()) == pytest.approx(1.0, abs=0.004)
    assert float(noise.var()) == pytest.approx(1.0, abs=0.02)


def test_no_two_tokens_share_their_chance() -> None:
    ids = torch.cat((torch.tensor([TAIL]), torch.arange(300_000)))
    assert len(spread(ids).unique()) == len(ids)


def test_draws_from_a_large_vocabulary_follow_the_distribution_into_its_tail() -> None:
    """So large that most tokens run together; their order is shuffled, so that ids say nothing."""
    size, draws_made, parts = 6000, 4000, 24
    shuffled = torch.randperm(size, generator=torch.Generator().manual_seed(3))
    logits = torch.empty(size)
    logits[shuffled] = torch.linspace(4.0, 0.0, size)
    seeds = np.arange(draws_made, dtype=np.uint64)
    drawn = np.concatenate(
        [
            draws(logits, seeds[start : start + 500], np.zeros(500, np.int64))
            for start in range(0, draws_made, 500)
        ]
    )
    rank = torch.empty(size, dtype=torch.int64)
    rank[shuffled] = torch.arange(size)
    part_of = (rank * parts // size).numpy()
    expected = np.bincount(part_of, logits.double().softmax(0).numpy(), parts) * draws_made
    counts = np.bincount(part_of[drawn], minlength=parts)
    assert expected[-1] > 10, "the tail must be drawn from"
    assert abs(chi_square(counts, expected)) < 4


def test_the_same_seed_draws_the_same_alone_and_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(50, 5000, generator=generator)
    table = SamplingTable(vocabulary=5000, eos_token_ids=())
    for row in range(50):
        sampling = SamplingParams(
            max_new_tokens=10,
            temperature=(0.0, 0.5, 1.0, 2.0)[row % 4],
            top_k=(0, 50)[row % 2],
            top_p=(1.0, 0.9, 0.5)[row % 3],
            min_p=(0.0, 0.02)[row // 2 % 2],
            typical_p=(1.0, 0.8)[row // 4 % 2],
            seed=row * 999,
            logprobs=(None, 2)[row % 2],
        )
        table.set(row, sampling, np.array([1]), 1)
    generated = np.arange(50) * 3
    together = sample(logits.clone(), np.arange(50), generated, table).read().token_ids
    for row in range(50):
        index = np.array([row])
        alone = sample(logits[index].clone(), index, generated[index], table).read().token_ids
        assert alone[0] == together[row]


def test_rounding_that_moves_every_logit_hardly_ever_changes_a_draw() -> None:
    """A flat tail of very many tokens, where the inverse transform changes every second draw."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.cat((torch.zeros(1), torch.full((50_000,), -9.0)))
    logits = logits + 0.5 * torch.randn(len(logits), generator=generator)
    moved = logits + 1e-3 * torch.randn(len(logits), generator=generator)
    seeds, positions = np.arange(200, dtype=np.uint64), np.zeros(200, np.int64)
    plain = draws(logits, seeds, positions)
    assert len(set(plain.tolist())) > 100, "the tail must be drawn from"
    changed = int((plain != draws(moved, seeds, positions)).sum())
    uniforms = torch.rand(200, dtype=torch.float64, generator=generator)
    inverse = [
        torch.searchsorted(each.double().softmax(0).cumsum(0), uniforms) for each in (logits, moved)
    ]
    assert changed <= 2
    assert int((inverse[0] != inverse[1]).sum()) > 20


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    table = SamplingTable(vocabulary=100, eos_token_ids=())
    for row, temperature in enumerate((0.0, 1.0, 1.0)):
        params = SamplingParams(max_new_tokens=5, temperature=temperature, seed=row, top_k=row)
        table.set(row, params, np.array([1]), 1)
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(2))
    clean = sample(logits.clone(), np.arange(3), np.zeros(3, np.int64), table).read()
    for bad in range(3):
        for number in (math.nan, math.inf, -math.inf):
            spoiled = logits.clone()
            spoiled[bad, 50] = number
            sampled = sample(spoiled, np.arange(3), np.zeros(3, np.int64), table).read()
            assert sampled.finite.tolist() == [row != bad for row in range(3)]
            others = [row for row in range(3) if row != bad]
            assert (sampled.token_ids[others] == clean.token_ids[others]).all()


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    seeds = np.arange(50, dtype=np.uint64)
    drawn = draws(LOGITS, seeds, np.zeros(50, np.int64), temperature=temperature)
    assert set(drawn.tolist()) == {0}
