"""What a config.json means: one frozen ModelSpec per model, or a refusal that names what is wrong.

Pure: a dict in, values out. A key that changes the mathematics is either read here or refused by
name when it is not neutral; keys that no family reads are listed in `ModelSpec.unread_keys`, so
that the caller can say so. Defaults are those of each family's configuration class, because a
config.json leaves out what equals them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adex_kernels.layout import LinearShape, ModelShape
from adex_proto.errors import ValidationError
from adex_worker.model.families import FAMILIES, IGNORED_KEYS, NEUTRAL_VALUES, READ_KEYS, Family
from adex_worker.model.rope_spec import RopeSpec, rope_spec

Config = Mapping[str, Any]

# Names a config may give an activation, and ours for it.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Everything that the decoder's mathematics depends on, apart from the weights.

    Lengths are in tokens, sizes in elements. `windows[layer]` is the number of positions a row of
    that layer sees, itself included, or None for all. `positions_max` is the longest sequence that
    the rotations are meant for.
    """

    architecture: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions_max: int
    norm_eps: float
    activation: str
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    norm_plus_one: bool
    sandwich_norms: bool
    fused_checkpoint: bool
    embedding_scale: float | None
    attention_scale: float
    attention_softcap: float | None
    logit_softcap: float | None
    windows: tuple[int | None, ...]
    tied_embeddings: bool
    rope: RopeSpec
    dtype: str | None
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    unread_keys: tuple[str, ...] = ()

    @property
    def q_features(self) -> int:
        """Columns of the query part of the fused q|k|v output."""
        return self.heads * self.head_dim

    @property
    def kv_features(self) -> int:
        """Columns of the key part, and of the value part, of the fused q|k|v output."""
        return self.kv_heads * self.head_dim

    @property
    def shape(self) -> ModelShape:
        """The seven linears that adapters may change."""
        q, kv, hidden, wide = self.q_features, self.kv_features, self.hidden, self.intermediate
        return ModelShape(
            self.layers,
            (
                LinearShape(hidden, q),
                LinearShape(hidden, kv),
                LinearShape(hidden, kv),
                LinearShape(q, hidden),
                LinearShape(hidden, wide),
                LinearShape(hidden, wide),
                LinearShape(wide, hidden),
            ),
        )


def model_spec(config: Config) -> ModelSpec:
    """Read a config.json.

    Raises ValidationError for an architecture that is not known, for a key whose value asks for
    mathematics that is not implemented, and for sizes that do not fit each other.
    """
    family = _family(config)
    _refuse_foreign_mathematics(config, family)
    hidden = _size(config, family, "hidden_size")
    heads = _size(config, family, "num_attention_heads")
    layers = _size(config, family, "num_hidden_layers")
    kv_heads = _value(config, family, "num_key_value_heads") or heads
    head_dim = _value(config, family, "head_dim") or hidden // heads
    if heads % kv_heads:
        raise _refused("num_key_value_heads", kv_heads, f"it does not divide the {heads} heads")
    attention_bias = bool(_value(config, family, "attention_bias"))
    mlp_bias = family.reads_mlp_bias and bool(config.get("mlp_bias", False))
    scalar = _value(config, family, "query_pre_attn_scalar") if family.soft_caps else head_dim
    rope = rope_spec(config, family, head_dim, _size(config, family, "max_position_embeddings"))
    return ModelSpec(
        architecture=family.architecture,
        model_type=family.model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=_size(config, family, "intermediate_size"),
        vocabulary=_size(config, family, "vocab_size"),
        positions_max=rope.positions_served,
        norm_eps=float(_value(config, family, "rms_norm_eps")),
        activation=_activation(config, family),
        qkv_bias=attention_bias or family.qkv_bias,
        o_bias=attention_bias,
        mlp_bias=mlp_bias,
        qk_norm=family.qk_norm,
        norm_plus_one=family.norm_plus_one,
        sandwich_norms=family.sandwich_norms,
        fused_checkpoint=family.fused_checkpoint,
        embedding_scale=hidden**0.5 if family.scales_embeddings else None,
        attention_scale=float(scalar) ** -0.5,
        attention_softcap=_softcap(config, family, "attn_logit_softcapping"),
        logit_softcap=_softcap(config, family, "final_logit_softcapping"),
        windows=_windows(config, family, layers),
        tied_embeddings=bool(_value(config, family, "tie_word_embeddings")),
        rope=rope,
        dtype=_dtype(config),
        eos_token_ids=token_ids(_value(config, family, "eos_token_id")),
        bos_token_id=_value(config, family, "bos_token_id"),
        unread_keys=tuple(sorted(set(config) - READ_KEYS - IGNORED_KEYS)),
    )


def token_ids(value: int | list[int] | None) -> tuple[int, ...]:
    """The ids in an `eos_token_id` field, which holds none, one or a list."""
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _family(config: Config) -> Family:
    known = ", ".join(family.architecture for family in FAMILIES.values())
    model_type = config.get("model_type")
    architectures = config.get("architectures") or []
    remedy = f"Serve a model of one of these architectures: {known}"
    if architectures:
        named = [f for f in FAMILIES.values() if f.architecture == architectures[0]]
        if not named:
            message = f"the model's architecture {architectures[0]!r} is not known"
            raise ValidationError(message, field="architectures", remedy=remedy)
        if model_type is not None and model_type != named[0].model_type:
            message = f"architecture {architectures[0]!r} and model_type {model_type!r} disagree"
            raise ValidationError(message, field="model_type", remedy=remedy)
        return named[0]
    if model_type not in FAMILIES:
        message = f"the model's type {model_type!r} is not known"
        raise ValidationError(message, field="model_type", remedy=remedy)
    return FAMILIES[model_type]


def _refuse_foreign_mathematics(config: Config, family: Family) -> None:
    for key, neutral in NEUTRAL_VALUES.items():
        if key in config and key not in family.extra_keys and config[key] not in neutral:
            raise _refused(key, config[key], f"{family.architecture} is not served with it")


def _value(config: Config, family: Family, key: str) -> Any:
    return config[key] if key in config else family.defaults.get(key)


def _size(config: Config, family: Family, key: str) -> int:
    value = _value(config, family, key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise _refused(key, value, "it must be a positive whole number")
    return value


def _activation(config: Config, family: Family) -> str:
    name = _value(config, family, family.activation_key)
    if family.model_type == "gemma":
        # Official Gemma configs say "gelu" and mean the tanh form; some name it in a second key.
        second = config.get("hidden_activation") or "gelu_pytorch_tanh"
        name = "gelu_pytorch_tanh" if name in ("gelu", None) else name
        if second != name:
            raise _refused("hidden_activation", second, f"hidden_act says {name!r}")
    if name not in ACTIVATIONS:
        reason = f"known activations are {', '.join(ACTIVATIONS)}"
        raise _refused(family.activation_key, name, reason)
    return ACTIVATIONS[name]


def _softcap(config: Config, family: Family, key: str) -> float | None:
    value = _value(config, family, key) if family.soft_caps else None
    return float(value) if value is not None else None


def _windows(config: Config, family: Family, layers: int) -> tuple[int | None, ...]:
    """Window of each layer, by the family's rule for which layers have one."""
    window = None if family.window_rule == "none" else _value(config, family, "sliding_window")
    if window is not None and (not isinstance(window, int) or window < 1):
        raise _refused("sliding_window", window, "it must be a positive whole number or null")
    kinds = config.get("layer_types")
    if family.window_rule in ("none", "all"):
        kind = "full_attention" if window is None else "sliding_attention"
        if kinds is not None and set(kinds) != {kind}:
            raise _refused("layer_types", kinds, f"{family.architecture} has {kind} throughout")
        return (window,) * layers
    if family.window_rule == "from_layer" and not config.get("use_sliding_window", False):
        window = None
    if kinds is None:
        if family.window_rule == "alternate":
            sliding = [layer % 2 == 0 for layer in range(layers)]
        else:
            first = _value(config, family, "max_window_layers")
            sliding = [layer >= first for layer in range(layers)]
        return tuple(window if slides else None for slides in sliding)
    if len(kinds) != layers:
        raise _refused("layer_types", len(kinds), f"the model has {layers} layers")
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise _refused("layer_types", unknown[0], "known are sliding_attention, full_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _dtype(config: Config) -> str | None:
    name = config.get("dtype") or config.get("torch_dtype")
    if name is None:
        return None
    name = str(name).removeprefix("torch.")
    if name not in _DTYPES:
        raise _refused("torch_dtype", name, f"served types are {', '.join(_DTYPES)}")
    return name


def _refused(key: str, value: object, reason: str) -> ValidationError:
    message = f"the model's config.json says {key} = {value!r}: {reason}"
    return ValidationError(message, field=key, remedy="Serve another model or correct its config")
