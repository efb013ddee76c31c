"""Whether Triton's kernels do on this device what plain torch does: tried once, before serving.

What does not compile here, or does not compute what it should, is not used: the device is then
served by torch, and the reason is told.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from adex_kernels import dispatch, draw
from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.draw import DrawnRows
from adex_kernels.gpu.kernels import TritonKernels
from adex_kernels.layout import Group, LinearShape, ModelShape, Module, bundle_layout
from adex_kernels.noise import draw_keys

_TOKENS, _PAGES, _RANK = 16, 64, 12
Noise = Callable[..., torch.Tensor]
# Between two orders of summing values of about 1, rounded to half precision.
_TOLERANCE = 0.05


def serve(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, dim: int, vocabulary: int
) -> str:
    """Have `dispatch` use the kernels on this kind of device where they are right.

    Returns: "triton", or "torch" with the reason.
    """
    kernels = TritonKernels()
    try:
        fault = _fault(kernels, device, dtype, heads, kv_heads, dim, vocabulary)
    except Exception as error:
        # Compilers fail in every way there is.
        fault = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if fault is not None:
        return f"torch ({fault[:200]})"
    dispatch.serve_with(kernels, device.type)
    return "triton"


def _fault(
    kernels: TritonKernels,
    device: torch.device,
    dtype: torch.dtype,
    heads: int,
    kv_heads: int,
    dim: int,
    vocabulary: int,
) -> str | None:
    generator = torch.Generator().manual_seed(0)

    def noise(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator).to(device, dtype)

    worst = _attention_error(kernels, noise, device, heads, kv_heads, dim)
    if not worst <= _TOLERANCE:
        return f"attention is off by {worst:.3g}"
    worst = _lora_error(kernels, noise, dim)
    if not worst <= _TOLERANCE:
        return f"low-rank terms are off by {worst:.3g}"
    worst = _between_error(kernels, noise, device, heads, kv_heads, dim)
    if not worst <= _TOLERANCE:
        return f"what lies between products is off by {worst:.3g}"
    if wrong := _wrong_draws(kernels, noise, device, vocabulary):
        return f"{wrong} draws are other tokens"
    return None


def _attention_error(
    kernels: TritonKernels, noise: Noise, device: torch.device, heads: int, kv_heads: int, dim: int
) -> float:
    """The largest difference for a chunk, a short decode and one whose keys are split."""
    counts, lens = [40, 1, 1], [50, 9, 700]
    starts = [0, 40, 41, 42]
    kv = noise(_PAGES, 1, 2, _TOKENS, kv_heads, dim)
    tables = [[*range(4)], [5], [*range(10, 54)]]
    batch = AttentionBatch.build(starts, lens, tables, _TOKENS, device=device)
    q = noise(sum(counts), heads, dim)
    expected = dispatch.attention(q, kv, 0, batch, scale=dim**-0.5)
    found = kernels.attention(q, kv, 0, batch, scale=dim**-0.5, window=None, softcap=None)
    return float((found.float() - expected.float()).abs().max())


def _between_error(
    kernels: TritonKernels, noise: Noise, device: torch.device, heads: int, kv_heads: int, dim: int
) -> float:
    """The largest difference of norm, rotation, cache and gate, for three rows of a sequence."""
    batch = AttentionBatch.build([0, 3], [18], [[3, 5]], _TOKENS, device=device)
    hidden, out, weight = noise(3, heads * dim), noise(3, heads * dim), noise(heads * dim)
    rotation = noise(3, 1, dim), noise(3, 1, dim)
    x, norm = noise(3, heads + 2 * kv_heads, dim), noise(heads + kv_heads, dim)

    def answers(way: Any) -> list[torch.Tensor]:
        kv = torch.zeros((8, 2, 2, _TOKENS, kv_heads, dim), dtype=x.dtype, device=device)
        total = hidden.clone()
        normed = way.add_norm_(total, out, weight, 1e-5)
        turned = way.rotate_write_(
            x.clone(), rotation, kv, 1, batch, query_heads=heads, norm=norm, eps=1e-5
        )
        return [total, normed, turned, kv, way.gate(x.flatten(1), "silu")]

    pairs = zip(answers(kernels), answers(dispatch), strict=True)
    return max(
        float(((found.float() - right.float()).abs() / (1 + right.float().abs())).max())
        for found, right in pairs
    )


def _wrong_draws(
    kernels: TritonKernels, noise: Noise, device: torch.device, vocabulary: int
) -> int:
    """How many rows, each with another filter, are drawn another token than torch draws."""
    top_p = np.array([1.0, 0.9, 1.0, 1.0, 0.95], np.float32)
    count = len(top_p)
    drawn = DrawnRows(
        rows=np.arange(count),
        keys=draw_keys(np.arange(count, dtype=np.uint64), np.arange(count)),
        temperature=np.linspace(0.5, 1.5, count, dtype=np.float32),
        top_k=np.array([0, 0, 50, 0, 200]),
        top_p=top_p,
        min_p=np.array([0.0, 0.0, 0.0, 0.05, 0.001], np.float32),
        typical_p=np.ones(count, np.float32),
    )
    logits = 3 * noise(count, vocabulary).float()
    finite = torch.ones(count, dtype=torch.bool, device=device)
    found, right = torch.full((2, count), -1, dtype=torch.int64, device=device)
    kernels.draw_(found, logits.clone(), finite, drawn)
    draw.draw_(right, logits, finite, drawn)
    return int((found != right).sum())


class _NoViews:
    """The table says where everything is."""

    def group(self, slot: int, layer: int, group: int) -> None:
        return None

    def record(self, slot: int) -> None:
        return None


def _lora_error(kernels: TritonKernels, noise: Noise, dim: int) -> float:
    """The largest difference for two slots of one adapter, over a linear group of three."""
    width = max(8 * dim, 1024)
    shape = ModelShape(1, tuple(LinearShape(width, width) for _ in Module))
    layout = bundle_layout(shape, {(0, module): _RANK for module in Module})
    elements = noise(layout.elements) * 0.05
    table = AdapterTable(shape, 3, elements)
    for slot in (1, 2):
        table.publish(slot, layout, 0)
    x, y = noise(20, width), noise(20, 3 * width)
    found = y.clone()
    segments = [(1, 2, 1), (2, 20, 2)]
    lora = LoraBatch(segments, _NoViews(), table=table)
    kernels.lora_add_(found, x, lora, 0, Group.QKV)
    extent = layout.group(0, Group.QKV)
    assert extent is not None
    a = elements[extent.a_offset :][: extent.rank_total * width].view(-1, width)
    shrunk = x.float() @ a.float().t()
    expected = y.float()
    for part in extent.slices:
        b = elements[part.b_offset :][: part.rank * width].view(-1, width).float()
        ranks = shrunk[1:, part.rank_start : part.rank_start + part.rank]
        expected[1:, part.out_start : part.out_start + width] += ranks @ b
    return float((found.float() - expected).abs().max() / expected.abs().max())
