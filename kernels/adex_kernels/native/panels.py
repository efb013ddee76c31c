"""Weights in the order that the compiled products read them (linear.h), and such a product."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from adex_kernels.native import library, memory

PANEL = 64

_INT8_MAX = 127

# A weight that eight bits would change by more than this part, in absolute values summed, stays
# as it is. Normal numbers lose 0.01; sums of squares would hide what is lost beside an outlier.
INT8_LOSS_MAX = 0.03


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A weight [out, in] of serving type `dtype` in panels of 64 rows; those behind the last are 0.

    `panels` is [panels, in, 64], of bfloat16 [panels, in / 2, 64, 2]; with `scales` [out] float32
    it is int8, and a weight is its panel's number times its row's scale.
    """

    panels: Tensor
    scales: Tensor | None
    out_features: int
    in_features: int
    dtype: torch.dtype

    def numel(self) -> int:
        return self.out_features * self.in_features


# Plain, in oneDNN's order, or in that of the compiled products.
Weight = Tensor | PackedWeight


class LinearStruct(ctypes.Structure):
    """linear.h's `Linear`."""

    _fields_ = (
        ("panels", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("in_features", ctypes.c_int64),
        ("out_features", ctypes.c_int64),
    )


def packable(weight: Tensor) -> bool:
    """Whether the compiled products serve such a weight here."""
    pairs = weight.shape[1] % 2 == 0
    return pairs and library.functions(weight.dtype, weight.device) is not None


def pack(weight: Tensor, int8: bool = False) -> PackedWeight:
    """`weight` [out, in] in panels; rounded to eight bits, if so asked and it survives that."""
    (out_features, in_features), scales, dtype = weight.shape, None, weight.dtype
    if int8:
        weight, scales = _rounded(weight)
    count = -(-out_features // PANEL)
    panels = weight.new_zeros((count * PANEL, in_features))
    panels[:out_features] = weight
    if dtype == torch.bfloat16:
        panels = panels.view(count, PANEL, in_features // 2, 2).permute(0, 2, 1, 3)
    else:
        panels = panels.view(count, PANEL, in_features).permute(0, 2, 1)
    # A step reads all of it: most of what it waits for is memory, and the look-up of its pages.
    kept = memory.zeros(panels.numel() * panels.itemsize).view(panels.dtype).view(panels.shape)
    return PackedWeight(kept.copy_(panels), scales, out_features, in_features, dtype)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """The weight as int8 and its rows' scales, or itself and None where too much would be lost."""
    exact = weight.float()
    scales = (exact.abs().amax(1) / _INT8_MAX).clamp_(min=torch.finfo(torch.float32).tiny)
    rounded = (exact / scales.unsqueeze(1)).round_()
    lost = float((rounded * scales.unsqueeze(1) - exact).abs().sum())
    if not lost <= INT8_LOSS_MAX * float(exact.abs().sum()):
        return weight, None
    return rounded.to(torch.int8), scales


def linear_struct(weight: PackedWeight, bias: int | None) -> LinearStruct:
    """`bias` is the address of float32 numbers, or None."""
    return LinearStruct(
        weight.panels.data_ptr(),
        bias,
        None if weight.scales is None else weight.scales.data_ptr(),
        weight.in_features,
        weight.out_features,
    )


def panel_bytes(in_features: int, dtype: torch.dtype) -> int:
    """The room of one panel in the serving type."""
    return in_features * PANEL * dtype.itemsize


def multiply(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [rows, in] through the weight: [rows, out]."""
    native = library.functions(weight.dtype, x.device)
    assert native is not None, "the library that packed the weight is still registered"
    assert x.dtype == weight.dtype, "rows are of the serving type"
    x = x.contiguous()
    y = x.new_empty((x.shape[0], weight.out_features))
    threads = torch.get_num_threads()
    floats = None if bias is None else bias.float().contiguous()
    struct = linear_struct(weight, None if floats is None else floats.data_ptr())
    scratch = torch.empty(threads * weight.in_features * PANEL)
    native.linear(
        ctypes.addressof(struct),
        x.data_ptr(),
        y.data_ptr(),
        x.shape[0],
        scratch.data_ptr(),
        threads,
    )
    return y
