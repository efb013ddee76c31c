"""Bytes between files and tensors, through the standard library's buffers."""

import ctypes
import io
from typing import Protocol

import torch

# Large enough to be quick, small enough to be hashed while it is warm in the cache, and for steps
# not to wait for the call: many Linux kernels do not give a core back within one.
_CHUNK_BYTES = 1 << 17


class Digest(Protocol):
    """A hash under way."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def read_into(stream: io.RawIOBase, view: memoryview, digest: Digest | None = None) -> int:
    """Fill `view`, feeding what was read to `digest`; fewer bytes only where the stream ends."""
    at = 0
    while at < len(view):
        count = stream.readinto(view[at : at + _CHUNK_BYTES])
        if not count:
            break
        if digest is not None:
            digest.update(view[at : at + count])
        at += count
    return at


def copy_bytes(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a contiguous CPU tensor's bytes into another's, on this thread alone.

    torch would give the calling thread a team of its own, whose threads wait for each other where
    steps have the cores.
    """
    assert to.is_contiguous(), "bytes are written as they lie"
    assert source.is_contiguous(), "bytes are read as they lie"
    assert to.device.type == source.device.type == "cpu", f"{source.device} to {to.device}"
    assert to.nbytes == source.nbytes, f"{source.nbytes} bytes into {to.nbytes}"
    ctypes.memmove(to.data_ptr(), source.data_ptr(), to.nbytes)


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, writable. It is valid only while `tensor` lives."""
    assert tensor.is_contiguous(), "a view of bytes needs contiguous memory"
    assert tensor.device.type == "cpu", f"a view of bytes on {tensor.device}"
    if tensor.nbytes == 0:
        return memoryview(b"")
    room = (ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())
    return memoryview(room).cast("B")
