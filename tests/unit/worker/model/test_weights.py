"""Checkpoints: where their tensors go, and what is said of those that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from adex_kernels.batch import AttentionBatch
from adex_proto.errors import ValidationError
from adex_worker.model.decoder import Decoder
from adex_worker.model.parameters import random_model
from adex_worker.model.source import ModelSource
from adex_worker.model.spec import model_spec
from adex_worker.model.weights import load_model

LLAMA = {"model_type": "llama"}


def logits(decoder: Decoder) -> Tensor:
    tokens = torch.arange(3, 12)
    batch = AttentionBatch.build([0, 9], [9], [[0]], 16)
    kv = torch.zeros(decoder.kv_shape(1, 16), dtype=decoder.dtype)
    return decoder.forward(tokens, torch.arange(9), kv, batch)


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    with pytest.raises(ValidationError) as caught:
        load_model(folder)
    return caught.value.message


def test_a_checkpoint_in_shards_is_the_model_in_one_file(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)
    expected = logits(both.ours)
    (both.folder / "model.safetensors").unlink()
    both.theirs.save_pretrained(both.folder, max_shard_size="40KB")
    assert len(list(both.folder.glob("*.safetensors"))) > 2
    assert torch.equal(logits(load_model(both.folder)), expected)


def test_progress_counts_every_tensor(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)
    seen: list[tuple[int, int]] = []
    load_model(both.folder, progress=lambda done, total: seen.append((done, total)))
    total = len(both.theirs.state_dict())
    assert seen == [(done, total) for done in range(1, total + 1)]


def test_names_without_the_leading_model_and_derived_tensors_are_taken(
    pair: Callable[..., Any],
) -> None:
    both = pair(LLAMA)
    expected = logits(both.ours)

    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)
        tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(6)

    change_tensors(both.folder, rename)
    assert torch.equal(logits(load_model(both.folder)), expected)


def test_a_tied_model_ignores_a_stored_copy_of_its_head(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA | {"tie_word_embeddings": True})
    expected = logits(both.ours)

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = torch.zeros(97, 48)

    change_tensors(both.folder, add)
    assert torch.equal(logits(load_model(both.folder)), expected)


def test_missing_tensors_are_named(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)
    name = "model.layers.1.mlp.up_proj.weight"
    change_tensors(both.folder, lambda tensors: tensors.pop(name))
    assert "layers.1.mlp.up_proj.weight" in refusal(both.folder)


def test_tensors_without_a_place_are_named(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)

    def add(tensors: dict[str, Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(48)

    change_tensors(both.folder, add)
    assert "model.layers.0.self_attn.q_proj.bias" in refusal(both.folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)

    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = torch.zeros(47)

    change_tensors(both.folder, cut)
    message = refusal(both.folder)
    assert "model.norm.weight" in message
    assert "(47,)" in message
    assert "(48,)" in message


def test_quantized_tensors_are_refused(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)

    def quantize(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.mlp.down_proj.weight"
        tensors[name] = tensors[name].to(torch.int8)

    change_tensors(both.folder, quantize)
    assert "quantized" in refusal(both.folder)


def test_a_damaged_file_is_refused_by_name(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)
    (both.folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors" in refusal(both.folder)


def test_an_index_cannot_name_a_file_outside_the_model(
    pair: Callable[..., Any], tmp_path: Path
) -> None:
    both = pair(LLAMA)
    index = {"weight_map": {"model.norm.weight": "../model.safetensors"}}
    (both.folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "../model.safetensors" in refusal(both.folder)


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ValidationError, match="safetensors"):
        ModelSource(str(tmp_path)).checkpoint_files()


def test_the_type_is_the_checkpoints_unless_another_is_asked_for(
    pair: Callable[..., Any],
) -> None:
    both = pair(LLAMA)
    both.theirs.to(torch.bfloat16).save_pretrained(both.folder)
    assert load_model(both.folder).dtype == torch.bfloat16
    assert load_model(both.folder, dtype="float32").dtype == torch.float32
    with pytest.raises(ValidationError, match="int4"):
        load_model(both.folder, dtype="int4")


def test_generation_config_says_what_ends_a_sequence(pair: Callable[..., Any]) -> None:
    both = pair(LLAMA)
    assert ModelSource(str(both.folder)).spec().eos_token_ids == (2,)
    (both.folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert load_model(both.folder).spec.eos_token_ids == (5, 6)


def test_a_random_model_depends_on_its_seed_alone() -> None:
    config = {
        "model_type": "gemma2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 50,
    }
    spec = model_spec(config)
    first, again, other = (logits(random_model(spec, seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
