"""Small random transformers models, and the same models behind our decoder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adex_kernels.batch import AttentionBatch
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model

BLOCK_TOKENS = 4

SMALL = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Pair:
    """One model twice: transformers' own, and ours loaded from what it saved."""

    def __init__(self, config: dict[str, Any], folder: Path, dtype: str = "float32") -> None:
        torch.manual_seed(7)
        self.theirs = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**(SMALL | config)), attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            for name, parameter in self.theirs.named_parameters():
                # Norms and biases too, so that one left out cannot hide; large enough that
                # attention is far from uniform.
                mean = 1.0 if "norm" in name and "gemma" not in config["model_type"] else 0.0
                parameter.normal_(mean, 0.2)
        self.theirs.save_pretrained(folder)
        self.folder = folder
        self.ours: Decoder = load_model(folder, dtype=dtype)

    def expected(self, token_ids: Tensor) -> Tensor:
        """[tokens, vocabulary], the sequence alone and in one go."""
        with torch.no_grad():
            logits: Tensor = self.theirs(token_ids[None]).logits[0]
        return logits

    def answers(
        self,
        sequences: Sequence[Tensor],
        steps: Sequence[Sequence[tuple[int, int]]],
        known_lens: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """Logits of each sequence's tokens, in steps of (sequence, tokens) over mixed blocks."""
        pages_each = -(-max(map(len, sequences)) // BLOCK_TOKENS)
        shuffled = torch.randperm(pages_each * len(sequences)).view(len(sequences), pages_each)
        # What a page held before must not matter, whatever it was.
        shape = self.ours.kv_shape(shuffled.numel(), BLOCK_TOKENS)
        kv = torch.full(shape, float("nan"), dtype=self.ours.dtype)
        done = [0] * len(sequences)
        found: list[list[Tensor]] = [[] for _ in sequences]
        for step in steps:
            starts, lens, wholes = [0], [], []
            ids, positions = [], []
            for sequence, tokens in step:
                ids.append(sequences[sequence][done[sequence] : done[sequence] + tokens])
                positions.append(torch.arange(done[sequence], done[sequence] + tokens))
                done[sequence] += tokens
                starts.append(starts[-1] + tokens)
                lens.append(done[sequence])
                wholes.append(known_lens[sequence] if known_lens else done[sequence])
            tables = [shuffled[s, : -(-done[s] // BLOCK_TOKENS)].tolist() for s, _ in step]
            batch = AttentionBatch.build(starts, lens, tables, BLOCK_TOKENS, sequence_lens=wholes)
            logits = self.ours.forward(torch.cat(ids), torch.cat(positions), kv, batch)
            for index, (sequence, _) in enumerate(step):
                found[sequence].append(logits[starts[index] : starts[index + 1]])
        return [torch.cat(pieces) for pieces in found]


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Pair]:
    def make(config: dict[str, Any], dtype: str = "float32") -> Pair:
        return Pair(config, tmp_path, dtype)

    return make
