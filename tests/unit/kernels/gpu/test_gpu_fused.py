"""The launches between products, against the plain torch of the decoder."""

import pytest
import torch
from torch.nn import functional

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
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(16, 16), (24, 24), (32, 8)])
def test_rotation_and_the_write(
    dtype: torch.dtype, head_dim: int, rotary_dim: int, device: torch.device
) -> None:
    torch.manual_seed(head_dim)
    rows, heads, kv_heads, layer = 5, 4, 2, 1
    x = torch.randn(rows, heads + 2 * kv_heads, head_dim).to(dtype)
    angles = torch.rand(rows, 1, rotary_dim // 2) * 6
    cos = torch.cat((angles.cos(), angles.cos()), -1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), -1).to(dtype)
    kv = torch.zeros(7, 2, 2, 4, kv_heads, head_dim, dtype=dtype)
    pages, offsets = torch.tensor([6, 6, 2, 0, 3]), torch.tensor([0, 1, 3, 2, 0])
    half = rotary_dim // 2
    swapped = torch.cat((x[..., half:rotary_dim], x[..., :half]), -1).float()
    turned = x.clone()
    turned[..., :rotary_dim] = (x[..., :rotary_dim].float() * cos + swapped * sin).to(dtype)
    expected = kv.clone()
    expected[pages, layer, 0, offsets] = turned[:, heads : heads + kv_heads]
    expected[pages, layer, 1, offsets] = x[:, heads + kv_heads :]
    there, cache = x.to(device), kv.to(device)
    rotate_write_(
        there,
        cos.to(device),
        sin.to(device),
        cache,
        layer,
        pages.to(device),
        offsets.to(device),
        heads,
    )
    near(there[:, :heads], turned[:, :heads])
    near(cache, expected)


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
