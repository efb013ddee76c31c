"""The device memory that grows: one arena of pages, shared by KV blocks and adapter bundles.

The scheduler says which pages hold what. This module gives the two views of the same bytes and
checks the scheduler's word for adapter runs: a run outside the arena or over another adapter is a
protocol violation, never a silent overwrite.
"""

import threading

import torch

from adex_kernels.native import memory
from adex_proto.errors import ProtocolViolation

# The alignment of bundles within the arena and of vector loads within bundles.
ALIGN_BYTES = 64


def kv_page_bytes(
    block_tokens: int, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> int:
    """Bytes of one page: keys and values of one block of tokens in every layer."""
    return block_tokens * layers * 2 * kv_heads * head_dim * dtype.itemsize


class Arena:
    """`pages` pages of `page_bytes` bytes on one device, and which of them hold adapters."""

    def __init__(
        self, *, pages: int, page_bytes: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        if page_bytes % ALIGN_BYTES or page_bytes < 1 or pages < 1:
            raise ValueError(
                f"an arena needs at least one page of a multiple of {ALIGN_BYTES} bytes,"
                f" got {pages} pages of {page_bytes}"
            )
        self.pages = pages
        self.page_bytes = page_bytes
        self.dtype = dtype
        # Zeros, so that whatever a step reads past the end of a sequence is a finite number.
        self.bytes = _zeros(pages * page_bytes, torch.device(device))
        self.elements = self.bytes.view(dtype)
        self._runs: dict[int, int] = {}  # first page -> pages
        self._is_adapter = bytearray(pages)
        self._lock = threading.Lock()

    @property
    def device(self) -> torch.device:
        return self.bytes.device

    def kv(self, *, layers: int, block_tokens: int, kv_heads: int, head_dim: int) -> torch.Tensor:
        """The arena as KV blocks: [pages, layers, 2, block_tokens, kv_heads, head_dim]."""
        needed = kv_page_bytes(block_tokens, layers, kv_heads, head_dim, self.dtype)
        if needed != self.page_bytes:
            raise ValueError(f"a KV block takes {needed} bytes, a page has {self.page_bytes}")
        return self.elements.view(self.pages, layers, 2, block_tokens, kv_heads, head_dim)

    def run_elements(self, first_page: int, elements: int) -> torch.Tensor:
        """[elements] of the serving type, from the start of page `first_page`."""
        start = first_page * (self.page_bytes // self.dtype.itemsize)
        return self.elements[start : start + elements]

    def pages_for(self, bundle_bytes: int) -> int:
        """Pages that a bundle of `bundle_bytes` bytes takes."""
        return -(-bundle_bytes // self.page_bytes)

    def holds_adapter(self, page: int) -> bool:
        """Whether an adapter lies in `page`: a KV block there would be a protocol violation."""
        return self._is_adapter[page] != 0

    def claim(self, first_page: int, pages: int) -> None:
        """Record an adapter in [first_page, first_page + pages), or raise ProtocolViolation."""
        with self._lock:
            stop = first_page + pages
            if pages < 1 or first_page < 0 or stop > self.pages:
                raise ProtocolViolation(
                    f"pages [{first_page}, {stop}) are not a run inside the arena's {self.pages}",
                    field="first_page",
                )
            taken = self._is_adapter.find(1, first_page, stop)
            if taken >= 0:
                raise ProtocolViolation(
                    f"pages [{first_page}, {stop}) overlap an adapter at page {taken}",
                    field="first_page",
                )
            self._is_adapter[first_page:stop] = b"\1" * pages
            self._runs[first_page] = pages

    def release(self, first_page: int) -> None:
        """Forget the adapter whose run begins at `first_page`."""
        with self._lock:
            pages = self._runs.pop(first_page)
            self._is_adapter[first_page : first_page + pages] = bytes(pages)

    def release_all(self) -> None:
        """Forget every adapter."""
        with self._lock:
            self._runs.clear()
            self._is_adapter = bytearray(self.pages)

    @property
    def adapter_pages(self) -> int:
        """Pages that hold adapters."""
        with self._lock:
            return sum(self._runs.values())


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    """[size] uint8."""
    if device.type == "cpu":
        return memory.zeros(size)
    return torch.zeros(size, dtype=torch.uint8, device=device)
