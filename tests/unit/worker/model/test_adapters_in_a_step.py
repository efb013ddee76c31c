"""Rows through adapters, against transformers models with the same adapters merged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from adex_kernels.batch import AttentionBatch, GroupWeights, LoraBatch
from adex_kernels.layout import GROUP_MODULES, Group, ModelShape, Module

NAMES = {
    Module.Q: "self_attn.q_proj",
    Module.K: "self_attn.k_proj",
    Module.V: "self_attn.v_proj",
    Module.O: "self_attn.o_proj",
    Module.GATE: "mlp.gate_proj",
    Module.UP: "mlp.up_proj",
    Module.DOWN: "mlp.down_proj",
}

# Where Phi-3 keeps modules that others have apart.
FUSED = {
    "self_attn.q_proj": "self_attn.qkv_proj",
    "self_attn.k_proj": "self_attn.qkv_proj",
    "self_attn.v_proj": "self_attn.qkv_proj",
    "mlp.gate_proj": "mlp.gate_up_proj",
    "mlp.up_proj": "mlp.gate_up_proj",
}


class Adapters:
    """Random adapters by slot: the modules that each has, all of one rank."""

    def __init__(self, shape: ModelShape, modules: dict[int, tuple[Module, ...]]) -> None:
        self._shape = shape
        self._weights: dict[tuple[int, int, int], GroupWeights] = {}
        for slot, chosen in modules.items():
            for layer in range(shape.layers):
                for group in Group:
                    self._add(slot, layer, group, chosen, rank=slot + 2)

    def _add(
        self, slot: int, layer: int, group: Group, chosen: tuple[Module, ...], rank: int
    ) -> None:
        slices, stacked = [], []
        starts = self._shape.group_out_starts(group)
        for module, start in zip(GROUP_MODULES[group], starts, strict=True):
            if module in chosen:
                linear = self._shape.linear(module)
                first = len(stacked) * rank
                stacked.append(torch.randn(rank, linear.in_features) * 0.2)
                b = torch.randn(rank, linear.out_features) * 0.2
                slices.append((first, first + rank, start, start + linear.out_features, b))
        if slices:
            self._weights[slot, layer, group] = GroupWeights(torch.cat(stacked), tuple(slices))

    def record(self, slot: int) -> None:
        """Torch's path is what is looked at here."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        return self._weights.get((slot, layer, group))

    def merge(self, model: Any, slot: int) -> None:
        """Add what the slot's adapter does to the weights of a transformers model."""
        for (owner, layer, group), weights in self._weights.items():
            if owner == slot:
                starts = self._shape.group_out_starts(Group(group))
                for rank_start, rank_stop, start, _, b in weights.slices:
                    module = GROUP_MODULES[Group(group)][starts.index(start)]
                    delta = b.T @ weights.a[rank_start:rank_stop]
                    self._add_to(model.model.layers[layer], NAMES[module], start, delta)

    def _add_to(self, layer: Any, name: str, start: int, delta: Tensor) -> None:
        try:
            layer.get_submodule(name).weight.data += delta
        except AttributeError:
            fused = layer.get_submodule(FUSED[name]).weight.data
            fused[start : start + len(delta)] += delta


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "phi3"])
def test_each_row_has_the_logits_of_a_model_with_its_adapter_merged(
    pair: Callable[..., Any], model_type: str
) -> None:
    both = pair({"model_type": model_type, "head_dim": 12})
    adapters = Adapters(
        both.ours.spec.shape,
        {1: tuple(Module), 2: (Module.Q, Module.V, Module.DOWN), 3: (Module.K, Module.UP)},
    )
    slots = [1, 0, 2, 3, 1]
    tokens = torch.randint(3, 97, (5, 6))
    batch = AttentionBatch.build(range(0, 31, 6), [6] * 5, [[i] for i in range(5)], 8)
    segments = [(6 * i, 6 * i + 6, slot) for i, slot in enumerate(slots) if slot]
    found = both.ours.forward(
        tokens.view(-1),
        torch.arange(6).repeat(5),
        torch.full(both.ours.kv_shape(5, 8), float("nan")),
        batch,
        LoraBatch(segments, adapters),
    ).view(5, 6, -1)
    for index, slot in enumerate(slots):
        merged = copy.deepcopy(both.theirs)
        adapters.merge(merged, slot)
        with torch.no_grad():
            expected = merged(tokens[index][None]).logits[0]
        error = (found[index] - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, f"row {index}, slot {slot}: relative error {error:.2e}"
