"""The compiled low-rank terms against the oracle, and a row's bits against its company."""

import os
import shutil
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from adex_kernels import dispatch, reference
from adex_kernels.batch import GroupWeights, LoraBatch, LoraRecord
from adex_kernels.layout import LinearShape, ModelShape, Module, bundle_layout
from adex_kernels.native import library
from adex_proto.errors import ProtocolViolation
from adex_worker import native
from adex_worker.adapters.views import ResidentSlots
from adex_worker.config import default_cache_dir

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C compiler here"
)

LAYER, LAYERS = 1, 2
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def shape_of(hidden: int, kv: int, wide: int) -> ModelShape:
    pairs = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, wide),
        (hidden, wide),
        (wide, hidden),
    ]
    return ModelShape(LAYERS, tuple(LinearShape(*pair) for pair in pairs))


EVEN, ODD = shape_of(64, 32, 1152), shape_of(45, 13, 1067)


@pytest.fixture(scope="module")
def loaded() -> library.Library:
    """Compiled from the source as it is; what the user's cache has of it is the same."""
    native.load(default_cache_dir(os.environ))
    found = library.registered()
    assert found is not None, "a compiler is here, and yet nothing was compiled"
    library.register(None)
    return found


@pytest.fixture(autouse=True)
def compiled(loaded: library.Library) -> Iterator[None]:
    library.register(loaded)
    yield
    library.register(None)


class Watched(ResidentSlots):
    """Refuses what only torch's path asks for."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        raise AssertionError(f"slot {slot} at {layer, group} went through torch")


def publish(
    slots: ResidentSlots,
    slot: int,
    rank: int,
    *,
    shape: ModelShape = EVEN,
    dtype: torch.dtype = torch.float32,
    modules: tuple[Module, ...] = tuple(Module),
) -> None:
    ranks = {(layer, m): rank + m % 2 for layer in range(LAYERS) for m in modules}
    layout = bundle_layout(shape, ranks)
    generator = torch.Generator().manual_seed(1000 * slot + rank)
    elements = torch.randn(layout.elements, generator=generator) * 0.1
    slots.publish(slot, elements.to(dtype), layout)


def twin(slots: ResidentSlots) -> Watched:
    watched = Watched()
    watched._by_slot = slots._by_slot
    return watched


def tensors(shape: ModelShape, group: int, rows: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    modules = (
        (Module.Q, Module.K, Module.V),
        (Module.O,),
        (Module.GATE, Module.UP),
        (Module.DOWN,),
    )
    linears = [shape.linear(module) for module in modules[group]]
    generator = torch.Generator().manual_seed(rows + group)
    x = torch.randn(rows, linears[0].in_features, generator=generator).to(dtype)
    y = torch.randn(rows, sum(each.out_features for each in linears), generator=generator)
    return x, y.to(dtype)


def assert_equals_reference(
    segments: list[tuple[int, int, int]],
    slots: ResidentSlots,
    shape: ModelShape,
    rows: int,
    dtype: torch.dtype,
) -> None:
    batch = LoraBatch(segments, twin(slots))
    for group in range(4):
        x, y = tensors(shape, group, rows, dtype)
        expected, found = y.clone(), y.clone()
        reference.lora_add_(expected, x, LoraBatch(segments, slots), LAYER, group)
        dispatch.lora_add_(found, x, batch, LAYER, group)
        # One rounding at the end, as the reference: half a unit in the last place at most, and
        # only where float32 sums in another order fall on the other side of a tie.
        tolerance = 1e-5 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
        named = {row for start, stop, _ in segments for row in range(start, stop)}
        others = [row for row in range(rows) if row not in named]
        assert torch.equal(found[others], y[others])


MIXES = {
    "identical": [(0, 8, 1)],
    "distinct": [(i, i + 1, i + 1) for i in range(8)],
    "uniform": [(2 * i, 2 * i + 2, i + 1) for i in range(8)],
    "zipf": [(0, 8, 1), (8, 12, 2), (12, 15, 3), (15, 17, 4), (17, 18, 5), (18, 19, 6)],
    "skewed": [(0, 7, 3), (7, 8, 8)],
    "base rows between": [(1, 2, 1), (4, 7, 2), (9, 10, 3)],
    "one slot twice": [(0, 2, 4), (3, 8, 4), (9, 10, 1)],
}
RANKS = (1, 2, 3, 8, 16, 17, 64, 255)


@each_dtype
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_every_mix_equals_the_reference(
    mix: list[tuple[int, int, int]], shape: ModelShape, dtype: torch.dtype
) -> None:
    slots = ResidentSlots()
    for slot, rank in enumerate(RANKS, 1):
        publish(slots, slot, rank, shape=shape, dtype=dtype)
    assert_equals_reference(mix, slots, shape, 21, dtype)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(0, 4)), min_size=1, max_size=12),
    ranks=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    widths=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 90)),
    threads=st.integers(1, 4),
    dtype=st.sampled_from(DTYPES),
)
def test_any_sizes_equal_the_reference(
    sizes: list[tuple[int, int]],
    ranks: list[int],
    widths: tuple[int, int, int],
    threads: int,
    dtype: torch.dtype,
) -> None:
    slots, shape = ResidentSlots(), shape_of(*widths)
    for slot, rank in enumerate(ranks, 1):
        publish(slots, slot, rank, shape=shape, dtype=dtype)
    segments, row = [], 0
    for rows, slot in sizes:
        if slot:
            segments.append((row, row + rows, slot))
        row += rows
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_equals_reference(segments, slots, shape, row, dtype)
    finally:
        torch.set_num_threads(before)


@each_dtype
def test_modules_that_an_adapter_lacks_stay_as_they_were(dtype: torch.dtype) -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4, dtype=dtype, modules=(Module.K, Module.UP))
    publish(slots, 2, 9, dtype=dtype, modules=(Module.Q, Module.V, Module.O))
    assert_equals_reference([(0, 2, 1), (3, 5, 2)], slots, EVEN, 6, dtype)


@each_dtype
@pytest.mark.parametrize("shape", [EVEN, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("group", range(4))
def test_a_row_has_the_same_bits_alone_and_in_any_company(
    group: int, shape: ModelShape, dtype: torch.dtype
) -> None:
    slots = ResidentSlots()
    for slot, rank in enumerate((5, 16, 33), 1):
        publish(slots, slot, rank, shape=shape, dtype=dtype)
    x, y = tensors(shape, group, 18, dtype)
    segments = [(0, 1, 1), (1, 8, 2), (9, 11, 3), (11, 17, 1)]
    together = y.clone()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        dispatch.lora_add_(together, x, LoraBatch(segments, twin(slots)), LAYER, group)
    finally:
        torch.set_num_threads(before)
    for start, stop, slot in segments:
        for row in range(start, stop):
            alone = y[row : row + 1].clone()
            batch = LoraBatch([(0, 1, slot)], twin(slots))
            dispatch.lora_add_(alone, x[row : row + 1].clone(), batch, LAYER, group)
            assert torch.equal(alone[0], together[row])


def test_a_part_of_a_wider_tensor_is_served_and_the_rest_of_it_untouched() -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4)
    x, y = tensors(EVEN, 1, 5, torch.float32)
    wide_x, wide_y = torch.randn(5, 100), torch.randn(5, 100)
    wide_x[:, 7:71], wide_y[:, 3:67] = x, y
    left = wide_y.clone()
    expected = y.clone()
    reference.lora_add_(expected, x, LoraBatch([(0, 5, 1)], slots), LAYER, 1)
    batch = LoraBatch([(0, 5, 1)], twin(slots))
    dispatch.lora_add_(wide_y[:, 3:67], wide_x[:, 7:71], batch, LAYER, 1)
    torch.testing.assert_close(wide_y[:, 3:67], expected)
    assert torch.equal(wide_y[:, :3], left[:, :3])
    assert torch.equal(wide_y[:, 67:], left[:, 67:])


@pytest.mark.parametrize("transposed", ["x", "y"])
def test_rows_that_are_not_contiguous_are_left_to_torch(transposed: str) -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4)
    x, y = tensors(EVEN, 1, 5, torch.float32)
    expected, found = y.clone(), y.clone()
    reference.lora_add_(expected, x, LoraBatch([(0, 5, 1)], slots), LAYER, 1)
    if transposed == "x":
        x = x.t().contiguous().t()
    else:
        found = found.t().contiguous().t()
    dispatch.lora_add_(found, x, LoraBatch([(0, 5, 1)], slots), LAYER, 1)
    torch.testing.assert_close(found, expected)


def test_wide_segments_go_to_torch_and_thin_ones_beside_them_do_not() -> None:
    slots = ResidentSlots()
    publish(slots, 1, 300)
    publish(slots, 2, 4)
    asked = set()

    class Asked(ResidentSlots):
        def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
            asked.add(slot)
            return slots.group(slot, layer, group)

        def record(self, slot: int) -> LoraRecord | None:
            return slots.record(slot)

    x, y = tensors(EVEN, 1, 60, torch.float32)
    segments = [(0, 50, 1), (50, 60, 2)]
    expected, found = y.clone(), y.clone()
    reference.lora_add_(expected, x, LoraBatch(segments, slots), LAYER, 1)
    dispatch.lora_add_(found, x, LoraBatch(segments, Asked()), LAYER, 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert asked == {1}


def test_a_slot_that_is_used_again_serves_its_new_adapter() -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4)
    x, y = tensors(EVEN, 1, 3, torch.float32)
    first, second = y.clone(), y.clone()
    dispatch.lora_add_(first, x, LoraBatch([(0, 3, 1)], twin(slots)), LAYER, 1)
    slots.withdraw(1)
    with pytest.raises(ProtocolViolation):
        dispatch.lora_add_(second, x, LoraBatch([(0, 3, 1)], twin(slots)), LAYER, 1)
    publish(slots, 1, 9)
    assert_equals_reference([(0, 3, 1)], slots, EVEN, 3, torch.float32)


@pytest.mark.parametrize(
    ("x_columns", "y_columns", "segment"),
    [(63, 64, (0, 2, 1)), (64, 63, (0, 2, 1)), (64, 64, (0, 3, 1))],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    x_columns: int, y_columns: int, segment: tuple[int, int, int]
) -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4)
    y = torch.zeros(2, y_columns)
    with pytest.raises(ValueError, match="do not fit"):
        dispatch.lora_add_(y, torch.ones(2, x_columns), LoraBatch([segment], slots), LAYER, 1)
    assert not y.any()


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_half_precision_is_rounded_to_the_nearest(dtype: torch.dtype) -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4, dtype=dtype)
    x, y = tensors(EVEN, 2, 8, dtype)
    expected = y.clone()
    reference.lora_add_(expected, x, LoraBatch([(0, 8, 1)], slots), LAYER, 2)
    dispatch.lora_add_(y, x, LoraBatch([(0, 8, 1)], twin(slots)), LAYER, 2)
    assert (y == expected).float().mean() > 0.998


def test_no_thread_goes_ahead_before_all_have_shrunk() -> None:
    slots = ResidentSlots()
    for slot in (1, 2):
        publish(slots, slot, 200, shape=EVEN)
    group, segments = 3, [(0, 3, 1), (3, 4, 2)]
    x, y = tensors(EVEN, group, 4, torch.float32)
    batch = LoraBatch(segments, twin(slots))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = y.clone()
        dispatch.lora_add_(expected, x, batch, LAYER, group)
        assert batch.thin is not None
        for _ in range(1000):
            batch.thin.shrunk.fill_(float("nan"))
            found = y.clone()
            dispatch.lora_add_(found, x, batch, LAYER, group)
            assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(before)


def test_a_bfloat16_nan_of_all_ones_does_not_become_a_number() -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4, dtype=torch.bfloat16)
    x, y = tensors(EVEN, 1, 2, torch.bfloat16)
    y.view(torch.int16)[0, :4] = 0x7FFF
    y.view(torch.int16)[1, :4] = -1
    dispatch.lora_add_(y, x, LoraBatch([(0, 2, 1)], twin(slots)), LAYER, 1)
    assert y[:, :4].isnan().all()


@each_dtype
def test_what_is_not_a_number_stays_so_and_infinity_too(dtype: torch.dtype) -> None:
    slots = ResidentSlots()
    publish(slots, 1, 4, dtype=dtype)
    x, y = tensors(EVEN, 1, 3, dtype)
    y[0, 0], y[1, 1], y[2, 2] = float("nan"), float("inf"), -float("inf")
    dispatch.lora_add_(y, x, LoraBatch([(0, 3, 1)], twin(slots)), LAYER, 1)
    assert y[0, 0].isnan()
    assert y[1, 1] == float("inf")
    assert y[2, 2] == -float("inf")
    assert y.isnan().sum() == 1


def test_adapters_that_come_and_go_beside_a_step_change_nothing_in_it() -> None:
    slots = ResidentSlots()
    publish(slots, 1, 16)
    x, y = tensors(EVEN, 1, 3, torch.float32)
    expected = y.clone()
    dispatch.lora_add_(expected, x, LoraBatch([(0, 3, 1)], twin(slots)), LAYER, 1)
    stop = threading.Event()

    def page() -> None:
        while not stop.is_set():
            publish(slots, 2, 16)
            slots.withdraw(2)

    pager = threading.Thread(target=page)
    pager.start()
    try:
        for _ in range(300):
            found = y.clone()
            dispatch.lora_add_(found, x, LoraBatch([(0, 3, 1)], twin(slots)), LAYER, 1)
            assert torch.equal(found, expected)
    finally:
        stop.set()
        pager.join()
