"""However sequences are batched, cut, placed and adapted, each says what it says alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adex_kernels.layout import Module
from adex_proto.adapter import AdapterKey
from adex_proto.errors import ProtocolViolation, StepFailed
from adex_proto.outcome import SampledToken, WorkerInfo
from adex_proto.plan import Decodes, NewSequence, Span, StepPlan
from adex_proto.sampling import SamplingParams
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model
from adex_worker.run.runner import Runner
from adex_worker.testing import adapter_store, tiny_model, write_random_adapter

PAGES, BLOCK_TOKENS, LENGTH = 400, 16, 5
SLOTS = 5
# Sums in another order may swap tokens whose log probabilities are this close.
MARGIN = 1e-3


@dataclass(slots=True)
class Bench:
    """A runner over a tiny model with adapters in slots 1 to SLOTS."""

    runner: Runner
    decoder: Decoder
    arena: Arena
    first_free_page: int


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder: Path = tmp_path_factory.mktemp("bench")
    decoder = load_model(tiny_model(folder / "model"), dtype="float32")
    spec = decoder.spec
    page_bytes = kv_page_bytes(
        BLOCK_TOKENS, spec.layers, spec.kv_heads, spec.head_dim, decoder.dtype
    )
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=decoder.dtype, device="cpu")
    store = adapter_store(
        cache_dir=folder / "cache",
        roots=[folder],
        shape=spec.shape,
        dtype=decoder.dtype,
        arena=arena,
        host_bytes=1 << 26,
        disk_bytes=1 << 26,
        rank_max=64,
    )
    kinds = [(1, list(Module)), (8, list(Module)), (64, [Module.Q, Module.V])]
    kinds += [(5, [Module.DOWN]), (16, [Module.GATE, Module.O])]
    page = 0
    for slot, (rank, modules) in enumerate(kinds, 1):
        write_random_adapter(folder / str(slot), spec.shape, rank=rank, modules=modules, seed=slot)
        version = store.fetch(AdapterKey("", "local", str(slot)))
        store.stage(version.digest)
        pages = arena.pages_for(version.bundle_bytes)
        store.page_in(version.digest, slot, page, pages)
        page += pages
    info = WorkerInfo(
        *("tiny", spec.architecture, "float32", "cpu", spec.layers, spec.vocabulary),
        *(spec.positions_max, BLOCK_TOKENS, page_bytes, PAGES, 64, 1 << 26, 1 << 26, 64),
        *(256, 32, spec.eos_token_ids),
    )
    kv = arena.kv(
        layers=spec.layers,
        block_tokens=BLOCK_TOKENS,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )
    return Bench(Runner(decoder, kv, arena, store.slots, info), decoder, arena, page)


@dataclass(frozen=True, slots=True)
class Wish:
    """One sequence: what it says depends on these and on nothing else."""

    seed: int
    length: int
    slot: int
    sampling: SamplingParams

    @property
    def prompt(self) -> tuple[int, ...]:
        return tuple(Random(self.seed).choices(range(3, 256), k=self.length))


SAMPLINGS = st.builds(
    SamplingParams,
    max_new_tokens=st.just(LENGTH),
    min_new_tokens=st.sampled_from([0, 3]),
    temperature=st.sampled_from([0.0, 0.0, 0.6, 1.2]),
    top_k=st.sampled_from([0, 0, 10]),
    top_p=st.sampled_from([1.0, 0.9]),
    typical_p=st.sampled_from([1.0, 0.9]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**64 - 1),
    logprobs=st.just(2),
)
WISHES = st.builds(
    Wish, st.integers(0, 10**6), st.integers(1, 90), st.integers(0, SLOTS), SAMPLINGS
)


def run(bench: Bench, wishes: Sequence[Wish], random: Random) -> list[list[SampledToken]]:
    """Run the wishes together; `random` chooses chunks, pages, arrival and order within plans."""
    bench.runner.forget_all()
    pages = list(range(bench.first_free_page, PAGES))
    random.shuffle(pages)
    starts = [0] * len(wishes)
    held = [0] * len(wishes)
    said: list[list[SampledToken]] = [[] for _ in wishes]
    waiting = list(range(len(wishes)))
    random.shuffle(waiting)
    here: list[int] = []
    step = 0
    while waiting or here:
        arriving = [waiting.pop() for _ in range(min(len(waiting), random.randint(1, 4)))]
        here += arriving
        spans, decoding, finished = [], [], []
        grown: dict[int, int] = {}
        for index in random.sample(here, random.randint(1, len(here))):
            left = wishes[index].length - starts[index]
            count = random.randint(1, min(left, 40)) if left > 0 else 1
            needed = -(-(starts[index] + count) // BLOCK_TOKENS) - held[index]
            blocks = tuple(pages.pop() for _ in range(needed))
            held[index] += needed
            # What a decode says in short may as well be said as a span.
            if left <= 0 and random.random() < 0.7:
                decoding.append(index)
                grown.update((index, page) for page in blocks)
            else:
                spans.append(Span(index, starts[index], count, left - count <= 0, blocks))
            starts[index] += count
        new = tuple(
            NewSequence(i, wishes[i].prompt, wishes[i].length, wishes[i].slot, wishes[i].sampling)
            for i in arriving
        )
        decodes = Decodes(tuple(decoding), tuple(grown), tuple(grown.values()))
        outcome = bench.runner.run(StepPlan(step, new, tuple(spans), (), decodes))
        assert outcome.failures == ()
        for token in outcome.tokens:
            said[token.sequence].append(token)
        finished = [index for index in here if len(said[index]) == LENGTH]
        bench.runner.run(StepPlan(step, (), (), tuple(finished)))
        here = [index for index in here if index not in finished]
        step += 1
    assert bench.runner.statistics().sequences == 0
    return said


def assert_same(one: list[SampledToken], other: list[SampledToken], *, greedy: bool) -> None:
    """Equal until a choice was a tie: after that the two are different sequences."""
    for mine, theirs in zip(one, other, strict=True):
        first, second = (p for _, p in mine.alternatives)
        if greedy and mine.token_id != theirs.token_id and first - second < MARGIN:
            return
        assert mine.token_id == theirs.token_id
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wishes=st.lists(WISHES, min_size=1, max_size=8), random=st.randoms(use_true_random=False))
def test_a_mixed_batch_equals_each_sequence_alone(
    bench: Bench, wishes: list[Wish], random: Random
) -> None:
    together = run(bench, wishes, random)
    for wish, said in zip(wishes, together, strict=True):
        [alone] = run(bench, [wish], random)
        assert_same(said, alone, greedy=wish.sampling.temperature == 0)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wish=WISHES, cut=st.integers(1, LENGTH - 1), random=st.randoms(use_true_random=False))
def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(
    bench: Bench, wish: Wish, cut: int, random: Random
) -> None:
    [whole] = run(bench, [wish], random)
    known = (*wish.prompt, *(token.token_id for token in whole[:cut]))
    bench.runner.forget_all()
    blocks = tuple(range(bench.first_free_page, bench.first_free_page + 8))
    new = NewSequence(7, known, wish.length, wish.slot, wish.sampling)
    spans = [Span(7, 0, len(known), True, blocks)]
    spans += [Span(7, len(known) + i, 1, True) for i in range(LENGTH - cut - 1)]
    said = []
    for step, span in enumerate(spans):
        arrived = (new,) if step == 0 else ()
        said += bench.runner.run(StepPlan(step, arrived, (span,))).tokens
    again = [token._replace(sequence=0) for token in said]
    assert_same(whole[cut:], again, greedy=wish.sampling.temperature == 0)


def test_a_sequence_whose_logits_are_not_finite_fails_alone(bench: Bench) -> None:
    """Damage one sequence's cache, as a broken kernel or a flipped bit would."""
    bench.runner.forget_all()
    first = bench.first_free_page
    sampling = SamplingParams(max_new_tokens=LENGTH)
    new = tuple(NewSequence(i, (5, 6, 7), 3, 0, sampling) for i in range(3))
    prefill = tuple(Span(i, 0, 3, True, (first + i,)) for i in range(3))
    assert len(bench.runner.run(StepPlan(0, new, prefill)).tokens) == 3
    elements = bench.arena.page_bytes // 4
    bench.arena.run_elements(first + 1, elements).fill_(float("nan"))
    decode = tuple(Span(i, 3, 1, True) for i in range(3))
    outcome = bench.runner.run(StepPlan(1, (), decode))
    assert sorted(token.sequence for token in outcome.tokens) == [0, 2]
    assert [failure.sequence for failure in outcome.failures] == [1]
    assert isinstance(outcome.failures[0].error, StepFailed)
    bench.arena.run_elements(first + 1, elements).zero_()


def test_a_pass_that_raises_fails_its_sequences_and_no_later_ones(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.runner.forget_all()
    first = bench.first_free_page
    sampling = SamplingParams(max_new_tokens=LENGTH)
    plans = [
        StepPlan(
            step,
            (NewSequence(step, (5, 6, 7), 3, 0, sampling),),
            (Span(step, 0, 3, True, (first + step,)),),
        )
        for step in range(3)
    ]
    assert len(bench.runner.run(plans[0]).tokens) == 1
    with monkeypatch.context() as broken:
        broken.setattr(torch.nn.functional, "linear", lambda *_: 1 / 0)
        outcome = bench.runner.run(plans[1])
    assert not outcome.tokens.sequences
    assert isinstance(outcome.failures[0].error, StepFailed)
    assert len(bench.runner.run(plans[2]).tokens) == 1


def test_a_block_on_an_adapters_page_is_refused(bench: Bench) -> None:
    bench.runner.forget_all()
    new = NewSequence(1, (5, 6, 7), 3, 0, SamplingParams(max_new_tokens=LENGTH))
    outcome = bench.runner.run(StepPlan(0, (new,), (Span(1, 0, 3, True, (0,)),)))
    assert not outcome.tokens.sequences
    assert isinstance(outcome.failures[0].error, ProtocolViolation)
    assert "hold an adapter" in str(outcome.failures[0].error)
