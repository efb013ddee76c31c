"""What a tensor of an adapter file is, by its name: which layer, which linear, A or B."""

import re
from dataclasses import dataclass

from adex_kernels.layout import Module
from adex_proto.errors import AdapterMalformed, AdapterMismatch, AdapterUnsupported

NAME_LENGTH_MAX = 512

_NAME = re.compile(r"[A-Za-z0-9_.\-]+")
# Wrappers that training leaves in the names, at any depth.
_WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
_PEFT_PREFIX = "base_model.model."
# Text decoders inside causal, bare and multimodal models.
_STACK = re.compile(
    r"(?:|model\.|language_model\.|language_model\.model\.|model\.language_model\.|model\.text_model\.)"
    r"layers\.(\d{1,6})\.([a-z0-9_.]+)"
)

# Linear of a decoder layer -> the modules whose outputs its rows hold, in order.
TARGETS: dict[str, tuple[Module, ...]] = {
    "self_attn.q_proj": (Module.Q,),
    "self_attn.k_proj": (Module.K,),
    "self_attn.v_proj": (Module.V,),
    "self_attn.o_proj": (Module.O,),
    "self_attn.qkv_proj": (Module.Q, Module.K, Module.V),
    "mlp.gate_proj": (Module.GATE,),
    "mlp.up_proj": (Module.UP,),
    "mlp.down_proj": (Module.DOWN,),
    "mlp.gate_up_proj": (Module.GATE, Module.UP),
}


@dataclass(frozen=True, slots=True)
class TensorKey:
    """`path` is the module's path as training saw it, which patterns are matched against."""

    layer: int
    target: str
    side: str  # "A" or "B"
    path: str


def read_key(name: str, file: str) -> TensorKey:
    """The meaning of the tensor `name`.

    Raises AdapterUnsupported for a feature that is not served, AdapterMismatch for a linear this
    kind of base model does not have, AdapterMalformed for a name no exporter writes.
    """
    if len(name) > NAME_LENGTH_MAX or not _NAME.fullmatch(name):
        raise AdapterMalformed(
            f"`{file}` holds a tensor with the name {name[:100]!r}",
            field=name[:100] or file,
            remedy=f"Use letters, digits, `_`, `.`, `-` and at most {NAME_LENGTH_MAX} characters",
        )
    bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
    bare = bare.removeprefix(_PEFT_PREFIX)
    path, _, side = _split(bare)
    if not side:
        raise _unserved(name, bare, file)
    found = _STACK.fullmatch(path)
    if found is None or found[2] not in TARGETS:
        raise _misplaced(name, path, file)
    return TensorKey(int(found[1]), found[2], side, path)


_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.([A-Za-z0-9_\-]+))?\.weight")


def _split(bare: str) -> tuple[str, str, str]:
    """Path, name of the adapter inside the key if it has one, and side; side "" when not LoRA."""
    found = _LORA.fullmatch(bare)
    return (found[1], found[3] or "", found[2]) if found else (bare, "", "")


# Part of a tensor name -> (what it is, remedy), for names that are not lora_A or lora_B weights.
_FEATURES: tuple[tuple[str, str, str], ...] = (
    ("lora_magnitude_vector", "DoRA", "Convert it with peft.convert_to_lora or train without DoRA"),
    ("lora_embedding_", "LoRA on the embeddings", "Train on the layers' linears only"),
    (".lora_B.bias", "a LoRA bias", "Train with lora_bias=false"),
    (".lora_a", "the MLX format", "Convert it to PEFT: transpose, rename, and write the scale"),
    (".lora_b", "the MLX format", "Convert it to PEFT: transpose, rename, and write the scale"),
    ("token_adapter", "trainable tokens", "Train without trainable_token_indices"),
    ("ia3_l", "IA3", "Convert it with peft.convert_to_lora or train LoRA"),
    ("lora_E", "AdaLoRA", "Convert it to plain LoRA"),
    ("hada_", "LoHa", "Convert it with peft.convert_to_lora"),
    ("lokr_", "LoKr", "Convert it with peft.convert_to_lora"),
    ("vera_", "VeRA", "Convert it with peft.convert_to_lora"),
    ("prompt_embeddings", "a trained prompt", "Train LoRA instead"),
    ("modules_to_save", "a module saved in full", "Train without modules_to_save"),
    (".bias", "a bias", 'Train with bias="none"'),
    (".weight", "a module saved in full", "Train without modules_to_save or saved embeddings"),
)


def _unserved(name: str, bare: str, file: str) -> AdapterUnsupported:
    for part, what, remedy in _FEATURES:
        if part in bare:
            return AdapterUnsupported(
                f"tensor `{name}` in `{file}` is {what}, which is not served",
                field=name,
                remedy=remedy,
            )
    return AdapterUnsupported(
        f"tensor `{name}` in `{file}` is not a lora_A or lora_B weight",
        field=name,
        remedy="Save the adapter with PEFT as LoRA on the layers' linears",
    )


def _misplaced(name: str, path: str, file: str) -> AdapterUnsupported | AdapterMismatch:
    last = path.rsplit(".", 1)[-1]
    if last in ("lm_head", "embed_tokens") or ".experts" in path:
        return AdapterUnsupported(
            f"tensor `{name}` in `{file}` is LoRA on `{last}`, which is not served",
            field=name,
            remedy="Train with target_modules on the attention and MLP linears only",
        )
    return AdapterMismatch(
        f"tensor `{name}` in `{file}` changes `{path}`, which this base model does not have",
        field=name,
        remedy=f"Use an adapter made for this base model; its linears are {', '.join(TARGETS)}",
    )
