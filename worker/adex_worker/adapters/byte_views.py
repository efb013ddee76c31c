"""The bytes of a CPU tensor as the standard library's buffers see them."""

import ctypes

import torch


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable. It is valid only while `tensor` lives."""
    assert tensor.is_contiguous(), "a view of bytes needs contiguous memory"
    assert tensor.device.type == "cpu", f"a view of bytes on {tensor.device}"
    if tensor.nbytes == 0:
        return memoryview(b"")
    room = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(room).cast("B")
