"""The architectures the decoder knows, as data: how each family departs from plain Llama."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture; `defaults` are its configuration class's, for keys a config leaves out.

    `window_rule` says which layers have a sliding window: "none", "all", "from_layer" (those from
    `max_window_layers` on, when `use_sliding_window`) or "alternate" (every second one, from the
    first). `extra_keys` are keys that it reads and others must not set.
    """

    architecture: str
    model_type: str
    defaults: Mapping[str, Any]
    activation_key: str = "hidden_act"
    qkv_bias: bool = False
    reads_mlp_bias: bool = False
    qk_norm: bool = False
    norm_plus_one: bool = False
    sandwich_norms: bool = False
    scales_embeddings: bool = False
    soft_caps: bool = False
    fused_checkpoint: bool = False
    partial_rotary: bool = False
    window_rule: str = "none"
    extra_keys: frozenset[str] = field(default_factory=frozenset[str])


_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
}

_GEMMA: dict[str, Any] = _COMMON | {
    "vocab_size": 256000,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
}

_QWEN: dict[str, Any] = _COMMON | {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}

_WINDOW_KEYS = frozenset({"sliding_window", "layer_types"})

_FAMILIES = (
    Family(
        architecture="LlamaForCausalLM",
        model_type="llama",
        defaults=_COMMON
        | {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        reads_mlp_bias=True,
        extra_keys=frozenset({"attention_bias", "mlp_bias"}),
    ),
    Family(
        architecture="MistralForCausalLM",
        model_type="mistral",
        defaults=_COMMON
        | {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        window_rule="all",
        extra_keys=frozenset({"sliding_window"}),
    ),
    Family(
        architecture="Qwen2ForCausalLM",
        model_type="qwen2",
        defaults=_QWEN,
        qkv_bias=True,
        window_rule="from_layer",
        extra_keys=_WINDOW_KEYS | {"use_sliding_window"},
    ),
    Family(
        architecture="Qwen3ForCausalLM",
        model_type="qwen3",
        defaults=_QWEN | {"head_dim": 128},
        qk_norm=True,
        window_rule="from_layer",
        extra_keys=_WINDOW_KEYS | {"use_sliding_window", "attention_bias"},
    ),
    Family(
        architecture="GemmaForCausalLM",
        model_type="gemma",
        defaults=_GEMMA
        | {
            "hidden_size": 3072,
            "intermediate_size": 24576,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
        },
        norm_plus_one=True,
        scales_embeddings=True,
        extra_keys=frozenset({"attention_bias"}),
    ),
    Family(
        architecture="Gemma2ForCausalLM",
        model_type="gemma2",
        defaults=_GEMMA
        | {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "final_logit_softcapping": 30.0,
            "attn_logit_softcapping": 50.0,
        },
        activation_key="hidden_activation",
        norm_plus_one=True,
        sandwich_norms=True,
        scales_embeddings=True,
        soft_caps=True,
        window_rule="alternate",
        extra_keys=_WINDOW_KEYS
        | {
            "attention_bias",
            "query_pre_attn_scalar",
            "final_logit_softcapping",
            "attn_logit_softcapping",
        },
    ),
    Family(
        architecture="Phi3ForCausalLM",
        model_type="phi3",
        defaults=_COMMON
        | {
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
            "original_max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "bos_token_id": 1,
            "eos_token_id": 32000,
        },
        fused_checkpoint=True,
        partial_rotary=True,
        window_rule="all",
        extra_keys=frozenset({"sliding_window", "partial_rotary_factor"}),
    ),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}

# Keys that change the mathematics of some model somewhere, with the values at which they do not.
# A family that reads such a key lists it in `extra_keys`; elsewhere any other value is refused.
NEUTRAL_VALUES: dict[str, tuple[object, ...]] = {
    "alibi": (None, False),
    "attention_bias": (None, False),
    "attention_chunk_size": (None,),
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "compression_config": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "is_encoder_decoder": (None, False),
    "logit_scale": (None, 1, 1.0),
    "logits_scaling": (None, 1, 1.0),
    "mlp_bias": (None, False),
    "no_rope_layers": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "partial_rotary_factor": (None, 1, 1.0),
    "position_embedding_type": (None, "rope"),
    "qkv_bias": (None,),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1, 1.0),
    "scale_emb": (None, 1, 1.0),
    "sliding_window": (None,),
    "tie_encoder_decoder": (None, False),
    "use_bidirectional_attention": (None, False),
    "use_mrope": (None, False),
    "use_qk_norm": (None, False),
    "use_sliding_window": (None, False),
}

READ_KEYS: frozenset[str] = frozenset(NEUTRAL_VALUES) | {
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
}

# Keys of training, generation defaults and bookkeeping: none of them reaches the forward pass.
IGNORED_KEYS: frozenset[str] = frozenset(
    {
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_name_or_path",
        "attention_dropout",
        "auto_map",
        "cache_implementation",
        "chunk_size_feed_forward",
        "embd_pdrop",
        "id2label",
        "initializer_range",
        "is_decoder",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "resid_pdrop",
        "return_dict",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "transformers_version",
        "unsloth_fixed",
        "use_cache",
    }
)
