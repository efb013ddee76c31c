"""A model's tensors: empty or random, under the names of checkpoints, packed for the device."""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from adex_kernels.linear import packed
from adex_kernels.native.panels import PackedWeight, Weight
from adex_worker.model.decoder import Decoder, LayerWeights, ModelWeights
from adex_worker.model.spec import ModelSpec

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a checkpoint tensor of `shape` goes, and what is added to it in float32 first.

    A target of more dimensions than the shape takes the tensor once per leading row.
    """

    target: Tensor
    shape: tuple[int, ...]
    plus: float = 0.0

    def put(self, tensor: Tensor) -> None:
        self.target.copy_(tensor.float() + self.plus if self.plus else tensor)


def random_model(
    spec: ModelSpec,
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    spread: float = 0.02,
) -> Decoder:
    """A model of the spec's shapes with normal weights, for measurements and tests."""
    weights = empty_weights(spec, torch.device(device), dtype)
    generator = torch.Generator(device).manual_seed(seed)
    for place in placements(spec, weights).values():
        if len(place.shape) == 1:
            place.target.fill_(1.0)
        else:
            place.target.normal_(0.0, spread, generator=generator)
    pack(weights)
    return Decoder(spec, weights)


def empty_weights(spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> ModelWeights:
    """All of the model's tensors, not yet filled."""

    def matrix(out_features: int, in_features: int) -> Tensor:
        return torch.empty((out_features, in_features), dtype=dtype, device=device)

    def vector(features: int, wanted: bool = True) -> Tensor | None:
        return torch.empty(features, dtype=dtype, device=device) if wanted else None

    def norm() -> Tensor:
        kind = torch.float32 if spec.norm_plus_one else dtype
        return torch.empty(spec.hidden, dtype=kind, device=device)

    def layer() -> LayerWeights:
        qkv_features = spec.q_features + 2 * spec.kv_features
        turning = spec.heads + spec.kv_heads
        return LayerWeights(
            attention_norm=norm(),
            qkv=matrix(qkv_features, spec.hidden),
            qkv_bias=vector(qkv_features, spec.qkv_bias),
            qk_norm=matrix(turning, spec.head_dim) if spec.qk_norm else None,
            o=matrix(spec.hidden, spec.q_features),
            o_bias=vector(spec.hidden, spec.o_bias),
            attention_out_norm=norm() if spec.sandwich_norms else None,
            mlp_norm=norm(),
            gate_up=matrix(2 * spec.intermediate, spec.hidden),
            gate_up_bias=vector(2 * spec.intermediate, spec.mlp_bias),
            down=matrix(spec.hidden, spec.intermediate),
            down_bias=vector(spec.hidden, spec.mlp_bias),
            mlp_out_norm=norm() if spec.sandwich_norms else None,
        )

    embedding = matrix(spec.vocabulary, spec.hidden)
    head = embedding if spec.tied_embeddings else matrix(spec.vocabulary, spec.hidden)
    return ModelWeights(embedding, [layer() for _ in range(spec.layers)], norm(), head)


def pack(weights: ModelWeights, int8: bool = False) -> None:
    """Bring each linear into its device's best order, one at a time; a tied head stays plain.

    The head is never rounded to eight bits: what it loses shows in the logits themselves.
    """
    kept = 0
    for layer in weights.layers:
        for name in ("qkv", "o", "gate_up", "down"):
            weight = packed(plain(getattr(layer, name)), int8)
            setattr(layer, name, weight)
            kept += isinstance(weight, PackedWeight) and weight.scales is None
    if int8:
        total = 4 * len(weights.layers)
        _LOG.info("%d of %d linears are int8, the others would lose too much", total - kept, total)
    if weights.head is not weights.embedding:
        weights.head = packed(plain(weights.head))


def plain(weight: Weight) -> Tensor:
    assert isinstance(weight, Tensor), "a weight is filled before it is packed"
    return weight


def placements(spec: ModelSpec, weights: ModelWeights) -> dict[str, Place]:
    """Where each tensor of a checkpoint goes, by its name without a leading "model."."""
    places = {
        "embed_tokens.weight": _whole(weights.embedding),
        "norm.weight": _norm(spec, weights.norm),
    }
    if not spec.tied_embeddings:
        places["lm_head.weight"] = _whole(plain(weights.head))
    for number, layer in enumerate(weights.layers):
        for name, place in _layer_placements(spec, layer).items():
            places[f"layers.{number}.{name}"] = place
    return places


def _layer_placements(spec: ModelSpec, layer: LayerWeights) -> dict[str, Place]:
    q, kv, wide = spec.q_features, spec.kv_features, spec.intermediate
    places: dict[str, Place] = {"input_layernorm.weight": _norm(spec, layer.attention_norm)}
    if layer.attention_out_norm is not None and layer.mlp_out_norm is not None:
        places["post_attention_layernorm.weight"] = _norm(spec, layer.attention_out_norm)
        places["pre_feedforward_layernorm.weight"] = _norm(spec, layer.mlp_norm)
        places["post_feedforward_layernorm.weight"] = _norm(spec, layer.mlp_out_norm)
    else:
        places["post_attention_layernorm.weight"] = _norm(spec, layer.mlp_norm)
    if layer.qk_norm is not None:
        per_head = (spec.head_dim,)
        places["self_attn.q_norm.weight"] = Place(layer.qk_norm[: spec.heads], per_head)
        places["self_attn.k_norm.weight"] = Place(layer.qk_norm[spec.heads :], per_head)
    if spec.fused_checkpoint:
        qkv_parts = {"self_attn.qkv_proj": (0, q + 2 * kv)}
        wide_parts = {"mlp.gate_up_proj": (0, 2 * wide)}
    else:
        qkv_parts = {
            "self_attn.q_proj": (0, q),
            "self_attn.k_proj": (q, q + kv),
            "self_attn.v_proj": (q + kv, q + 2 * kv),
        }
        wide_parts = {"mlp.gate_proj": (0, wide), "mlp.up_proj": (wide, 2 * wide)}
    linears = (
        (qkv_parts, layer.qkv, layer.qkv_bias),
        ({"self_attn.o_proj": (0, spec.hidden)}, layer.o, layer.o_bias),
        (wide_parts, layer.gate_up, layer.gate_up_bias),
        ({"mlp.down_proj": (0, spec.hidden)}, layer.down, layer.down_bias),
    )
    for parts, weight, bias in linears:
        for name, (start, stop) in parts.items():
            places[f"{name}.weight"] = _whole(plain(weight)[start:stop])
            if bias is not None:
                places[f"{name}.bias"] = _whole(bias[start:stop])
    return places


def _whole(target: Tensor) -> Place:
    return Place(target, tuple(target.shape))


def _norm(spec: ModelSpec, target: Tensor) -> Place:
    return Place(target, tuple(target.shape), 1.0 if spec.norm_plus_one else 0.0)
