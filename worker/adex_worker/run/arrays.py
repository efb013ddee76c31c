"""The array types of the run room, and the one way from host arrays to the device."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adex_kernels.batch import uploaded

IntArray = NDArray[np.int64]
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


class Download:
    """Tensors on their way to the host. `read` waits for them and for nothing launched later."""

    def __init__(self, device: torch.device, *tensors: Tensor) -> None:
        self._tensors = [_host_copy(tensor) for tensor in tensors]
        self._arrived: Any = None
        if device.type == "cuda":
            cuda: Any = torch.cuda
            self._arrived = cuda.Event()
            self._arrived.record(cuda.current_stream(device))

    def wait(self) -> None:
        """Return when the device has done all that was launched before; any thread may call."""
        if self._arrived is not None:
            self._arrived.synchronize()

    def read(self) -> list[NDArray[Any]]:
        self.wait()
        return [tensor.numpy() for tensor in self._tensors]


def _host_copy(tensor: Tensor) -> Tensor:
    if not tensor.is_cuda:
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
