"""The compiled step: bits that neither company nor threads change, and weights of eight bits."""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adex_kernels import dispatch
from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.layout import Module, bundle_layout
from adex_kernels.linear import linear, packed
from adex_kernels.native import library
from adex_kernels.native.panels import PackedWeight, pack
from adex_proto.errors import ValidationError
from adex_worker.adapters.views import ResidentSlots
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model
from adex_worker.testing import tiny_model

BLOCK_TOKENS = 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RANKS = (1, 3, 8, 16, 40)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda each: str(each)[6:])

# Rows of a sequence: where they begin, how many, and through which adapter; 0 is the base model.
Span = tuple[int, int, int]


@pytest.fixture(autouse=True)
def _through_the_compiled_step(compiled: library.Library) -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def model(folder: Path, dtype: torch.dtype, int8: bool = False) -> Decoder:
    return load_model(tiny_model(folder / "model"), dtype=dtype, int8=int8)


def adapters(decoder: Decoder) -> ResidentSlots:
    """Slot n has rank RANKS[n - 1]; every other one lacks some modules."""
    slots, generator = ResidentSlots(), torch.Generator().manual_seed(2)
    for slot, rank in enumerate(RANKS, start=1):
        modules = [m for m in Module if slot % 2 or m not in (Module.K, Module.O, Module.UP)]
        ranks = {(layer, m): rank for layer in range(decoder.spec.layers) for m in modules}
        layout = bundle_layout(decoder.spec.shape, ranks)
        elements = torch.randn(layout.elements, generator=generator) * 0.2
        slots.publish(slot, elements.to(decoder.dtype), layout)
    return slots


class Sequences:
    """Texts with their keys and values so far, each computed alone."""

    def __init__(self, decoder: Decoder, slots: ResidentSlots, spans: Sequence[Span]) -> None:
        self.decoder, self.slots, self.spans = decoder, slots, spans
        self.pages_each = 1 + max(start + count for start, count, _ in spans) // BLOCK_TOKENS
        pages = self.pages_each * len(spans)
        self.tables = torch.randperm(pages).view(len(spans), -1)
        self.kv = torch.zeros(decoder.kv_shape(pages, BLOCK_TOKENS), dtype=decoder.dtype)
        vocabulary = decoder.spec.vocabulary
        self.texts = [torch.randint(0, vocabulary, (start + count,)) for start, count, _ in spans]
        for number, (start, _, slot) in enumerate(spans):
            if start:
                self.step([(number, 0, start, slot)], self.kv)

    def step(self, parts: Sequence[tuple[int, int, int, int]], kv: Tensor) -> list[Tensor]:
        """Logits of the rows of each (sequence, start, count, slot)."""
        counts = [count for _, _, count, _ in parts]
        return list(self.logits(parts, kv, None).split(counts))

    def logits(
        self, parts: Sequence[tuple[int, int, int, int]], kv: Tensor, wanted: Tensor | None
    ) -> Tensor:
        starts, lens, segments, ids, positions = [0], [], [], [], []
        for number, start, count, slot in parts:
            ids.append(self.texts[number][start : start + count])
            positions.append(torch.arange(start, start + count))
            lens.append(start + count)
            if slot:
                segments.append((starts[-1], starts[-1] + count, slot))
            starts.append(starts[-1] + count)
        tables = self.tables[[number for number, *_ in parts]]
        batch = AttentionBatch.build(starts, lens, tables, BLOCK_TOKENS)
        lora = LoraBatch(segments, self.slots)
        return self.decoder.forward(torch.cat(ids), torch.cat(positions), kv, batch, lora, wanted)

    def parts(self) -> list[tuple[int, int, int, int]]:
        return [(number, *span) for number, span in enumerate(self.spans)]


SPANS: tuple[Span, ...] = (
    *((70, 1, 1), (3, 1, 2), (0, 50, 3), (15, 1, 0), (16, 20, 4), (31, 1, 5), (0, 1, 1)),
    *((5, 1, slot % 6) for slot in range(24)),
    *((300, 1, 1), (120, 30, 2), (255, 2, 0)),
)


@each_dtype
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_has_the_same_bits_alone_and_in_any_company_on_any_number_of_threads(
    tmp_path: Path, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(5)
    decoder = model(tmp_path, dtype)
    world = Sequences(decoder, adapters(decoder), SPANS)
    torch.set_num_threads(1)
    alone = [world.step([part], world.kv.clone())[0] for part in world.parts()]
    torch.set_num_threads(threads)
    together = world.step(world.parts(), world.kv.clone())
    backwards = world.step(world.parts()[::-1], world.kv.clone())[::-1]
    for mine, ours, theirs in zip(alone, together, backwards, strict=True):
        assert torch.equal(mine, ours)
        assert torch.equal(mine, theirs)


@each_dtype
def test_a_tied_head_answers_as_one_of_its_own_and_in_any_company_the_same(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.manual_seed(11)
    # Not whole panels, vectors, or blocks of rows.
    sizes = {"hidden_size": 74, "vocab_size": 203, "tie_word_embeddings": True}
    decoder = load_model(tiny_model(tmp_path / "model", **sizes), dtype=dtype)
    world = Sequences(decoder, adapters(decoder), SPANS)
    alone = [world.step([part], world.kv.clone())[0] for part in world.parts()]
    together = world.step(world.parts(), world.kv.clone())
    assert all(map(torch.equal, alone, together))
    wanted = torch.tensor([60, 3, 0])
    found = world.logits(world.parts(), world.kv.clone(), wanted)
    assert torch.equal(found, torch.cat(together)[wanted])
    head = pack(decoder.weights.embedding)
    world.decoder = Decoder(decoder.spec, replace(decoder.weights, head=head))
    meant = torch.cat(world.step(world.parts(), world.kv.clone()))
    error = float((torch.cat(together) - meant).norm() / meant.norm())
    assert error < {torch.float32: 1e-5, torch.float16: 1e-2}.get(dtype, 5e-2)


@each_dtype
def test_a_prompt_has_the_same_bits_whole_and_cut_into_chunks(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.manual_seed(6)
    decoder = model(tmp_path, dtype)
    world = Sequences(decoder, adapters(decoder), [(0, 61, 3)])
    (whole,) = world.step([(0, 0, 61, 3)], world.kv.clone())
    cuts, kv = (0, 1, 14, 16, 17, 40, 61), world.kv.clone()
    pieces = [world.step([(0, a, b - a, 3)], kv)[0] for a, b in pairwise(cuts)]
    assert torch.equal(whole, torch.cat(pieces))


@each_dtype
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_logits_whichever_others_are_wanted_in_whatever_order(
    tmp_path: Path, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(10)
    decoder = model(tmp_path, dtype)
    world = Sequences(decoder, adapters(decoder), SPANS)
    torch.set_num_threads(threads)
    kv = world.kv.clone()
    every = world.logits(world.parts(), kv, None)
    rows = len(every)
    for wanted in (
        torch.arange(rows),
        torch.randperm(rows),
        torch.tensor([rows - 1]),
        torch.tensor([60, 3, 3, 0, 90, 60]),
        torch.randperm(rows)[:40],
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(2000, dtype=torch.int64),
    ):
        own = world.kv.clone()
        found = world.logits(world.parts(), own, wanted)
        assert torch.equal(found, every[wanted])
        assert torch.equal(own, kv)


def rounded_weight(weight: PackedWeight) -> Tensor:
    """[out, in] float64, from the bytes of its panels."""
    assert weight.scales is not None
    panels = weight.panels.double()
    if weight.dtype == torch.bfloat16:
        panels = panels.permute(0, 2, 1, 3).flatten(2)
    else:
        panels = panels.permute(0, 2, 1)
    rows = panels.flatten(0, 1)[: weight.out_features]
    return rows * weight.scales.double().unsqueeze(1)


@each_dtype
@pytest.mark.parametrize("int8", [False, True], ids=["exact", "int8"])
@pytest.mark.parametrize(("out", "inner"), [(64, 2), (1, 48), (193, 770), (65, 66)])
def test_a_product_of_any_size_is_that_of_the_exact_numbers(
    dtype: torch.dtype, int8: bool, out: int, inner: int
) -> None:
    torch.manual_seed(out)
    weight, bias = torch.randn(out, inner).to(dtype), torch.randn(out).to(dtype)
    ours, meant = pack(weight, int8), weight.double()
    if ours.scales is not None:
        meant = rounded_weight(ours)
        assert (meant - weight).abs().max() <= ours.scales.max() * 0.501
    for rows in (1, 2, 3, 4, 5, 6, 7, 12, 13, 32, 75):
        x = torch.randn(rows, inner).to(dtype)
        exact = x.double() @ meant.t() + bias.double()
        error = (linear(x, ours, bias).double() - exact).abs().max() / exact.abs().max()
        assert error < {torch.float32: 2e-6, torch.float16: 1e-3}.get(dtype, 8e-3), rows


def test_weights_of_eight_bits_change_what_a_model_says_by_little(tmp_path: Path) -> None:
    torch.manual_seed(8)
    exact, rounded = model(tmp_path, torch.float32), model(tmp_path, torch.float32, int8=True)
    assert isinstance(rounded.weights.layers[0].down, PackedWeight)
    assert rounded.weights.layers[0].down.scales is not None
    world = Sequences(exact, ResidentSlots(), [(0, 40, 0)])
    (meant,) = world.step(world.parts(), world.kv.clone())
    world.decoder = rounded
    (found,) = world.step(world.parts(), world.kv.clone())
    # Each linear loses a hundredth; the model, a few.
    assert 0 < (found - meant).norm() / meant.norm() < 0.1


def test_a_weight_that_eight_bits_would_spoil_keeps_its_own() -> None:
    weight = torch.randn(64, 128)
    weight[:, 5] = 500.0
    assert pack(weight, int8=True).scales is None
    assert pack(torch.randn(64, 128), int8=True).scales is not None


def test_weights_of_eight_bits_need_the_compiled_kernels(tmp_path: Path) -> None:
    library.register(None)
    with pytest.raises(ValidationError, match="compiled CPU kernels"):
        model(tmp_path, torch.float32, int8=True)


def test_a_weight_of_an_odd_number_of_columns_stays_with_torch() -> None:
    weight = torch.randn(8, 5)
    assert packed(weight) is weight


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to cores")
def test_each_thread_of_a_team_that_has_all_cores_keeps_to_one(tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("one core is no choice")
    decoder = model(tmp_path, torch.float32)
    decoder.stay_on(cores)
    found: list[set[frozenset[int]]] = []

    def step() -> None:
        # Away from the tests' own thread, which other tests and processes come from.
        torch.set_num_threads(2)
        before = set(os.listdir("/proc/self/task"))
        texts = Sequences(decoder, ResidentSlots(), [(0, 4, 0)])
        texts.step([(0, 0, 4, 0)], texts.kv)
        own = threading.get_native_id()
        new = set(os.listdir("/proc/self/task")) - before
        kept = {frozenset(os.sched_getaffinity(int(each))) for each in new | {str(own)}}
        found.append(kept)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert {frozenset({core}) for core in cores} <= found[0]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="threads cannot be kept to cores")
def test_what_a_thread_without_a_core_has_begun_others_do_with_the_same_bits(
    tmp_path: Path,
) -> None:
    torch.manual_seed(12)
    # Large enough that threads which share a core lose it in the midst of a product.
    sizes = {"hidden_size": 512, "intermediate_size": 2048}
    decoder = load_model(tiny_model(tmp_path / "model", **sizes), dtype=torch.float32)
    world = Sequences(decoder, adapters(decoder), [(5, 1, 1), (9, 2, 0), (3, 3, 3)])
    torch.set_num_threads(1)
    alone = world.step(world.parts(), world.kv.clone())
    found: list[list[Tensor]] = []

    def steps() -> None:
        # Not the tests' own thread, which would stay on that core.
        torch.set_num_threads(4)
        decoder.stay_on([min(os.sched_getaffinity(0))] * 4)
        found.extend(world.step(world.parts(), world.kv.clone()) for _ in range(60))

    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    assert len(found) == 60
    assert all(torch.equal(a, b) for each in found for a, b in zip(each, alone, strict=True))


def test_a_pass_keeps_nothing_for_gradients(tmp_path: Path) -> None:
    decoder = model(tmp_path, torch.float32)
    kv = torch.zeros(decoder.kv_shape(1, BLOCK_TOKENS))
    table = torch.zeros((1, 1), dtype=torch.int64)
    attention = AttentionBatch.build([0, 1], [1], table, BLOCK_TOKENS, kv.device, [1])
    logits = decoder.forward(torch.tensor([5]), torch.tensor([0]), kv, attention)
    assert logits.is_inference()


@each_dtype
def test_what_a_block_held_before_changes_nothing_and_is_gone_behind_a_text_that_begins_it(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    torch.manual_seed(9)
    decoder = model(tmp_path, dtype)
    # Whole blocks, parts of them, a decode that begins one, and one that does not.
    world = Sequences(decoder, adapters(decoder), [(0, 32, 0), (0, 21, 2), (16, 1, 1), (20, 3, 0)])
    wanted = world.step(world.parts(), world.kv.clone())
    spoiled = world.kv.clone()
    for number, (start, count, _) in enumerate(world.spans):
        first = -(-start // BLOCK_TOKENS)
        spoiled[world.tables[number, first : first + 1 + count // BLOCK_TOKENS]] = float("nan")
    for mine, theirs in zip(world.step(world.parts(), spoiled), wanted, strict=True):
        assert torch.equal(mine, theirs)
    for number, (start, count, _) in enumerate(world.spans):
        blocks = -(-(start + count) // BLOCK_TOKENS)
        assert spoiled[world.tables[number, :blocks]].isfinite().all()


def test_a_token_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    decoder = model(tmp_path, torch.float32)
    world = Sequences(decoder, adapters(decoder), [(0, 3, 0)])
    for wrong in (-1, decoder.spec.vocabulary):
        world.texts[0][1] = wrong
        with pytest.raises(IndexError):
            world.step(world.parts(), world.kv)


@pytest.mark.parametrize("columns", [1, 5, 16, 31, 64, 8192, 100_003])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_the_greatest_of_each_row_is_numpys(rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn((rows, columns), generator=generator)
    logits[0] = logits[0].round()  # many are equal
    logits[-1] = float("-inf")
    tokens, finite = dispatch.greedy(logits)
    assert torch.equal(tokens, torch.from_numpy(logits.numpy().argmax(1)))
    assert torch.equal(finite, logits.isfinite().all(1).long())


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_a_row_with_a_number_that_is_none_is_told_wherever_it_stands(wrong: float) -> None:
    for place in (0, 15, 17, 39):
        logits = torch.zeros((2, 40))
        logits[1, place] = wrong
        tokens, finite = dispatch.greedy(logits)
        assert finite.tolist() == [1, 0]
        assert 0 <= int(tokens[1]) < 40


@pytest.mark.parametrize("columns", [1, 31, 64, 8192, 300_001])
def test_the_log_of_a_sum_is_that_of_exact_numbers(columns: int) -> None:
    generator = torch.Generator().manual_seed(columns)
    logits = torch.randn((4, columns), generator=generator) * torch.tensor([[1], [10], [50], [0]])
    logits[1] -= 1000
    exact = logits.double().logsumexp(1)
    assert torch.allclose(dispatch.log_totals(logits).double(), exact, rtol=3e-7, atol=3e-6)
