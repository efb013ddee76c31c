"""Dense products with a weight that may be kept in the order its device reads fastest.

On a CPU with half-precision matrix instructions, a weight laid out once for them streams up to
twice as fast as a plain one, which is reordered in every call.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Rows per step that the packed order is chosen for; it is correct for any number.
_ROWS_EXPECTED = 32

# Not typed upstream.
_ONEDNN: Any = torch.backends.mkldnn


def packed(weight: Tensor) -> Tensor:
    """`weight` [out, in] in its device's best order, or itself where plain is best.

    The result is only good for `linear`.
    """
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return weight
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_EXPECTED)
    return result


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [rows, in] through `weight` [out, in], plain or packed: [rows, out]."""
    if weight.is_mkldnn:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return result
    return functional.linear(x, weight, bias)


def _packs(dtype: torch.dtype) -> bool:
    if not _ONEDNN.is_available():
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return False
