"""The most probable token of each row, compiled (step.c)."""

import numpy as np
import torch
from torch import Tensor

from adex_kernels.native import library
from adex_kernels.native.memory import address


def greedy(logits: Tensor) -> Tensor | None:
    """As `dispatch.greedy`; None where torch computes."""
    native = library.functions(logits.dtype, logits.device)
    if native is None or logits.dtype != torch.float32 or not logits.is_contiguous():
        return None
    rows, columns = logits.shape
    both = np.empty((2, rows), np.int64)
    first = address(both)
    native.greedy(
        logits.data_ptr(),
        rows,
        columns,
        first,
        first + rows * both.itemsize,
        torch.get_num_threads(),
    )
    return torch.from_numpy(both)
