"""Drawing in one launch, against torch's way of drawing the same."""

import numpy as np
import pytest
import torch
from torch import Tensor

from adex_kernels import dispatch, draw
from adex_kernels.draw import DrawnRows
from adex_kernels.gpu.draw import draw_
from adex_kernels.gpu.kernels import TritonKernels
from adex_kernels.noise import draw_keys

# Less than a program looks at together, and so large that the most probable run alone.
VOCABULARIES = [7, 3001, 9001]
FILTERS = {
    "none": {},
    "top-k": {"top_k": 40},
    "top-k of one": {"top_k": 1},
    "top-k of more than there are": {"top_k": 2**40},
    "top-p": {"top_p": 0.9},
    "tiny top-p": {"top_p": 1e-6},
    "top-p of nearly all": {"top_p": 0.9999},
    "min-p": {"min_p": 0.05},
    "min-p of one": {"min_p": 1.0},
    "all": {"top_k": 300, "top_p": 0.8, "min_p": 0.002},
    "hot": {"temperature": 3.0, "top_p": 0.5},
    "cold": {"temperature": 1e-3},
}


def rows_of(*wishes: dict[str, float], seed: int = 0) -> DrawnRows:
    """A row of the logits for each wish, in their order."""
    count = len(wishes)

    def reals(name: str, default: float) -> np.ndarray:
        return np.array([wish.get(name, default) for wish in wishes], np.float32)

    return DrawnRows(
        rows=np.arange(count),
        keys=draw_keys(np.arange(count, dtype=np.uint64) + np.uint64(seed), np.arange(count)),
        temperature=reals("temperature", 1.0),
        top_k=np.array([wish.get("top_k", 0) for wish in wishes], np.int64),
        top_p=reals("top_p", 1.0),
        min_p=reals("min_p", 0.0),
        typical_p=reals("typical_p", 1.0),
    )


def by_torch(logits: Tensor, drawn: DrawnRows) -> list[int]:
    chosen = torch.full((len(logits),), -1)
    draw.draw_(chosen, logits.clone(), ~logits.isnan().any(1), drawn)
    return chosen.tolist()


def in_one_launch(logits: Tensor, drawn: DrawnRows, device: torch.device) -> list[int]:
    there = logits.to(device, copy=True)
    chosen = torch.full((len(logits),), -1, device=device)
    draw_(chosen, there, ~there.isnan().any(1), drawn)
    return chosen.tolist()


def random_logits(rows: int, size: int, spread: float = 3.0, seed: int = 0) -> Tensor:
    return spread * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", VOCABULARIES)
def test_the_choice_is_that_of_torch(size: int, device: torch.device) -> None:
    wishes = [*FILTERS.values()] * 2
    logits, drawn = random_logits(len(wishes), size), rows_of(*wishes, seed=size)
    chosen, expected = in_one_launch(logits, drawn, device), by_torch(logits, drawn)
    assert not [each for each in zip(wishes, chosen, expected, strict=True) if each[1] != each[2]]


def test_the_choice_is_that_of_torch_for_any_mix_of_filters(device: torch.device) -> None:
    random = np.random.default_rng(7)
    wishes = [
        {
            "temperature": random.choice([0.2, 0.7, 1.0, 1.6]),
            "top_k": random.choice([0, 0, 3, 60, 900, 3000]),
            "top_p": random.choice([1.0, 0.97, 0.8, 0.3]),
            "min_p": random.choice([0.0, 0.0, 0.001, 0.1]),
        }
        for _ in range(40)
    ]
    logits, drawn = random_logits(len(wishes), 3333), rows_of(*wishes)
    chosen, expected = in_one_launch(logits, drawn, device), by_torch(logits, drawn)
    assert not [each for each in zip(wishes, chosen, expected, strict=True) if each[1] != each[2]]


def test_the_choice_is_that_of_torch_from_the_vocabulary_of_llama_3(device: torch.device) -> None:
    wishes = FILTERS["none"], FILTERS["top-p"], FILTERS["all"]
    logits, drawn = random_logits(3, 128_256), rows_of(*wishes)
    assert in_one_launch(logits, drawn, device) == by_torch(logits, drawn)


def test_what_is_far_behind_is_drawn_as_torch_draws_it(device: torch.device) -> None:
    """Nearly flat rows, of which most draws fall to tokens beyond those that run alone."""
    logits, drawn = random_logits(20, 6001, spread=0.3), rows_of(*[{}] * 20)
    chosen = in_one_launch(logits, drawn, device)
    assert chosen == by_torch(logits, drawn)
    ranks = (logits > logits.gather(1, torch.tensor(chosen).unsqueeze(1))).sum(1)
    assert int((ranks > draw.HEAD).sum()) > 5, "the tail must be drawn from"


@pytest.mark.parametrize("size", [50, 6001])
def test_tokens_as_probable_as_each_other_are_kept_and_left_together(
    size: int, device: torch.device
) -> None:
    """As logits of bfloat16 are, and rows that are all the same."""
    even = torch.zeros(len(FILTERS), size)
    coarse = (2 * random_logits(len(FILTERS), size)).round() / 2
    for logits in (even, coarse):
        drawn = rows_of(*FILTERS.values())
        assert in_one_launch(logits, drawn, device) == by_torch(logits, drawn)


@pytest.mark.parametrize("allowed", [1, 5, 1024, 1500])
def test_forbidden_tokens_never_come(allowed: int, device: torch.device) -> None:
    logits = random_logits(len(FILTERS), 6001)
    order = logits.argsort(1)
    logits.scatter_(1, order[:, allowed:], float("-inf"))
    drawn = rows_of(*FILTERS.values(), seed=allowed)
    chosen = in_one_launch(logits, drawn, device)
    assert chosen == by_torch(logits, drawn)
    assert all(float(row[token]) > -np.inf for row, token in zip(logits, chosen, strict=True))


def test_a_row_that_is_not_finite_gets_a_token_and_the_others_their_own(
    device: torch.device,
) -> None:
    logits, drawn = random_logits(3, 500), rows_of({}, {"top_p": 0.9}, {"top_k": 5})
    expected = in_one_launch(logits, drawn, device)
    logits[1, 77] = float("nan")
    chosen = in_one_launch(logits, drawn, device)
    assert chosen[::2] == expected[::2]
    assert 0 <= chosen[1] < 500


def test_only_the_rows_that_are_drawn_are_touched(device: torch.device) -> None:
    logits = random_logits(5, 300)
    drawn = rows_of(*[FILTERS["all"]] * 5).at(np.array([3, 1]))
    there = logits.to(device, copy=True)
    chosen = torch.full((5,), -1, device=device)
    draw_(chosen, there, ~there.isnan().any(1), drawn)
    expected = by_torch(logits, rows_of(*[FILTERS["all"]] * 5))
    assert chosen.tolist() == [-1, expected[1], -1, expected[3], -1]
    assert torch.equal(there[::2].cpu(), logits[::2])


def test_typical_rows_are_left_to_torch_and_no_others(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[int] = []

    class Counted(TritonKernels):
        def draw_(self, chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None:
            launched.extend(drawn.rows.tolist())
            super().draw_(chosen, logits, finite, drawn)

    monkeypatch.setattr(dispatch, "_KERNELS", {device.type: Counted()})
    logits = random_logits(3, 500)
    drawn = rows_of({"top_p": 0.9}, {"typical_p": 0.5}, {})
    chosen = torch.full((3,), -1, device=device)
    dispatch.draw_(chosen, logits.to(device, copy=True), logits.sum(1).isfinite().to(device), drawn)
    assert chosen.tolist() == by_torch(logits, drawn)
    assert launched == [0, 2]
