"""Weights, tensor by tensor, from a checkpoint straight into the decoder's fused tensors.

Every tensor of the checkpoint is either placed or known to follow from the config, and every place
is filled. At no time is more than one checkpoint tensor in memory beside the model.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from adex_kernels.linear import packed
from adex_kernels.native.panels import PackedWeight, Weight, packable
from adex_proto.errors import ValidationError
from adex_worker.model.decoder import Decoder, LayerWeights, ModelWeights
from adex_worker.model.source import ModelSource
from adex_worker.model.spec import ModelSpec

_LOG = logging.getLogger(__name__)

# Called with the tensors placed so far and in all.
Progress = Callable[[int, int], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Tensors of old checkpoints that hold nothing but what the config says.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.inv_freq$")

_NAMES_SHOWN = 5


def load_model(
    model_id: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    progress: Progress | None = None,
    revision: str | None = None,
    int8: bool = False,
) -> Decoder:
    """Load a model from a folder or, where there is no such folder, from the Hugging Face hub.

    `dtype` None means the type that config.json names, or float32 where it names none; `progress`
    is called with tensors done and in all. With `int8` the layers' linears are rounded to eight
    bits, one scale per row, but for those that would lose too much.

    Raises ValidationError for a model that cannot be served, naming the reason, and
    SourceUnavailable when the hub does not answer.
    """
    source = ModelSource(str(model_id), revision)
    spec = source.spec()
    chosen = dtype if dtype is not None else spec.dtype or "float32"
    if isinstance(chosen, str):
        if chosen not in DTYPES:
            remedy = f"Choose one of {', '.join(DTYPES)}"
            raise ValidationError(f"no such dtype: {chosen!r}", field="dtype", remedy=remedy)
        chosen = DTYPES[chosen]
    weights = empty_weights(spec, torch.device(device), chosen)
    if int8 and not packable(_plain(weights.layers[0].qkv)):
        raise ValidationError(
            "weights of eight bits are served by the compiled CPU kernels only",
            field="weights",
            remedy="Leave --weights out, or serve on a CPU that has a C compiler",
        )
    _fill(spec, placements(spec, weights), source.checkpoint_files(), progress)
    _pack(weights, int8)
    return Decoder(spec, weights)


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
    _pack(weights)
    return Decoder(spec, weights)


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


def _pack(weights: ModelWeights, int8: bool = False) -> None:
    """Bring each linear into its device's best order, one at a time; a tied head stays plain.

    The head is never rounded to eight bits: what it loses shows in the logits themselves.
    """
    kept = 0
    for layer in weights.layers:
        for name in ("qkv", "o", "gate_up", "down"):
            weight = packed(_plain(getattr(layer, name)), int8)
            setattr(layer, name, weight)
            kept += isinstance(weight, PackedWeight) and weight.scales is None
    if int8:
        total = 4 * len(weights.layers)
        _LOG.info("%d of %d linears are int8, the others would lose too much", total - kept, total)
    if weights.head is not weights.embedding:
        weights.head = packed(_plain(weights.head))


def _plain(weight: Weight) -> Tensor:
    assert isinstance(weight, Tensor), "a weight is filled before it is packed"
    return weight


def placements(spec: ModelSpec, weights: ModelWeights) -> dict[str, Place]:
    """Where each tensor of a checkpoint goes, by its name without a leading "model."."""
    places = {
        "embed_tokens.weight": _whole(weights.embedding),
        "norm.weight": _norm(spec, weights.norm),
    }
    if not spec.tied_embeddings:
        places["lm_head.weight"] = _whole(_plain(weights.head))
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
            places[f"{name}.weight"] = _whole(_plain(weight)[start:stop])
            if bias is not None:
                places[f"{name}.bias"] = _whole(bias[start:stop])
    return places


def _whole(target: Tensor) -> Place:
    return Place(target, tuple(target.shape))


def _norm(spec: ModelSpec, target: Tensor) -> Place:
    return Place(target, tuple(target.shape), 1.0 if spec.norm_plus_one else 0.0)


def _fill(
    spec: ModelSpec, places: dict[str, Place], files: list[Path], progress: Progress | None
) -> None:
    unfilled, unknown, total = set(places), list[str](), len(places)
    for file in files:
        try:
            with safe_open(file, framework="pt", device="cpu") as checkpoint:
                for key in checkpoint.keys():  # noqa: SIM118 -- not a mapping
                    name = key.removeprefix("model.")
                    if name in places:
                        _put(places[name], key, checkpoint.get_tensor(key))
                        unfilled.discard(name)
                        if progress is not None:
                            progress(total - len(unfilled), total)
                    elif not _follows_from_config(spec, name):
                        unknown.append(key)
        except (SafetensorError, OSError) as error:
            raise _refused(f"{file.name} cannot be read: {error}") from error
    if unknown:
        raise _refused(f"it has tensors without a place: {_some(unknown)}")
    if unfilled:
        raise _refused(f"it lacks {_some(sorted(unfilled))}")


def _put(place: Place, key: str, tensor: Tensor) -> None:
    if tuple(tensor.shape) != place.shape:
        reason = f"{key} is {tuple(tensor.shape)} where config.json asks for {place.shape}"
        raise _refused(reason)
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        raise _refused(f"{key} is stored as {tensor.dtype}, a quantized form")
    place.put(tensor)


def _follows_from_config(spec: ModelSpec, name: str) -> bool:
    tied_copy = spec.tied_embeddings and name == "lm_head.weight"
    return tied_copy or _DERIVED.search(name) is not None


def _some(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _refused(reason: str) -> ValidationError:
    return ValidationError(
        f"the model's checkpoint does not fit: {reason}",
        field="model_id",
        remedy="Serve an unquantized checkpoint that matches its config.json",
    )
