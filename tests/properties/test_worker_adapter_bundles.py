"""For any shape and any mixture of ranks, a bundle holds every number of the adapter once."""

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from adex_kernels.layout import GROUP_MODULES, Group, LinearShape, ModelShape, Module
from adex_proto.adapter import AdapterKey
from adex_worker.adapters.bundle import pack
from adex_worker.adapters.format import Limits, read_adapter
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.adapters.views import ResidentSlots
from adex_worker.testing import MODULE_PATHS, write_random_adapter

SIZES = st.integers(1, 40)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    hidden, q, kv, wide = draw(SIZES), draw(SIZES), draw(SIZES), draw(SIZES)
    attention = ((hidden, q), (hidden, kv), (hidden, kv), (q, hidden))
    mlp = ((hidden, wide), (hidden, wide), (wide, hidden))
    return ModelShape(
        draw(st.integers(1, 3)), tuple(LinearShape(*sizes) for sizes in attention + mlp)
    )


@given(
    shape=shapes(),
    rank=st.integers(1, 9),
    other_rank=st.integers(1, 9),
    modules=st.sets(st.sampled_from(Module), min_size=1),
    odd_one=st.sampled_from(Module),
    use_rslora=st.booleans(),
    alpha=st.floats(-64, 64).filter(lambda value: abs(value) > 1e-3),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_every_matrix_is_found_in_its_view_and_the_rest_is_zero(
    shape: ModelShape,
    rank: int,
    other_rank: int,
    modules: set[Module],
    odd_one: Module,
    use_rslora: bool,
    alpha: float,
    seed: int,
) -> None:
    pattern = {MODULE_PATHS[odd_one]: other_rank}
    with tempfile.TemporaryDirectory() as folder:
        write_random_adapter(
            Path(folder),
            shape,
            rank=rank,
            alpha=alpha,
            modules=sorted(modules),
            rank_pattern=pattern,
            use_rslora=use_rslora,
            seed=seed,
        )
        source = LocalSource([Path(folder)])
        resolved = source.resolve(AdapterKey("", "local", folder))
        adapter = read_adapter(source, resolved, Limits(shape, 4, 9, 1 << 30))
        saved = load_file(Path(folder) / "adapter_model.safetensors")
    elements = pack(adapter, torch.float32)
    slots = ResidentSlots()
    slots.publish(1, elements, adapter.form.layout)
    for layer in range(shape.layers):
        for group in Group:
            weights = slots.group(1, layer, group)
            present = [module for module in GROUP_MODULES[group] if module in modules]
            assert (weights is None) == (not present)
            if weights is None:
                continue
            for module, part in zip(present, weights.slices, strict=True):
                r = other_rank if module is odd_one else rank
                scale = alpha / (r**0.5 if use_rslora else r)
                path = f"base_model.model.model.layers.{layer}.{MODULE_PATHS[module]}"
                a, b = saved[f"{path}.lora_A.weight"], saved[f"{path}.lora_B.weight"]
                assert torch.equal(weights.a[part[0] : part[1]], a)
                assert torch.equal(part[4], (b * scale).t())
                part[4].zero_()
            weights.a.zero_()
    assert not elements.any()
