"""A whole step through Triton's kernels, from host memory to the logits, beside plain torch."""

from typing import Any

import pytest
import torch

from adex_kernels import dispatch
from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.gpu import check
from adex_kernels.gpu.launch import AttentionWords, attention_words
from adex_kernels.layout import Module, bundle_layout
from adex_proto.adapter import AdapterVersion
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.core.bundle_header import BundleHeader
from adex_worker.adapters.device_tier import DeviceTier
from adex_worker.adapters.host_tier import HostCopy
from adex_worker.model.parameters import random_model
from adex_worker.model.spec import model_spec
from adex_worker.testing import tiny_config

TOKENS, PAGES = 16, 120
STARTS, LENS = [0, 20, 21, 24], [20, 1, 40]


def test_the_kernels_are_used_where_they_are_right(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, object] = {}
    monkeypatch.setattr(dispatch, "_KERNELS", served)
    assert check.serve(device, torch.float32, 4, 2, 32, 5000) == "triton"
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
    sizes = 4, 2, 32, 5000
    assert check.serve(device, torch.float32, *sizes).startswith("torch (attention is off by")

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(check.TritonKernels, "attention", fail)
    assert check.serve(device, torch.float32, *sizes) == (
        "torch (RuntimeError: no such instruction)"
    )
    assert not served


def test_draws_that_are_wrong_are_noticed_too(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: dict[str, object] = {}
    monkeypatch.setattr(dispatch, "_KERNELS", served)

    def greedy(_: object, chosen: torch.Tensor, logits: torch.Tensor, *__: object) -> None:
        chosen.copy_(logits.argmax(1))

    monkeypatch.setattr(check.TritonKernels, "draw_", greedy)
    told = check.serve(device, torch.float32, 4, 2, 32, 5000)
    assert told.endswith(" draws are other tokens)")
    assert not served


def test_a_step_of_mixed_adapters_equals_the_one_of_torch(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_KERNELS", {device.type: check.TritonKernels()})
    spec = model_spec(tiny_config())
    decoder = random_model(spec, device=device, spread=0.2)
    page_bytes = kv_page_bytes(TOKENS, spec.layers, spec.kv_heads, spec.head_dim, decoder.dtype)
    arena = Arena(pages=PAGES, page_bytes=page_bytes, dtype=decoder.dtype, device=device)
    tier = DeviceTier(arena, AdapterTable(spec.shape, 3, arena.elements))
    page = 0
    for slot, (rank, modules) in enumerate([(8, list(Module)), (3, [Module.V, Module.DOWN])], 1):
        ranks = {(layer, m): rank for layer in range(spec.layers) for m in modules}
        layout = bundle_layout(spec.shape, ranks)
        noise = torch.randn(layout.elements, generator=torch.Generator().manual_seed(slot))
        bundle = (0.2 * noise).view(torch.uint8)
        version = AdapterVersion(str(slot), bundle.numel(), rank, len(ranks))
        copy = HostCopy(BundleHeader(version, "", "", ranks, ""), layout, bundle)
        pages = arena.pages_for(bundle.numel())
        tier.page_in(copy, slot, page, pages)
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
        lora = LoraBatch(segments, tier.slots, table=tier.slots.table)
        return decoder.forward(tokens.to(device), positions.to(device), kv, batch, lora).cpu()

    assert tier.slots.table is not None
    by_triton = logits()
    monkeypatch.setattr(dispatch, "_KERNELS", {})
    torch.testing.assert_close(by_triton, logits(), rtol=1e-4, atol=1e-4)
