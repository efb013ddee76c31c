"""The launches between products, against the plain torch of the decoder."""

import pytest
import torch
from torch.nn import functional

from adex_kernels import reference
from adex_kernels.batch import AttentionBatch
from adex_kernels.gpu.fused import add_norm_, gate, rotate_write_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to within three roundings of the type; the interpreter cuts bfloat16 off instead."""
    limit = {torch.float32: 2e-6, torch.bfloat16: 2.5e-2, torch.float16: 3e-3}[expected.dtype]
    torch.testing.assert_close(got.cpu(), expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("width", [64, 100, 1000])
def test_norm_after_sum(dtype: torch.dtype, adds: bool, width: int, device: torch.device) -> None:
    torch.manual_seed(width)
    hidden, out = torch.randn(2, 5, width).to(dtype)
    for weight in (torch.rand(width).to(dtype), 1 + torch.rand(width)):
        total = hidden + out if adds else hidden.clone()
        expected = functional.rms_norm(total.float(), (width,), None, 1e-5)
        expected = (
            expected.to(dtype) * weight if weight.dtype == dtype else (expected * weight).to(dtype)
        )
        there = hidden.to(device)
        got = add_norm_(there, out.to(device) if adds else None, weight.to(device), 1e-5)
        near(got, expected)
        near(there, total)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (24, 24), (32, 8)])
def test_rotation_and_the_write(
    dtype: torch.dtype, norms: bool, head_dim: int, rotary_dim: int, device: torch.device
) -> None:
    torch.manual_seed(head_dim)
    rows, heads, kv_heads, layer = 5, 4, 2, 1
    x = torch.randn(rows, heads + 2 * kv_heads, head_dim).to(dtype)
    angles = torch.rand(rows, 1, rotary_dim // 2) * 6
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    kv = torch.zeros(7, 2, 2, 4, kv_heads, head_dim, dtype=dtype)
    norm = torch.rand(heads + kv_heads, head_dim).to(dtype) if norms else None
    batch = AttentionBatch.build([0, 2, 5], [2, 11], [[6], [0, 2, 3]], 4)
    expected_cache = kv.clone()
    expected = reference.rotate_write_(
        x, (cos, sin), expected_cache, layer, batch, query_heads=heads, norm=norm, eps=1e-3
    )
    there, cache = x.to(device), kv.to(device)
    rotate_write_(
        there,
        cos.to(device),
        sin.to(device),
        cache,
        layer,
        batch.write_pages.to(device),
        batch.write_offsets.to(device),
        heads,
        None if norm is None else norm.to(device),
        1e-3,
    )
    near(there[:, :heads], expected)
    near(cache, expected_cache)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_the_gate(dtype: torch.dtype, activation: str, device: torch.device) -> None:
    torch.manual_seed(3)
    x = torch.randn(4, 2 * 1500).to(dtype)
    left, right = x.chunk(2, 1)
    active = (
        functional.silu(left.float())
        if activation == "silu"
        else functional.gelu(
            left.float(), approximate="tanh" if activation == "gelu_tanh" else "none"
        )
    )
    near(gate(x.to(device), activation), active.to(dtype) * right)
