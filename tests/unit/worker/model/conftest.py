"""Small random transformers models, and the same models behind our decoder."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from adex_kernels import between, dispatch
from adex_kernels.batch import AttentionBatch
from adex_kernels.native import library
from adex_worker import native
from adex_worker.config import default_cache_dir
from adex_worker.model.decoder import Decoder
from adex_worker.model.weights import load_model

BLOCK_TOKENS = 4
COMPILED_BLOCK_TOKENS = 16

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

    def __init__(
        self,
        config: dict[str, Any],
        folder: Path,
        dtype: str = "float32",
        block_tokens: int = BLOCK_TOKENS,
        device: str = "cpu",
    ) -> None:
        self.block_tokens = block_tokens
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
        self.ours: Decoder = load_model(folder, dtype=dtype, device=device)

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
        block = self.block_tokens
        pages_each = -(-max(map(len, sequences)) // block)
        shuffled = torch.randperm(pages_each * len(sequences)).view(len(sequences), pages_each)
        # What a page held before must not matter, whatever it was.
        shape = self.ours.kv_shape(shuffled.numel(), block)
        device = self.ours.device
        kv = torch.full(shape, float("nan"), dtype=self.ours.dtype, device=device)
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
            tables = [shuffled[s, : -(-done[s] // block)].tolist() for s, _ in step]
            batch = AttentionBatch.build(starts, lens, tables, block, device, wholes)
            rows = torch.cat(ids).to(device), torch.cat(positions).to(device)
            logits = self.ours.forward(*rows, kv, batch).cpu()
            for index, (sequence, _) in enumerate(step):
                found[sequence].append(logits[starts[index] : starts[index + 1]])
        return [torch.cat(pieces) for pieces in found]


@pytest.fixture(scope="session")
def compiled_kernels() -> library.Library:
    """Compiled from the source as it is; what the user's cache has of it is the same."""
    if not any(map(shutil.which, native.COMPILERS)):
        pytest.skip("there is no C compiler here")
    native.load(default_cache_dir(os.environ))
    found = library.registered()
    assert found is not None, "a compiler is here, and yet nothing was compiled"
    library.register(None)
    return found


@pytest.fixture
def compiled(
    compiled_kernels: library.Library, monkeypatch: pytest.MonkeyPatch
) -> Iterator[library.Library]:
    """Steps are compiled, and nothing but the compiled step computes them."""

    def refused(*_: object) -> Tensor:
        raise AssertionError("a step went through torch's operations")

    monkeypatch.setattr(Decoder, "_by_operations", refused)
    library.register(compiled_kernels)
    yield compiled_kernels
    library.register(None)


@pytest.fixture
def triton_device(monkeypatch: pytest.MonkeyPatch) -> str:
    """Where Triton's kernels run, a GPU or their interpreter; everything that they do is theirs."""
    kernels = pytest.importorskip("adex_kernels.gpu.kernels", reason="there is no Triton here")
    device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"

    def refused(*_: object) -> Tensor:
        raise AssertionError("a step went through torch's operations")

    for name in ("add_norm_", "rotate", "gate"):
        monkeypatch.setattr(between, name, refused)
    monkeypatch.setattr(dispatch, "_KERNELS", {device: kernels.TritonKernels()})
    return device


@pytest.fixture(params=["torch", "compiled"])
def each_way(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Pair]:
    """Makes pairs whose steps are computed by torch, or compiled."""
    way, block_tokens = request.param, BLOCK_TOKENS
    if way == "compiled":
        request.getfixturevalue("compiled")
        block_tokens = COMPILED_BLOCK_TOKENS

    def make(config: dict[str, Any], dtype: str = "float32") -> Pair:
        return Pair(config, tmp_path, dtype, block_tokens)

    return make


@pytest.fixture
def pair(tmp_path: Path) -> Callable[..., Pair]:
    def make(
        config: dict[str, Any],
        dtype: str = "float32",
        block_tokens: int = BLOCK_TOKENS,
        device: str = "cpu",
    ) -> Pair:
        return Pair(config, tmp_path, dtype, block_tokens, device)

    return make
