"""Every tensor is applied, or the load fails and names it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adex_proto.errors import (
    AdapterMalformed,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
    AdexError,
    RankTooLarge,
)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("base_model.model.lm_head.lora_A.weight", (8, 64), AdapterUnsupported),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (8, 256), AdapterUnsupported),
        ("base_model.model.lm_head.weight", (256, 64), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_magnitude_vector", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_B.bias", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.base_layer.bias", (64,), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_a", (64, 8), AdapterUnsupported),
        (f"{PREFIX}.q_proj.lora_E", (8, 1), AdapterUnsupported),
        (f"{PREFIX}.q_proj.something", (8, 1), AdapterUnsupported),
        (
            "base_model.model.model.layers.0.mlp.experts.0.up_proj.lora_A.weight",
            (8, 64),
            AdapterUnsupported,
        ),
        (f"{PREFIX}.dense.lora_A.weight", (8, 64), AdapterMismatch),
        ("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", (8, 64), AdapterMismatch),
        (
            "base_model.model.model.vision_tower.layers.0.self_attn.q_proj.lora_A.weight",
            (8, 64),
            AdapterMismatch,
        ),
        (f"{PREFIX}.q proj.lora_A.weight", (8, 64), AdapterMalformed),
        ("x" * 600, (8, 64), AdapterMalformed),
        ("", (8, 64), AdapterMalformed),
    ],
)
def test_a_tensor_that_cannot_be_applied_fails_the_load_by_name(
    name: str, shape: tuple[int, ...], kind: type[AdexError], world: Any
) -> None:
    folder = world.write("a")
    change_tensors(folder, lambda tensors: tensors | {name: torch.ones(shape)})
    error = world.refusal(kind)
    assert WEIGHTS in error.message
    assert name[:100] in error.message


@pytest.mark.parametrize("missing", [Q_A, Q_B])
def test_half_a_pair_is_malformed(missing: str, world: Any) -> None:
    folder = world.write("a")
    change_tensors(folder, lambda ts: {k: v for k, v in ts.items() if k != missing})
    error = world.refusal(AdapterMalformed)
    assert error.field == (Q_B if missing == Q_A else Q_A)


def test_two_names_for_one_matrix_are_malformed(world: Any) -> None:
    folder = world.write("a")
    twin = Q_A.replace("lora_A.weight", "lora_A.default.weight")
    change_tensors(folder, lambda ts: ts | {twin: ts[Q_A].clone()})
    error = world.refusal(AdapterMalformed)
    assert Q_A in error.message
    assert twin in error.message


def test_a_fused_and_a_split_adapter_of_one_module_are_malformed(world: Any) -> None:
    folder = world.write("a", rank=8)
    fused = {
        f"{PREFIX}.qkv_proj.lora_A.weight": torch.ones(8, 64),
        f"{PREFIX}.qkv_proj.lora_B.weight": torch.ones(128, 8),
    }
    change_tensors(folder, lambda ts: ts | fused)
    error = world.refusal(AdapterMalformed)
    assert "both change Q of layer 0" in error.message


def test_an_adapter_without_tensors_would_answer_as_the_base_and_is_refused(world: Any) -> None:
    folder = world.write("a")
    change_tensors(folder, lambda ts: ts.clear())
    assert "changes no module" in world.refusal(AdapterMalformed).message


def test_a_layer_the_base_lacks_is_a_mismatch_with_both_numbers(world: Any) -> None:
    folder = world.write("a")
    moved = {".layers.0.": ".layers.7."}
    change_tensors(
        folder, lambda ts: {k.replace(".layers.0.", moved[".layers.0."]): v for k, v in ts.items()}
    )
    error = world.refusal(AdapterMismatch)
    assert "layer 7" in error.message
    assert "2 layers" in error.message


@pytest.mark.parametrize(
    ("tensor", "shape", "expected"),
    [(Q_A, (8, 128), "[8, 64]"), (Q_B, (96, 8), "[64, 8]")],
)
def test_another_base_shape_is_a_mismatch_with_both_shapes(
    tensor: str, shape: tuple[int, int], expected: str, world: Any
) -> None:
    folder = world.write("a", rank=8)
    change_tensors(folder, lambda ts: ts | {tensor: torch.ones(shape)})
    error = world.refusal(AdapterMismatch)
    assert error.field == tensor
    assert str(list(shape)) in error.message
    assert expected in error.message


def test_a_rank_the_config_does_not_declare_is_malformed(world: Any) -> None:
    world.write("a", rank=8, config={"r": 4})
    error = world.refusal(AdapterMalformed)
    assert "rank 4" in error.message
    assert "has shape [8, " in error.message


@pytest.mark.parametrize("declared", [65, 10**6])
def test_a_declared_rank_over_the_limit_is_refused_with_both_numbers(
    declared: int, world: Any
) -> None:
    world.write("a", rank=8, config={"r": declared})
    error = world.refusal(RankTooLarge)
    assert str(declared) in error.message
    assert "64" in error.message
    assert "--rank-max" in str(error.remedy)


def test_the_rank_limit_itself_is_served(make_world: Any) -> None:
    world = make_world(rank_max=16)
    world.write("a", rank=16)
    assert world.store.fetch(world.key("a")).rank_max == 16
    world.write("b", rank=17)
    with pytest.raises(RankTooLarge):
        world.store.fetch(world.key("b"))


@pytest.mark.parametrize("tier", ["host_bytes", "disk_bytes", "pages"])
def test_a_bundle_no_budget_can_hold_is_too_large(tier: str, make_world: Any) -> None:
    small = {"host_bytes": 20_000, "disk_bytes": 20_000, "pages": 2}
    world = make_world(**{tier: small[tier]})
    world.write("a", rank=8)
    error = world.refusal(AdapterTooLarge)
    assert "59392" in error.message
    assert "memory" in str(error.remedy)


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("tensor", [Q_A, Q_B])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused_naming_the_tensor(
    value: float, tensor: str, dtype: torch.dtype, world: Any
) -> None:
    folder = world.write("a", dtype=dtype)

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor][3, 2] = value

    change_tensors(folder, spoil)
    error = world.refusal(AdapterMalformed)
    assert error.field == tensor
    assert "NaN or infinity" in error.message


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -1])
@pytest.mark.parametrize("tensor", [Q_A, Q_B])
def test_a_nan_that_rounds_to_a_number_is_refused(bits: int, tensor: str, make_world: Any) -> None:
    world = make_world(dtype=torch.bfloat16)
    folder = world.write("a")

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor].view(torch.int32)[3, 2] = bits

    change_tensors(folder, spoil)
    assert world.refusal(AdapterMalformed).field == tensor


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize("tensor", [Q_A, Q_B])
def test_what_overflows_half_precision_is_refused_with_the_remedy(
    tensor: str, make_world: Any
) -> None:
    world = make_world(dtype=torch.float16)
    folder = world.write("a", rank=8, alpha=80.0)

    def raise_one(tensors: dict[str, torch.Tensor]) -> None:
        # Times the scale of 10, B leaves the range of float16; A leaves it by itself.
        tensors[tensor][3, 2] = 1e5 if tensor == Q_A else 1e4

    change_tensors(folder, raise_one)
    error = world.refusal(AdapterUnsupported)
    assert error.field == tensor
    assert "float16" in error.message
    assert "bfloat16" in str(error.remedy)
