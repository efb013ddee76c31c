"""What lies between a layer's products, in plain torch: norm after sum, rotation, gate."""

import torch
from torch import Tensor
from torch.nn import functional


def add_norm_(hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """As `dispatch.add_norm_`."""
    if out is not None:
        hidden.add_(out)
    shape = weight.shape[-1:]
    if weight.dtype != hidden.dtype:
        return functional.rms_norm(hidden.float(), shape, weight, eps).to(hidden.dtype)
    return functional.rms_norm(hidden, shape, weight, eps)


def head_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each head of x [rows, heads, head_dim] over its root mean square, times weight.

    `weight` is [heads, head_dim].
    """
    return functional.rms_norm(x, x.shape[-1:], None, eps).mul_(weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the leading cos.shape[-1] elements of each head of x [rows, heads, head_dim]."""
    rotary_dim = cos.shape[-1]
    if rotary_dim < x.shape[-1]:
        turned = rotate(x[..., :rotary_dim], cos, sin)
        return torch.cat((turned, x[..., rotary_dim:]), -1)
    half = rotary_dim // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half])
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """As `dispatch.gate`."""
    left, right = gate_up.chunk(2, 1)
    if activation == "silu":
        wide = functional.silu(left)
    else:
        form = "tanh" if activation == "gelu_tanh" else "none"
        wide = functional.gelu(left, approximate=form)
    return wide.mul_(right)
