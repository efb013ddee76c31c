"""Every filter and penalty does what transformers' own logits processors do."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from adex_kernels.filters import FilterColumns, candidates
from adex_proto.sampling import SamplingParams
from adex_worker.run.sample import sample
from adex_worker.run.sampling_table import SamplingTable

VOCABULARY = 3000


def random_logits(rows: int, seed: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(rows, VOCABULARY, generator=generator)


def column(*values: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(1)


def filters(
    *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0, rows: int = 1
) -> FilterColumns:
    return FilterColumns(
        column(*[top_k] * rows, dtype=torch.int64),
        column(*[top_p] * rows),
        column(*[min_p] * rows),
        column(*[typical_p] * rows),
    )


def kept_by_us(scores: torch.Tensor, columns: FilterColumns, width: int) -> list[set[int]]:
    """The tokens left in each row, as `sample` finds them: narrow first, then wide."""
    values, token_ids, complete = candidates(scores, columns, width)
    kept = [set(ids[row > -torch.inf].tolist()) for ids, row in zip(token_ids, values, strict=True)]
    for row in (~complete).nonzero().squeeze(1).tolist():
        index = torch.tensor([row])
        values, token_ids, _ = candidates(scores[index], columns.at(index), VOCABULARY)
        kept[row] = set(token_ids[0][values[0] > -torch.inf].tolist())
    return kept


def kept_by_transformers(scores: torch.Tensor, warpers: list[LogitsProcessor]) -> list[set[int]]:
    warped = LogitsProcessorList(warpers)(torch.zeros(len(scores), 1, dtype=torch.int64), scores)
    return [set((row > -torch.inf).nonzero().squeeze(1).tolist()) for row in warped]


def warpers(
    *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, typical_p: float = 1.0
) -> list[LogitsProcessor]:
    chosen: list[LogitsProcessor] = []
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    if min_p:
        chosen.append(MinPLogitsWarper(min_p))
    if typical_p < 1:
        chosen.append(TypicalLogitsWarper(typical_p))
    return chosen


@pytest.mark.parametrize("width", [8, 64, 1024, VOCABULARY])
@pytest.mark.parametrize(
    "wanted",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 200},
        {"top_k": 2 * VOCABULARY},
        {"top_p": 0.01},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"top_p": 0.9999},
        {"min_p": 0.3},
        {"min_p": 1e-4},
        {"min_p": 1.0},
        {"typical_p": 0.1},
        {"typical_p": 0.6},
        {"typical_p": 0.98},
        {"top_k": 40, "top_p": 0.8},
        {"top_k": 1500, "top_p": 0.97, "min_p": 0.001},
        {"top_p": 0.9, "min_p": 0.02, "typical_p": 0.7},
        {"top_k": 50, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [0.3, 3.0, 12.0])
def test_filters_keep_the_tokens_that_transformers_keeps(
    wanted: dict[str, float], width: int, spread: float
) -> None:
    scores = random_logits(4, seed=1, spread=spread)
    ours = kept_by_us(scores, filters(rows=4, **wanted), width)  # type: ignore[arg-type]
    theirs = kept_by_transformers(scores, warpers(**wanted))  # type: ignore[arg-type]
    for mine, witness in zip(ours, theirs, strict=True):
        # A token whose cumulative mass is the bound to the last bit may fall on either side.
        assert len(mine ^ witness) <= 1
        assert mine


def test_rows_with_different_filters_do_not_touch_each_other() -> None:
    scores = random_logits(4, seed=2)
    mixed = FilterColumns(
        column(0, 5, 0, 30, dtype=torch.int64),
        column(0.5, 1, 1, 0.9),
        column(0, 0, 0.1, 0),
        column(1, 1, 1, 0.4),
    )
    ours = kept_by_us(scores, mixed, 64)
    for row, wanted in enumerate(
        (
            {"top_p": 0.5},
            {"top_k": 5},
            {"min_p": 0.1},
            {"top_k": 30, "top_p": 0.9, "typical_p": 0.4},
        )
    ):
        theirs = kept_by_transformers(scores[row : row + 1], warpers(**wanted))  # type: ignore[arg-type]
        assert ours[row] == theirs[0]


def greedy(
    logits: torch.Tensor,
    sampling: SamplingParams,
    token_ids: list[int],
    output_start: int,
    eos: tuple[int, ...] = (),
) -> int:
    """The token that one row's penalties, bias and bans lead to."""
    table = SamplingTable(vocabulary=VOCABULARY, eos_token_ids=eos)
    table.set(0, sampling, np.array(token_ids), output_start)
    generated = np.array([len(token_ids) - output_start])
    sampled = sample(logits.clone(), np.array([0]), generated, table).read()
    assert sampled.finite.all()
    return int(sampled.token_ids[0])


def processed(
    process: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor
) -> tuple[int, float]:
    """The witness's token, and by how much it leads."""
    best = process(logits.clone())[0].topk(2)
    return int(best.indices[0]), float(best.values[0] - best.values[1])


tokens = st.lists(st.integers(0, 30), min_size=1, max_size=40)


@settings(max_examples=60)
@given(tokens, st.floats(0.2, 5.0), st.integers(0, 1000))
def test_the_repetition_penalty_is_transformers(
    token_ids: list[int], penalty: float, seed: int
) -> None:
    logits = random_logits(1, seed)
    logits[:, :31] += 6
    theirs, lead = processed(
        lambda each: RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([token_ids]), each),
        logits,
    )
    sampling = SamplingParams(max_new_tokens=100, repetition_penalty=penalty)
    ours = greedy(logits, sampling, token_ids, output_start=len(token_ids) // 2)
    assert ours == theirs or lead < 1e-4


@settings(max_examples=60)
@given(tokens, st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 1000))
def test_frequency_and_presence_penalties_follow_their_definition(
    token_ids: list[int], frequency: float, presence: float, seed: int
) -> None:
    """The definition of OpenAI's API: logit -= count * frequency + (count > 0) * presence."""
    logits = random_logits(1, seed)
    logits[:, :31] += 6
    start = len(token_ids) // 2
    expected = logits[0].double().numpy().copy()
    for token in range(31):
        count = token_ids[start:].count(token)
        expected[token] -= count * frequency + (count > 0) * presence
    sampling = SamplingParams(
        max_new_tokens=100, frequency_penalty=frequency, presence_penalty=presence
    )
    ours = greedy(logits, sampling, token_ids, start)
    assert expected[ours] == pytest.approx(expected.max(), abs=1e-4)


def test_logit_bias_is_transformers_sequence_bias() -> None:
    logits = random_logits(1, seed=3)
    bias = ((5, 4.0), (17, -100.0), (2999, 9.5), (int(logits.argmax()), -100.0))
    theirs, _ = processed(
        lambda each: SequenceBiasLogitsProcessor([[[t], b] for t, b in bias])(
            torch.tensor([[1]]), each
        ),
        logits,
    )
    ours = greedy(logits, SamplingParams(max_new_tokens=5, logit_bias=bias), [1], 1)
    assert ours == theirs


@pytest.mark.parametrize(("generated", "may_end"), [(0, False), (2, False), (3, True), (9, True)])
def test_ends_are_banned_until_min_new_tokens_as_in_transformers(
    generated: int, may_end: bool
) -> None:
    logits = random_logits(1, seed=4)
    logits[0, 7], logits[0, 8], logits[0, 9] = 90.0, 80.0, 70.0
    token_ids = [1] * 5 + [20] * generated
    process = MinLengthLogitsProcessor(5 + 3, [7, 8])
    theirs, _ = processed(lambda each: process(torch.tensor([token_ids]), each), logits)
    sampling = SamplingParams(max_new_tokens=50, min_new_tokens=3, stop_token_ids=(8,))
    ours = greedy(logits, sampling, token_ids, 5, eos=(7,))
    assert ours == theirs == (7 if may_end else 9)


def test_an_ignored_end_token_may_come_at_any_time() -> None:
    logits = random_logits(1, seed=5)
    logits[0, 7] = 90.0
    sampling = SamplingParams(max_new_tokens=50, min_new_tokens=3, ignore_eos=True)
    assert greedy(logits, sampling, [1], 1, eos=(7,)) == 7


def test_drawing_takes_place_after_temperature_and_filters_in_transformers_order() -> None:
    """Draw often, and see that exactly the tokens transformers leaves are ever drawn."""
    logits = random_logits(1, seed=6, spread=1.0)
    chain = LogitsProcessorList(
        [TemperatureLogitsWarper(0.5), TopKLogitsWarper(20), TopPLogitsWarper(0.7)]
    )
    warped = chain(torch.tensor([[1]]), logits.clone())[0]
    allowed = set((warped > -torch.inf).nonzero().squeeze(1).tolist())
    table = SamplingTable(vocabulary=VOCABULARY, eos_token_ids=())
    draws = 600
    for row in range(draws):
        sampling = SamplingParams(max_new_tokens=5, temperature=0.5, top_k=20, top_p=0.7, seed=row)
        table.set(row, sampling, np.array([1]), 1)
    sampled = sample(
        logits.repeat(draws, 1), np.arange(draws), np.zeros(draws, np.int64), table
    ).read()
    assert set(sampled.token_ids.tolist()) == allowed
