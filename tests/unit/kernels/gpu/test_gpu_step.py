"""A whole step through Triton's kernels, from the store to the logits, beside plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adex_kernels import dispatch
from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.gpu import check
from adex_kernels.gpu.launch import AttentionWords, attention_words
from adex_kernels.layout import Module
from adex_proto.adapter import AdapterKey
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.model.weights import load_model
from adex_worker.testing import adapter_store, tiny_model, write_random_adapter

TOKENS, PAGES = 16, 120
STARTS, LENS = [0, 20, 21, 24], [20, 1, 40]


def test_the_kernels_are_used_where_they_are_right(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, object] = {}
    monkeypatch.setattr(dispatch, "_KERNELS", served)
    assert check.serve(device, torch.float32, 4, 2, 32) == "triton"
    assert list(served) == [device.type]


def test_kernels_that_are_wrong_are_not_used_and_the_reason_is_told(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, object] = {}
    monkeypatch.setattr(dispatch, "_KERNELS", served)

    def without_first_keys(*step: Any) -> AttentionWords:
        words = attention_words(*step)
        words.items[:, 4] += 1
        return words

    monkeypatch.setattr("adex_kernels.gpu.attention.attention_words", without_first_keys)
    assert check.serve(device, torch.float32, 4, 2, 32).startswith("torch (attention is off by")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(check.TritonKernels, "attention", fail)
    assert check.serve(device, torch.float32, 4, 2, 32) == (
        "torch (RuntimeError: no such instruction)"
    )
    assert not served


def test_a_step_of_mixed_adapters_equals_the_one_of_torch(
    tmp_path: Path, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", {device.type: check.TritonKernels()})
    decoder = load_model(tiny_model(tmp_path / "model"), dtype="float32", device=str(device))
    spec = decoder.spec
    page_bytes = kv_page_bytes(TOKENS, spec.layers, spec.kv_heads, spec.head_dim, decoder.dtype)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=decoder.dtype, device=device)
    store = adapter_store(
        cache_dir=tmp_path / "cache",
        roots=[tmp_path],
        shape=spec.shape,
        dtype=decoder.dtype,
        arena=arena,
        host_bytes=1 << 26,
        disk_bytes=1 << 26,
        rank_max=64,
    )
    page = 0
    for slot, (rank, modules) in enumerate([(8, list(Module)), (3, [Module.V, Module.DOWN])], 1):
        name = f"adapter-{slot}"
        write_random_adapter(tmp_path / name, spec.shape, rank=rank, modules=modules, seed=slot)
        version = store.fetch(AdapterKey("", "local", name))
        store.stage(version.digest)
        pages = arena.pages_for(version.bundle_bytes)
        store.page_in(version.digest, slot, page, pages)
        page += pages
    kv = arena.kv(
        layers=spec.layers,
        block_tokens=TOKENS,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
    )
    tables = [[page, page + 1], [page + 2], [page + 3, page + 4, page + 5]]
    tokens = torch.randint(3, 200, (STARTS[-1],), generator=torch.Generator().manual_seed(1))
    positions = torch.tensor([*range(20), 0, *range(37, 40)])
    segments = [(0, 20, 1), (21, 24, 2)]

    def logits() -> torch.Tensor:
        batch = AttentionBatch.build(STARTS, LENS, tables, TOKENS, device=device)
        lora = LoraBatch(segments, store.slots, table=store.slots.table)
        return decoder.forward(tokens.to(device), positions.to(device), kv, batch, lora).cpu()

    assert store.slots.table is not None
    by_triton = logits()
    monkeypatch.setattr(dispatch, "_KERNELS", {})
    torch.testing.assert_close(by_triton, logits(), rtol=1e-4, atol=1e-4)
