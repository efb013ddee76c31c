"""The array types of the run room, and the one way from host arrays to the device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adex_kernels.batch import uploaded

IntArray = NDArray[np.int64]
KeyArray = NDArray[np.int32]
UintArray = NDArray[np.uint64]
FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """A host array on `device`, without waiting for it."""
    return uploaded(torch.from_numpy(array), device)


def grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """`array` with its first dimension extended to `rows` by zeros."""
    longer = np.zeros((rows, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
