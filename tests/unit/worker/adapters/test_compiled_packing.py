"""Bundles that compiled code packs, bit by bit beside those of torch."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adex_kernels.native import library
from adex_kernels.native.pack import Piece, pack, table_of
from adex_worker import native
from adex_worker.adapters.bundle import pack as packed
from adex_worker.adapters.format import Limits, read_adapter
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.config import default_cache_dir

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native.COMPILERS)), reason="there is no C compiler here"
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def compiled() -> Iterator[library.Library]:
    native.load(default_cache_dir(os.environ))
    found = library.registered()
    assert found is not None, "a compiler is here, and yet nothing was compiled"
    yield found
    library.register(None)


@pytest.mark.parametrize("served", DTYPES, ids=str)
@pytest.mark.parametrize("saved", DTYPES, ids=str)
def test_a_whole_adapter_is_packed_to_the_same_bits(
    saved: torch.dtype, served: torch.dtype, world: Any, compiled: library.Library
) -> None:
    world.write("a", rank=5, dtype=saved, rank_pattern={"q_proj": 8, "up_proj": 33}, alpha=3.0)
    source = LocalSource([world.root])
    limits = Limits(world.shape, served.itemsize, 64, 1 << 30)
    adapter = read_adapter(source, source.resolve(world.key("a")), limits)
    quick = packed(adapter, served)
    library.register(None)
    assert torch.equal(packed(adapter, served), quick)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 40),
    saved=st.sampled_from(DTYPES),
    served=st.sampled_from(DTYPES),
    turned=st.booleans(),
    offset=st.integers(0, 3),
    scale=st.floats(-8, 8, width=32),
    seed=st.integers(0, 99),
)
def test_a_matrix_of_any_size_and_place_is_rounded_as_torch_rounds(
    rows: int,
    columns: int,
    saved: torch.dtype,
    served: torch.dtype,
    turned: bool,
    offset: int,
    scale: float,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    magnitudes = 10.0 ** random.integers(-8, 3, (rows, columns))
    matrix = torch.from_numpy(random.standard_normal((rows, columns)) * magnitudes).to(saved)
    content = bytes(offset) + matrix.view(torch.uint8).numpy().tobytes()
    file = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    elements = torch.full((7 + matrix.numel() + 9,), 42.0, dtype=served)
    table = table_of([Piece(offset, 7, rows, columns, saved, turned, scale)])
    expected = matrix.to(torch.float32).mul(scale).to(served)
    finite = pack(file, table, elements)
    assert finite == torch.isfinite(expected).all()
    found = elements[7 : 7 + matrix.numel()]
    if turned:
        expected = expected.t().contiguous()
    assert torch.equal(found, expected.flatten())
    assert elements[:7].eq(42).all()
    assert elements[7 + matrix.numel() :].eq(42).all()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("place", [0, 15, 16, 17, 255, 262])
def test_one_number_that_is_not_finite_is_found_wherever_it_is(place: int, turned: bool) -> None:
    matrix = torch.ones(263)
    matrix[place] = torch.inf
    table = table_of([Piece(0, 0, 1, 263, torch.float32, turned, 1.0)])
    elements = torch.zeros(263, dtype=torch.bfloat16)
    assert pack(matrix.view(torch.uint8), table, elements) is False
    matrix[place] = 1.0
    assert pack(matrix.view(torch.uint8), table, elements) is True
