"""Small random models and adapters in their real file formats: a world in a line, for tests."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from adex_kernels.layout import LinearShape, ModelShape, Module
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.core.bundle_header import fingerprint_of
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.format import Limits
from adex_worker.adapters.intake import Intake
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.adapters.sources.source import Source
from adex_worker.adapters.store import AdapterStore

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")

# Module -> its path within a decoder layer, as PEFT writes it.
MODULE_PATHS: dict[Module, str] = {
    Module.Q: "self_attn.q_proj",
    Module.K: "self_attn.k_proj",
    Module.V: "self_attn.v_proj",
    Module.O: "self_attn.o_proj",
    Module.GATE: "mlp.gate_proj",
    Module.UP: "mlp.up_proj",
    Module.DOWN: "mlp.down_proj",
}
ALL_MODULES = tuple(Module)


def write_random_adapter(
    folder: Path,
    shape: ModelShape,
    *,
    rank: int = 8,
    alpha: float | None = None,
    modules: Sequence[Module] = ALL_MODULES,
    layers: Sequence[int] | None = None,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    strength: float = 1.0,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a LoRA adapter as PEFT saves one, and return its folder.

    Equal arguments give equal bytes. `layers` None means all of them. At `strength` 1 each delta is
    about as large as a linear's own output, so that adapters change what a random model says.
    `config` adds to or replaces members of adapter_config.json.
    """
    ranks, alphas = rank_pattern or {}, alpha_pattern or {}
    alpha = 2.0 * rank if alpha is None else alpha
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, torch.Tensor] = {}
    for layer in range(shape.layers) if layers is None else layers:
        for module in modules:
            path = f"model.layers.{layer}.{MODULE_PATHS[module]}"
            linear = shape.linear(module)
            r = int(_by_pattern(ranks, path, rank))
            scale = _by_pattern(alphas, path, alpha) / (math.sqrt(r) if use_rslora else r)
            a = torch.randn(r, linear.in_features, generator=generator)
            b = torch.randn(linear.out_features, r, generator=generator)
            a *= 1.0 / math.sqrt(linear.in_features)
            b *= strength / (scale * math.sqrt(r))
            tensors[f"base_model.model.{path}.lora_A.weight"] = a.to(dtype)
            tensors[f"base_model.model.{path}.lora_B.weight"] = b.to(dtype)
    members = _adapter_config(rank, alpha, modules, layers) | {
        "use_rslora": use_rslora,
        "rank_pattern": dict(ranks),
        "alpha_pattern": dict(alphas),
    }
    write_adapter(folder, members | dict(config or {}), tensors)
    return folder


def write_adapter(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Write the two files of an adapter with whatever is given, sound or not."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def _by_pattern(table: Mapping[str, float], path: str, default: float) -> float:
    for key, value in table.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _adapter_config(
    rank: int, alpha: float, modules: Sequence[Module], layers: Sequence[int] | None
) -> dict[str, Any]:
    return {
        "auto_mapping": None,
        "base_model_name_or_path": "a/tiny-model",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None if layers is None else list(layers),
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "revision": None,
        "target_modules": sorted(MODULE_PATHS[module].split(".")[1] for module in modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
    }


def tiny_model(folder: Path, architecture: str = "llama", seed: int = 0, **config: Any) -> Path:
    """Write a small random model as transformers saves one (config.json, model.safetensors).

    Further arguments replace members of config.json. Equal arguments give equal bytes. There is no
    tokenizer; the end token is 2.
    """
    members = tiny_config(architecture) | config
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(members, indent=2))
    tensors = _model_tensors(members, torch.Generator().manual_seed(seed))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tiny_shape(config: Mapping[str, Any]) -> ModelShape:
    """The linears of a model with this config.json."""
    hidden, wide = config["hidden_size"], config["intermediate_size"]
    q = config["num_attention_heads"] * config["head_dim"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    linears = ((hidden, q), (hidden, kv), (hidden, kv), (q, hidden))
    mlp = ((hidden, wide), (hidden, wide), (wide, hidden))
    return ModelShape(
        config["num_hidden_layers"], tuple(LinearShape(*sizes) for sizes in linears + mlp)
    )


def tiny_config(architecture: str = "llama") -> dict[str, Any]:
    """config.json of a tiny model of one of ARCHITECTURES."""
    members: dict[str, Any] = {
        "architectures": [_CLASSES[architecture]],
        "model_type": architecture,
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    return members | _OWN_KEYS.get(architecture, {})


_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
_GELU = "gelu_pytorch_tanh"
_OWN_KEYS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": None},
    "gemma": {"hidden_act": _GELU, "tie_word_embeddings": True},
    "gemma2": {
        "hidden_act": _GELU,
        "hidden_activation": _GELU,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 512},
}


def _model_tensors(
    config: Mapping[str, Any], generator: torch.Generator
) -> dict[str, torch.Tensor]:
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    # Gemma adds one to the weights of its norms.
    unit = 0.0 if config["model_type"].startswith("gemma") else 1.0

    def norm(size: int) -> torch.Tensor:
        return unit + 0.1 * torch.randn(size, generator=generator)

    # A tied model whose embeddings outweigh its layers would only repeat the last token.
    spread = 1.0 / hidden if config["tie_word_embeddings"] else 1.0
    tensors = {
        "model.embed_tokens.weight": spread * torch.randn(vocabulary, hidden, generator=generator),
        "model.norm.weight": norm(hidden),
    }
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = _linear(hidden, vocabulary, generator)
    shape = tiny_shape(config)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        linears = {path: shape.linear(module) for module, path in MODULE_PATHS.items()}
        for path, linear in linears.items():
            weight = _linear(linear.in_features, linear.out_features, generator)
            tensors[f"{prefix}{path}.weight"] = weight
        for name in _norm_names(config["model_type"]):
            tensors[f"{prefix}{name}.weight"] = norm(hidden)
        if config["model_type"] == "qwen2":
            for module in (Module.Q, Module.K, Module.V):
                bias = 0.1 * torch.randn(shape.linear(module).out_features, generator=generator)
                tensors[f"{prefix}{MODULE_PATHS[module]}.bias"] = bias
        if config["model_type"] == "qwen3":
            for name in ("self_attn.q_norm", "self_attn.k_norm"):
                tensors[f"{prefix}{name}.weight"] = norm(config["head_dim"])
        if config["model_type"] == "phi3":
            _fuse(tensors, prefix)
    return tensors


def _linear(in_features: int, out_features: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(out_features, in_features, generator=generator) / math.sqrt(in_features)


def _norm_names(model_type: str) -> tuple[str, ...]:
    names = ("input_layernorm", "post_attention_layernorm")
    if model_type == "gemma2":
        return (*names, "pre_feedforward_layernorm", "post_feedforward_layernorm")
    return names


def _fuse(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    for fused, parts in (
        ("self_attn.qkv_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("mlp.gate_up_proj", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        weights = [tensors.pop(f"{prefix}{part}.weight") for part in parts]
        tensors[f"{prefix}{fused}.weight"] = torch.cat(weights)


def adapter_store(
    *,
    cache_dir: Path,
    roots: Sequence[Path],
    remote: Mapping[str, Source] | None = None,
    shape: ModelShape,
    dtype: torch.dtype,
    arena: Arena,
    host_bytes: int,
    disk_bytes: int,
    rank_max: int,
) -> AdapterStore:
    """A worker's tiers, with what brings adapters in this process."""
    disk = DiskTier(cache_dir, fingerprint_of(shape, str(dtype).removeprefix("torch.")))
    budget = min(host_bytes, disk_bytes, arena.pages * arena.page_bytes)
    limits = Limits(shape, dtype.itemsize, rank_max, budget)
    sources = {"local": LocalSource(roots), **(remote or {})}
    return AdapterStore(
        bringer=Intake(sources, disk, limits, dtype),
        disk=disk,
        shape=shape,
        dtype=dtype,
        arena=arena,
        host_bytes=host_bytes,
    )
