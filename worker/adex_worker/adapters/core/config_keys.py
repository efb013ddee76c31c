"""Every key an adapter_config.json may hold: what is read, what is harmless, what is refused.

Training-only keys say where the tensors were put or how they were made; the tensors themselves are
the truth. Keys that change the arithmetic are refused by name until they are served. A key in none
of these tables is refused when its value is truthy: a newer option may change the arithmetic too.
"""

READ = frozenset(
    {
        "peft_type",
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "init_lora_weights",
    }
)

HARMLESS = frozenset(
    {
        "task_type",
        "peft_version",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "lora_dropout",
        # How the base stores its weights; A and B are stored the same way round in both cases.
        "fan_in_fan_out",
        # A default string even where megatron_config, which is refused, is null.
        "megatron_core",
        "ensure_weight_tying",
        "runtime_config",
        # Recipes of initialisations; the initialisation itself is judged by init_lora_weights.
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        # A default number even where use_qalora, which is refused, is false.
        "qalora_group_size",
        # Optimiser and precision settings that some trainers leave behind.
        "lora_dtype",
        "lorap_lr_ratio",
        "lorap_emb_lr",
        "model_key_mapping",
        "enable_lora",
        "merge_weights",
    }
)

_DENSE = "Train with this option off, or merge the adapter into the base model"
_TOKENS = "Train without it, or serve the base model with the changed embeddings merged in"

# Key -> remedy. Refused when the value is truthy.
UNSUPPORTED: dict[str, str] = {
    "use_dora": "Train with use_dora=false, or convert with peft.convert_to_lora",
    "lora_bias": "Train with lora_bias=false",
    "modules_to_save": "Train without modules_to_save: only LoRA on the layers' linears is served",
    "trainable_token_indices": _TOKENS,
    "alora_invocation_tokens": "Train without alora_invocation_tokens",
    "use_qalora": "Train with use_qalora=false",
    "use_bdlora": "Train without use_bdlora",
    "layer_replication": "Train without layer_replication: it changes the depth of the base model",
    "megatron_config": "Convert the adapter to the layout of transformers and save it with PEFT",
    "target_parameters": "Train with target_modules on linears instead of target_parameters",
    "arrow_config": _DENSE,
    "kasa_config": _DENSE,
    "velora_config": _DENSE,
    "monteclora_config": _DENSE,
}

# Initialisations that change the base model during training, so that A and B alone are not the
# delta. Matched as prefixes of the lower-cased value.
BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq")
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "lora_ga", "mica"})
INIT_REMEDY = (
    "Save it with save_pretrained(path_initial_model_for_weight_conversion=...),"
    " which turns it into plain LoRA"
)
