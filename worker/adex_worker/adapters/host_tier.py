"""Bundles in host memory, ready to be copied to the device."""

import threading
from dataclasses import dataclass

import torch

from adex_kernels.layout import BundleLayout
from adex_proto.errors import ProtocolViolation
from adex_worker.adapters.core.bundle_header import BundleHeader


@dataclass(frozen=True, slots=True)
class HostCopy:
    """One bundle: header, layout, and its bytes (uint8, pinned where a device copies them)."""

    header: BundleHeader
    layout: BundleLayout
    bytes: torch.Tensor


class HostTier:
    """The bundles in host memory and the bytes they take, never more than `bytes_max`.

    What is here, and who leaves, is the scheduler's decision; exceeding the budget means that the
    two sides count differently.
    """

    def __init__(self, bytes_max: int, *, pinned: bool) -> None:
        self._bytes_max = bytes_max
        self._pinned = pinned
        self._copies: dict[str, HostCopy] = {}
        self._reserved: dict[str, int] = {}
        self._lock = threading.Lock()

    def reserve(self, digest: str, bundle_bytes: int) -> torch.Tensor:
        """Room for a bundle, [bundle_bytes] uint8, counted from now on.

        Raises ProtocolViolation when the budget has no such room.
        """
        with self._lock:
            used = sum(self._reserved.values())
            if digest in self._reserved or used + bundle_bytes > self._bytes_max:
                raise ProtocolViolation(
                    f"no room in host memory for adapter {digest}: it takes {bundle_bytes} bytes,"
                    f" {used} of {self._bytes_max} are used",
                    field="host_bytes",
                )
            self._reserved[digest] = bundle_bytes
        return torch.empty(bundle_bytes, dtype=torch.uint8, pin_memory=self._pinned)

    def put(self, copy: HostCopy) -> None:
        """Fill the room that was reserved."""
        with self._lock:
            assert copy.header.version.digest in self._reserved, "a copy needs its room reserved"
            self._copies[copy.header.version.digest] = copy

    def get(self, digest: str) -> HostCopy | None:
        with self._lock:
            return self._copies.get(digest)

    def drop(self, digest: str) -> None:
        """Forget the copy, or the room reserved for it, if it is here."""
        with self._lock:
            self._copies.pop(digest, None)
            self._reserved.pop(digest, None)

    def copies(self) -> tuple[HostCopy, ...]:
        with self._lock:
            return tuple(self._copies[digest] for digest in sorted(self._copies))

    @property
    def bytes_used(self) -> int:
        with self._lock:
            return sum(self._reserved.values())
