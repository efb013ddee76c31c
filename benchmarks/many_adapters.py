"""A thousand adapters of the benchmark's model, each of its own bytes, made once and cached."""

from pathlib import Path

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file

from fixture import RANKS, adapter_name, prepare

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def prepare_many(work: Path, count: int, dtype: str) -> tuple[Path, Path]:
    """The model's folder and a root with `count` adapters.

    PEFT writes one adapter of each rank; the others have its form, and B matrices of their own.
    """
    model, templates = prepare(work, len(RANKS), dtype)
    tensors = [load_file(templates / adapter_name(k) / WEIGHTS) for k in range(len(RANKS))]
    root = work / f"many-{dtype}"
    missing = [i for i in range(count) if not (root / adapter_name(i) / "complete").is_file()]
    for index in track(missing, "making adapters", disable=not missing):
        folder = root / adapter_name(index)
        folder.mkdir(parents=True, exist_ok=True)
        generator = torch.Generator().manual_seed(index)
        fresh = {
            name: _noise(tensor, generator) if "lora_B" in name else tensor
            for name, tensor in tensors[index % len(RANKS)].items()
        }
        save_file(fresh, folder / WEIGHTS)
        config = templates / adapter_name(index % len(RANKS)) / CONFIG
        (folder / CONFIG).write_bytes(config.read_bytes())
        (folder / "complete").touch()
    return model, root


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(like.shape, generator=generator) * 0.02).to(like.dtype)
