"""Dense products with a weight that may be kept in the order its device reads fastest."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adex_kernels.native import panels
from adex_kernels.native.panels import PackedWeight, Weight

# Rows per step that oneDNN's order is chosen for; it is correct for any number.
_ROWS_EXPECTED = 32

# Not typed upstream.
_ONEDNN: Any = torch.backends.mkldnn


def packed(weight: Tensor, int8: bool = False) -> Weight:
    """`weight` [out, in] in its device's best order, or itself where plain is best.

    The result is only good for `linear`. With `int8`, which only the compiled products serve, the
    weight is rounded to eight bits.
    """
    if weight.device.type != "cpu":
        return weight
    if panels.packable(weight) and (int8 or not _has_tiles(weight.dtype)):
        return panels.pack(weight, int8)
    if not _packs(weight.dtype):
        return weight
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_EXPECTED)
    return result


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] through `weight` [out, in], plain or packed: [rows, out]."""
    if isinstance(weight, PackedWeight):
        return panels.multiply(x, weight, bias)
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return functional.linear(x, weight, bias)


def _has_tiles(dtype: torch.dtype) -> bool:
    """Whether oneDNN has matrix units here that the compiled products do not use."""
    return dtype != torch.float32 and bool(torch.cpu.get_capabilities().get("amx_tile"))


def _packs(dtype: torch.dtype) -> bool:
    if not _ONEDNN.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False
