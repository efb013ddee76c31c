"""The small models and adapters that tests are made of are real ones to other libraries."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adex_worker.model.spec import model_spec
from adex_worker.testing import (
    ARCHITECTURES,
    tiny_config,
    tiny_model,
    tiny_shape,
    write_random_adapter,
)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_loads_a_tiny_model_whole(architecture: str, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / architecture, architecture)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    prompt = torch.tensor([[1, 5, 6, 7]])
    with torch.no_grad():
        logits = model(prompt).logits
    assert torch.isfinite(logits).all()
    assert logits.std() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_tiny_shape_is_the_shape_the_model_room_reads(architecture: str) -> None:
    config = tiny_config(architecture)
    assert tiny_shape(config) == model_spec(config).shape


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    shape = tiny_shape(tiny_config())
    folders = [tmp_path / name for name in "abc"]
    for folder, seed in zip(folders, (1, 1, 2), strict=True):
        tiny_model(folder, seed=seed)
        write_random_adapter(folder, shape, seed=seed)
    for file in ("model.safetensors", "adapter_model.safetensors"):
        first, same, other = ((folder / file).read_bytes() for folder in folders)
        assert first == same
        assert first != other


def test_a_random_adapter_changes_what_the_model_says(tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path / "model"))
    write_random_adapter(tmp_path / "adapter", tiny_shape(tiny_config()))
    prompt = torch.tensor([[1, 5, 6, 7]])
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": -1}
    base = model.generate(prompt, **options).tolist()
    adapted: Any = PeftModel.from_pretrained(model, tmp_path / "adapter")
    assert adapted.generate(input_ids=prompt, **options).tolist() != base
