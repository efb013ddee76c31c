"""What a step's tokens are chosen by where nothing is drawn, compiled (choice.c)."""

import numpy as np
import torch
from torch import Tensor

from adex_kernels.native import library
from adex_kernels.native.memory import address


def greedy(logits: Tensor) -> Tensor | None:
    """As `dispatch.greedy`; None where torch computes."""
    native = _native(logits)
    if native is None:
        return None
    rows, columns = logits.shape
    both = np.empty((2, rows), np.int64)
    tokens, finite = address(both), address(both[1])
    native.greedy(logits.data_ptr(), rows, columns, tokens, finite, torch.get_num_threads())
    return torch.from_numpy(both)


def log_totals(logits: Tensor) -> Tensor | None:
    """As `dispatch.log_totals`; None where torch computes."""
    native = _native(logits)
    if native is None:
        return None
    rows, columns = logits.shape
    totals = np.empty(rows, np.float32)
    native.log_totals(logits.data_ptr(), rows, columns, address(totals), torch.get_num_threads())
    return torch.from_numpy(totals)


def _native(logits: Tensor) -> library.Functions | None:
    if logits.dtype != torch.float32 or not logits.is_contiguous():
        return None
    return library.functions(logits.dtype, logits.device)
