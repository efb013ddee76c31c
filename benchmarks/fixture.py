"""The benchmark's own model and adapters: random weights of a fixed shape, made once and cached.

The model has 88 M parameters (hidden 768, 12 layers, 12 heads over 4 key-value heads, ffn 2048,
vocabulary 8192). Its tokenizer maps the words w0, w1, ... to ids 0, 1, ..., so that a prompt of n
words is a prompt of n tokens. Adapters change all seven linears, with ranks 8, 16 and 32 in turn,
and are written by the real `peft` library with B matrices that are not zero.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 8192
RANKS = (8, 16, 32)
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "intermediate_size": 2048,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def adapter_name(index: int) -> str:
    """Folder name of adapter `index` under the adapters' root."""
    return f"adapter-{index:04d}"


def prepare(root: Path, adapters: int, dtype: str) -> tuple[Path, Path]:
    """Make what is missing under `root`; returns the model's folder and the adapters' root."""
    model_dir, adapter_root = root / f"model-{dtype}", root / f"adapters-{dtype}"
    missing = [i for i in range(adapters) if not _complete(adapter_root / adapter_name(i))]
    if _complete(model_dir) and not missing:
        return model_dir, adapter_root
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(getattr(torch, dtype)).eval()
    if not _complete(model_dir):
        _write(model_dir, lambda folder: _save_model(model, folder))
    for index in missing:
        _write(adapter_root / adapter_name(index), lambda f, i=index: _save_adapter(model, i, f))
    return model_dir, adapter_root


def _complete(folder: Path) -> bool:
    return (folder / "complete").is_file()


def _write(folder: Path, save: Callable[[Path], None]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(folder)
    (folder / "complete").touch()


def _save_model(model: LlamaForCausalLM, folder: Path) -> None:
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w2"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "w0", "eos_token": "w1", "add_bos_token": False})
    )


def _save_adapter(model: LlamaForCausalLM, index: int, folder: Path) -> None:
    rank = RANKS[index % len(RANKS)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=LINEARS, task_type="CAUSAL_LM")
    tuned = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(index)
    for name, tensor in tuned.named_parameters():
        if "lora_B" in name:
            noise = torch.randn(tensor.shape, generator=generator) * 0.02
            tensor.data.copy_(noise.to(tensor.dtype))
    tuned.save_pretrained(folder)
    tuned.unload()
