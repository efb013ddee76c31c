"""A worker process, driven over its wire, says what transformers and PEFT say, token by token."""

from dataclasses import replace
from typing import Any

import pytest

from adex_proto.adapter import Tier
from adex_proto.errors import ProtocolViolation
from adex_proto.sampling import SamplingParams
from adex_scheduler.testing.hand import Hand, Job

LENGTHS = (1, 5, 16, 17, 33, 47, 64, 90)
GREEDY = SamplingParams(max_new_tokens=12)


async def test_prefill_and_decode_with_two_plans_in_flight_equal_greedy_generation(
    world: Any, hand: Hand
) -> None:
    prompts = [world.prompt(length, seed) for seed, length in enumerate(LENGTHS)]
    results = await hand.generate([Job(prompt) for prompt in prompts])
    sure_total = 0
    for prompt, result in zip(prompts, results, strict=True):
        tokens, sure = world.reference.greedy(prompt)
        assert result.error is None
        assert result.token_ids[:sure] == tokens[:sure]
        sure_total += sure
    assert sure_total > 0.9 * 12 * len(prompts), "the comparison must not be empty"


async def test_every_kind_of_adapter_in_one_batch_equals_peft_one_at_a_time(
    world: Any, hand: Hand, adapter_names: list[str]
) -> None:
    jobs, witnesses = [], []
    for index, name in enumerate(adapter_names):
        version = await hand.fetch(world.key(name))
        await hand.page_in(version, slot=index + 1)
        prompt = world.prompt(LENGTHS[index % len(LENGTHS)], seed=100 + index)
        jobs.append(Job(prompt, slot=index + 1, chunks=(3, 13, 1, 29)))
        witnesses.append((prompt, world.adapters / name))
        if index % 3 == 0:
            jobs.append(Job(prompt, chunks=(11,)))
            witnesses.append((prompt, None))
    assert len(adapter_names) >= 14
    results = await hand.generate(jobs, step_tokens=61)
    sure_total = 0
    for (prompt, adapter), result in zip(witnesses, results, strict=True):
        tokens, sure = world.reference.greedy(prompt, adapter)
        assert result.error is None
        assert result.token_ids[:sure] == tokens[:sure], adapter
        sure_total += sure
    assert sure_total > 0.9 * 12 * len(jobs), "the comparison must not be empty"


async def test_adapters_change_what_is_said(world: Any, hand: Hand) -> None:
    version = await hand.fetch(world.key("rank-8-all"))
    await hand.page_in(version, slot=3)
    prompt = world.prompt(20, seed=7)
    base, adapted = await hand.generate([Job(prompt), Job(prompt, slot=3)])
    assert base.token_ids != adapted.token_ids


async def test_an_adapter_evicted_and_paged_in_again_elsewhere_says_the_same(
    world: Any, hand: Hand
) -> None:
    version = await hand.fetch(world.key("rank-12-all"))
    wish = [Job(world.prompt(25, seed=8), slot=2, sampling=replace(GREEDY, logprobs=5))]
    first_page = await hand.page_in(version, slot=2)
    [before] = await hand.generate(wish)
    await hand.evict(version)
    await hand.evict(version, Tier.HOST)
    other = await hand.fetch(world.key("rank-64-all"))
    await hand.page_in(other, slot=2)
    [between] = await hand.generate(wish)
    await hand.evict(other)
    second_page = await hand.page_in(version, slot=2)
    [after] = await hand.generate(wish)
    assert first_page != second_page
    assert after.token_ids == before.token_ids != between.token_ids
    assert [token.logprob for token in after.tokens] == [token.logprob for token in before.tokens]


async def test_a_slot_without_an_adapter_never_yields_a_token(world: Any, hand: Hand) -> None:
    version = await hand.fetch(world.key("rank-4-mlp"))
    await hand.page_in(version, slot=1)
    prompt = world.prompt(20, seed=9)
    nowhere, base, resident = await hand.generate(
        [Job(prompt, slot=77), Job(prompt), Job(prompt, slot=1)]
    )
    assert nowhere.tokens == []
    assert isinstance(nowhere.error, ProtocolViolation)
    assert base.token_ids == world.reference.greedy(prompt)[0]
    assert len(resident.tokens) == GREEDY.max_new_tokens
    await hand.evict(version)
    [evicted] = await hand.generate([Job(prompt, slot=1)])
    assert evicted.tokens == []
    assert isinstance(evicted.error, ProtocolViolation)


async def test_seeded_text_is_the_same_alone_and_in_any_batch(world: Any, hand: Hand) -> None:
    versions = [await hand.fetch(world.key(name)) for name in ("rank-1-all", "rank-64-all")]
    for slot, version in enumerate(versions, 1):
        await hand.page_in(version, slot)
    wishes = [
        Job(
            world.prompt(5 + 7 * seed, seed=seed),
            slot=seed % 3,
            sampling=SamplingParams(
                max_new_tokens=10,
                temperature=0.7 + 0.1 * seed,
                top_k=(0, 20, 0, 50)[seed % 4],
                top_p=(1.0, 1.0, 0.9, 0.8)[seed % 4],
                frequency_penalty=(0.0, 0.5)[seed % 2],
                seed=1000 + seed,
            ),
            chunks=(2 + seed,),
        )
        for seed in range(9)
    ]
    together = await hand.generate(wishes, step_tokens=40)
    for wish, result in zip(wishes, together, strict=True):
        [alone] = await hand.generate([wish])
        assert result.token_ids == alone.token_ids


async def test_logprobs_are_those_of_the_models_own_distribution(world: Any, hand: Hand) -> None:
    prompt = world.prompt(18, seed=11)
    sampling = SamplingParams(
        max_new_tokens=6, logprobs=3, temperature=1.3, seed=5, logit_bias=((40, 30.0),)
    )
    [result] = await hand.generate([Job(prompt, sampling=sampling)])
    known = list(prompt)
    for token in result.tokens:
        witness = world.reference.logits(known).log_softmax(0)
        assert token.logprob == pytest.approx(float(witness[token.token_id]), abs=1e-4)
        top = witness.topk(3)
        assert [p for _, p in token.alternatives] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [t for t, _ in token.alternatives] == top.indices.tolist()
        known.append(token.token_id)


async def test_a_prompts_scores_are_those_of_the_models_own_distribution(
    world: Any, hand: Hand
) -> None:
    version = await hand.fetch(world.key("rank-8-all"))
    await hand.page_in(version, slot=1)
    prompt = world.prompt(40, seed=12)
    scored = replace(GREEDY, max_new_tokens=3, prompt_logprobs=2)
    plain, chunked, adapted, unscored = await hand.generate(
        [
            Job(prompt, sampling=scored),
            Job(prompt, sampling=scored, chunks=(1, 7, 30)),
            Job(prompt, slot=1, sampling=scored),
            Job(prompt, sampling=GREEDY),
        ]
    )
    assert unscored.scores == []
    assert unscored.token_ids[:3] == plain.token_ids
    for result, adapter in (
        (plain, None),
        (chunked, None),
        (adapted, world.adapters / "rank-8-all"),
    ):
        assert len(result.scores) == len(prompt) - 1
        every = world.reference.all_logits(prompt, adapter).log_softmax(1)
        for place, (score, witness) in enumerate(zip(result.scores, every, strict=False), 1):
            assert score.logprob == pytest.approx(float(witness[prompt[place]]), abs=1e-4)
            top = witness.topk(2)
            assert [p for _, p in score.alternatives] == pytest.approx(
                top.values.tolist(), abs=1e-4
            )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"repetition_penalty": 4.0}, {"repetition_penalty": 4.0}),
        ({"repetition_penalty": 0.7}, {"repetition_penalty": 0.7}),
        (
            {"logit_bias": ((9, 50.0),), "repetition_penalty": 3.0},
            {"sequence_bias": [[[9], 50.0]], "repetition_penalty": 3.0},
        ),
    ],
    ids=str,
)
async def test_greedy_text_under_penalties_and_bias_is_that_of_transformers_generate(
    world: Any, hand: Hand, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    prompts = [world.prompt(length, seed=50 + length) for length in (3, 20, 41)]
    sampling = SamplingParams(max_new_tokens=16, **ours)
    results = await hand.generate([Job(prompt, sampling=sampling) for prompt in prompts])
    plain = await hand.generate([Job(prompt, sampling=GREEDY) for prompt in prompts])
    changed = False
    for prompt, result, without in zip(prompts, results, plain, strict=True):
        assert result.token_ids == world.reference.generate(prompt, 16, **theirs)
        changed |= result.token_ids[:12] != without.token_ids
    assert changed, "the penalty must matter"


async def test_frequency_and_presence_count_what_was_generated_as_it_is_generated(
    world: Any, hand: Hand
) -> None:
    """Penalties near their limit on a biased token: it comes until they outweigh the bias."""
    prompt = [9] * 10
    sampling = SamplingParams(
        max_new_tokens=12, frequency_penalty=2.0, presence_penalty=1.0, logit_bias=((9, 12.0),)
    )
    [result] = await hand.generate([Job(prompt, sampling=sampling)])
    known, counts = list(prompt), dict[int, int]()
    for token_id in result.token_ids:
        logits = world.reference.logits(known).clone()
        logits[9] += 12.0
        for token, count in counts.items():
            logits[token] -= 2.0 * count + 1.0
        assert float(logits.max() - logits[token_id]) < 1e-3
        counts[token_id] = counts.get(token_id, 0) + 1
        known.append(token_id)
    assert 1 < counts[9] < 12
