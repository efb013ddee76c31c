"""Memory by address, and in large pages, which a processor finds with fewer look-ups when it reads
much of it."""

import mmap
from contextlib import suppress
from typing import Any

import torch
from numpy.typing import NDArray

_LARGE_PAGE_BYTES = 1 << 21


def address(array: NDArray[Any]) -> int:
    """Where a contiguous array begins."""
    assert array.flags.c_contiguous
    return int(array.__array_interface__["data"][0])


def zeros(size: int) -> torch.Tensor:
    """[size] uint8 on the CPU; from half a large page on, these begin at the border of one. The
    kernel hands out the memory as it is first used, so that a large pool neither delays the start
    nor takes what it does not need. Raises MemoryError."""
    if 2 * size < _LARGE_PAGE_BYTES:
        return torch.zeros(size, dtype=torch.uint8)
    # Private: Linux gives large pages to memory that processes could share only where it is told.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    # A large page must lie in the mapping whole, at either end.
    whole = (-(-size // _LARGE_PAGE_BYTES) + 1) * _LARGE_PAGE_BYTES
    try:
        memory = mmap.mmap(-1, whole, flags=flags)
    except OSError as error:
        raise MemoryError(f"{size} bytes cannot be had: {error.strerror}") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # A kernel without large pages serves small ones.
            memory.madvise(mmap.MADV_HUGEPAGE)
    mapped = torch.frombuffer(memory, dtype=torch.uint8)
    start = -mapped.data_ptr() % _LARGE_PAGE_BYTES
    return mapped[start : start + size]
