"""What a bundle computes is what PEFT computes: delta by delta, for adapters that PEFT saved."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from adex_kernels.layout import GROUP_MODULES, Group, LinearShape, ModelShape, Module
from adex_proto.errors import AdapterMalformed
from adex_worker.adapters.core.config import LoraConfig as AdexConfig
from adex_worker.adapters.core.config_keys import HARMLESS, READ, UNSUPPORTED
from adex_worker.adapters.core.pattern_table import PatternTable
from adex_worker.testing import MODULE_PATHS, write_random_adapter

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
SHAPE = ModelShape(
    LAYERS,
    tuple(
        LinearShape(*sizes)
        for sizes in ((64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64))
    ),
)
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def peft_deltas(model: Any, folder: Path, seed: int = 1, **config: Any) -> dict[str, torch.Tensor]:
    """Save an adapter with PEFT, and answer its deltas by module path, taken back from PEFT."""
    torch.manual_seed(seed)
    wrapped = get_peft_model(model, LoraConfig(init_lora_weights=False, **config))
    wrapped.save_pretrained(str(folder))
    deltas = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    wrapped.unload()
    return deltas


def bundle_deltas(world: Any, slot: int) -> dict[tuple[int, Module], torch.Tensor]:
    """[out, in] of every (layer, module) that the resident adapter changes, from its views."""
    deltas: dict[tuple[int, Module], torch.Tensor] = {}
    for layer in range(world.shape.layers):
        for group in Group:
            weights = world.store.slots.group(slot, layer, group)
            if weights is None:
                continue
            starts = world.shape.group_out_starts(group)
            for rank_start, rank_stop, out_start, out_stop, b in weights.slices:
                module = GROUP_MODULES[group][starts.index(out_start)]
                assert out_stop - out_start == world.shape.linear(module).out_features
                deltas[layer, module] = b.t() @ weights.a[rank_start:rank_stop]
    return deltas


def assert_same_deltas(
    ours: dict[tuple[int, Module], torch.Tensor], theirs: dict[str, torch.Tensor]
) -> None:
    paths = {
        f"model.layers.{layer}.{MODULE_PATHS[module]}": delta
        for (layer, module), delta in ours.items()
    }
    assert sorted(paths) == sorted(theirs)
    for path, delta in theirs.items():
        torch.testing.assert_close(paths[path], delta, rtol=1e-6, atol=1e-6, msg=path)


CASES: dict[str, dict[str, Any]] = {
    **{
        f"rank {rank}": {"r": rank, "lora_alpha": 16, "target_modules": PROJECTIONS}
        for rank in (1, 2, 4, 8, 12, 16, 24, 48, 64)
    },
    "one module": {"r": 8, "target_modules": ["v_proj"]},
    "attention only": {"r": 8, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "mlp only": {"r": 8, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    "halves of groups": {"r": 8, "target_modules": ["k_proj", "up_proj"]},
    "a regex of targets": {"r": 4, "target_modules": r".*\.layers\.[02]\..*(q|up)_proj"},
    "rank-stabilised": {
        "r": 12,
        "lora_alpha": 7,
        "use_rslora": True,
        "target_modules": "all-linear",
    },
    "patterns by suffix": {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": PROJECTIONS,
        "rank_pattern": {"q_proj": 2, "mlp.down_proj": 16},
        "alpha_pattern": {"v_proj": 3, "down_proj": 5},
    },
    "patterns by regex, first match wins": {
        "r": 8,
        "lora_alpha": 16,
        "use_rslora": True,
        "target_modules": PROJECTIONS,
        # PEFT sorts the keys when it saves, so only this order means the same before and after.
        "rank_pattern": {
            r"(q|k)_proj": 12,
            r"layers\.1\..*": 4,
            r"layers\.[0-9]+\.mlp\.up_proj": 24,
        },
        "alpha_pattern": {r"^model\.layers\.0\.mlp\.\w+": 1, "mlp.*": 9, "self_attn.*": 3},
    },
    "patterns whose plain dots are wild": {
        "r": 8,
        "target_modules": PROJECTIONS,
        "rank_pattern": {"layers.2.self_attn.o_proj": 1, "q.proj": 6},
    },
    "some layers": {"r": 8, "target_modules": PROJECTIONS, "layers_to_transform": [0, 2]},
    "excluded modules": {"r": 8, "target_modules": PROJECTIONS, "exclude_modules": ["o_proj"]},
    "negative alpha": {"r": 8, "lora_alpha": -4, "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("case", CASES)
def test_every_delta_equals_pefts(case: str, make_world: Any, llama: Any) -> None:
    world = make_world(shape=SHAPE)
    theirs = peft_deltas(llama, world.root / "a", **CASES[case])
    world.page_in("a", slot=3, first_page=5)
    assert theirs
    assert_same_deltas(bundle_deltas(world, 3), theirs)


@pytest.mark.parametrize("targets", [["qkv_proj"], ["gate_up_proj"], "all-linear"])
def test_a_fused_linear_is_cut_into_its_modules(targets: Any, make_world: Any) -> None:
    torch.manual_seed(0)
    world = make_world(shape=SHAPE)
    phi = Phi3ForCausalLM(Phi3Config(**SIZES))
    theirs = peft_deltas(phi, world.root / "a", r=8, lora_alpha=4, target_modules=targets)
    version = world.store.fetch(world.key("a"))
    world.page_in("a", slot=1, first_page=0)
    split: dict[str, torch.Tensor] = {}
    for path, delta in theirs.items():
        parent, name = path.rsplit(".", 1)
        parts = {
            "qkv_proj": (["q_proj", "k_proj", "v_proj"], [64, 32, 32]),
            "gate_up_proj": (["gate_proj", "up_proj"], [96, 96]),
        }
        names, sizes = parts.get(name, ([name], [len(delta)]))
        for part, rows in zip(names, torch.split(delta, sizes), strict=True):
            split[f"{parent}.{part}"] = rows
    assert_same_deltas(bundle_deltas(world, 1), split)
    assert version.rank_max == 8


def test_our_own_maker_of_adapters_writes_what_peft_reads(
    make_world: Any, tmp_path: Path, llama: Any
) -> None:
    world = make_world(shape=SHAPE)
    write_random_adapter(
        world.root / "made",
        SHAPE,
        rank=6,
        layers=[1],
        modules=[Module.Q, Module.DOWN],
        rank_pattern={"down_proj": 3},
        alpha_pattern={"q_proj": 5.0},
        use_rslora=True,
    )
    wrapped = PeftModel.from_pretrained(llama, str(world.root / "made"))
    theirs = {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in wrapped.named_modules()
        # target_modules names every layer's modules; PEFT leaves those without tensors at zero.
        if hasattr(module, "get_delta_weight")
    }
    wrapped.unload()
    world.page_in("made", slot=1, first_page=0)
    assert_same_deltas(bundle_deltas(world, 1), theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_scale_is_folded_before_the_cast(dtype: torch.dtype, make_world: Any) -> None:
    world = make_world(dtype=dtype)
    write_random_adapter(world.root / "a", world.shape, rank=3, alpha=0.1)
    world.page_in("a", slot=1, first_page=0)
    exact = make_world()
    exact.page_in("a", slot=1, first_page=0)
    for layer in range(world.shape.layers):
        for group in Group:
            cast = world.store.slots.group(1, layer, group)
            wide = exact.store.slots.group(1, layer, group)
            assert torch.equal(cast.a, wide.a.to(dtype))
            for ours, theirs in zip(cast.slices, wide.slices, strict=True):
                assert torch.equal(ours[4], theirs[4].to(dtype))


def test_patterns_that_saving_has_reordered_are_refused_and_not_guessed(
    make_world: Any, llama: Any
) -> None:
    """The sorted file resolves k_proj of layer 1 to another rank than training did."""
    world = make_world(shape=SHAPE)
    patterns = {r"layers\.1\..*": 4, r"(q|k)_proj": 12}
    peft_deltas(
        llama, world.root / "a", r=8, target_modules=["k_proj", "up_proj"], rank_pattern=patterns
    )
    with pytest.raises(AdapterMalformed, match=r"layers\.1\.self_attn\.k_proj.*rank 12"):
        world.store.fetch(world.key("a"))


ATOMS = st.sampled_from(
    ["q", "_proj", "layers", "1", ".", r"\.", ".*", "[0-9]", r"\d", r"\w+", "(q|k)", "[^.]", "$"]
)
PATHS = [
    f"model.layers.{layer}.{part}"
    for layer in (0, 1, 11)
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.up_proj")
]


@given(st.lists(st.lists(ATOMS, min_size=1, max_size=5).map("".join), max_size=4))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_the_key_that_speaks_for_a_module_is_the_one_peft_chooses(keys: list[str]) -> None:
    table = PatternTable(keys, field="rank_pattern", file="adapter_config.json")
    for path in PATHS:
        theirs = get_pattern_key(keys, path)
        assert table.key_for(path) == (theirs if theirs in keys else None)


def test_every_option_of_this_peft_is_known() -> None:
    """A new PEFT option fails here first: decide whether it is harmless, and say so in a table."""
    options = {option.name for option in fields(LoraConfig)}
    assert options <= READ | HARMLESS | set(UNSUPPORTED)


def test_scales_of_a_config_that_peft_wrote_are_exact() -> None:
    config = AdexConfig({"r": 12, "lora_alpha": 7, "use_rslora": True})
    assert config.module_scale("x").scale == 7 / 12**0.5
