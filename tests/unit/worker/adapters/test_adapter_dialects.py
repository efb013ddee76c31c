"""The same adapter under the names that different tools give its tensors."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adex_kernels.layout import Module

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
Q_A, Q_B = f"{PREFIX}.q_proj.lora_A.weight", f"{PREFIX}.q_proj.lora_B.weight"


def change_tensors(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]
) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors) or tensors, folder / WEIGHTS)


def header_of(folder: Path) -> tuple[dict[str, Any], bytes]:
    raw = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_header(folder: Path, header: bytes, data: bytes, length: int | None = None) -> None:
    declared = len(header) if length is None else length
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", declared) + header + data)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("lora_A.weight", "lora_A.default.weight"),
        lambda name: name.replace(".weight", ".my-adapter.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace(".layers.", "._fsdp_wrapped_module.layers."),
        lambda name: name.replace("model.model.layers", "model.layers"),
        lambda name: name.replace("model.model.layers", "model.model.language_model.layers"),
        lambda name: name.replace("model.model.layers", "model.language_model.model.layers"),
    ],
    ids=["default", "named", "bare", "module", "compiled", "fsdp", "headless", "vlm 5", "vlm 4"],
)
def test_names_in_every_dialect_mean_the_same_adapter(
    rename: Callable[[str], str], world: Any
) -> None:
    world.write("plain", rank=4, alpha_pattern={"self_attn.q_proj": 3.0})
    folder = world.write("a", rank=4, alpha_pattern={"self_attn.q_proj": 3.0})
    change_tensors(folder, lambda ts: {rename(name): tensor for name, tensor in ts.items()})
    world.page_in("plain", slot=1, first_page=0)
    world.page_in("a", slot=2, first_page=100)
    for layer in range(2):
        for group in range(4):
            plain, renamed = (world.store.slots.group(slot, layer, group) for slot in (1, 2))
            assert torch.equal(plain.a, renamed.a)
            assert all(
                torch.equal(p[4], r[4]) for p, r in zip(plain.slices, renamed.slices, strict=True)
            )


def test_tensors_at_odd_offsets_are_read_all_the_same(world: Any) -> None:
    folder = world.write("a", modules=[Module.Q], layers=[0])
    header, data = header_of(folder)
    text = json.dumps(header).encode()
    write_header(folder, text.ljust(len(text) + 3 - len(text) % 2), data)
    expected = load_file(folder / WEIGHTS)[Q_A]
    world.page_in("a", slot=1, first_page=0)
    assert torch.equal(world.store.slots.group(1, 0, 0).a, expected)
