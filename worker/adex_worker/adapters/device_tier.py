"""Bundles on the device: runs of the arena's pages, and the slots by which steps address them."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

import torch

from adex_kernels.adapter_table import AdapterTable
from adex_proto.adapter import BASE_SLOT
from adex_proto.errors import ProtocolViolation
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.byte_views import copy_bytes
from adex_worker.adapters.host_tier import HostCopy
from adex_worker.adapters.views import ResidentSlots


class DeviceTier:
    """Which adapter is in which slot and pages. The step thread reads only `slots`."""

    def __init__(self, arena: Arena, table: AdapterTable | None = None) -> None:
        self.slots = ResidentSlots(table)
        self._arena = arena
        self._held: dict[str, tuple[int, int]] = {}  # digest -> (slot, first page)
        self._claimed_slots: set[int] = set()
        self._copying = 0
        self._releasing = False
        self._era = 0
        self._changed = threading.Condition()
        # Copies run on a stream of their own, beside the steps.
        on_cuda = arena.device.type == "cuda"
        self._stream = _stream(arena.device) if on_cuda else None

    def page_in(self, copy: HostCopy, slot: int, first_page: int, pages: int) -> None:
        """Copy the bundle to its pages and make it visible as `slot`. Blocks until it is there.

        Raises ProtocolViolation when slot or pages are taken, or the run is not the bundle's size.
        """
        digest, bundle_bytes = copy.header.version.digest, copy.header.version.bundle_bytes
        needed = self._arena.pages_for(bundle_bytes)
        if pages != needed:
            raise ProtocolViolation(
                f"adapter {digest} takes {needed} pages, the command gives {pages}", field="pages"
            )
        with self._claimed(digest, slot, first_page, pages) as era:
            elements = self._arena.run_elements(first_page, copy.layout.elements)
            first_element = int(elements.storage_offset())
            self._copy(elements, copy, slot, first_element)
            with self._changed:
                if era != self._era:
                    raise ProtocolViolation(
                        f"adapter {digest} was paged in for a stream that has ended", field="slot"
                    )
                self.slots.publish(slot, elements, copy.layout)
                self._held[digest] = slot, first_page

    def evict(self, digest: str) -> None:
        """Hide the adapter from steps and free its pages; ProtocolViolation when it is not here."""
        with self._changed:
            if digest not in self._held:
                raise ProtocolViolation(
                    f"adapter {digest} is not on the device and cannot be evicted", field="digest"
                )
            slot, first_page = self._held.pop(digest)
            self.slots.withdraw(slot)
            self._claimed_slots.discard(slot)
            self._arena.release(first_page)

    def release_all(self) -> None:
        """Forget every adapter; page-ins under way are waited for and come to nothing."""
        with self._changed:
            self._era += 1
            self._releasing = True
            self._changed.wait_for(lambda: not self._copying)
            self._releasing = False
            self._changed.notify_all()
            self.slots.withdraw_all()
            self._held.clear()
            self._claimed_slots.clear()
            self._arena.release_all()

    def digests(self) -> tuple[str, ...]:
        with self._changed:
            return tuple(sorted(self._held))

    @contextmanager
    def _claimed(
        self, digest: str, slot: int, first_page: int, pages: int
    ) -> Generator[int, None, None]:
        """Slot and pages are this adapter's; given back when the block raises. Yields the era."""
        with self._changed:
            self._changed.wait_for(lambda: not self._releasing)
            if slot <= BASE_SLOT or slot in self._claimed_slots or digest in self._held:
                raise ProtocolViolation(
                    f"slot {slot} cannot take adapter {digest}: it is the base model's, it is"
                    " taken, or the adapter is already on the device",
                    field="slot",
                )
            self._arena.claim(first_page, pages)
            self._claimed_slots.add(slot)
            self._copying += 1
            era = self._era
        try:
            yield era
        except BaseException:
            with self._changed:
                self._claimed_slots.discard(slot)
                self._arena.release(first_page)
            raise
        finally:
            with self._changed:
                self._copying -= 1
                self._changed.notify_all()

    def _copy(self, elements: torch.Tensor, copy: HostCopy, slot: int, first_element: int) -> None:
        """Copy the bundle, and tell the device's table of it; both have arrived at the end."""
        destination, table = elements.view(torch.uint8), self.slots.table
        if self._stream is None:
            copy_bytes(destination, copy.bytes)
            if table is not None:
                table.publish(slot, copy.layout, first_element)
            return
        with torch.cuda.stream(self._stream):
            destination.copy_(copy.bytes, non_blocking=True)
            if table is not None:
                table.publish(slot, copy.layout, first_element)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        arrived.synchronize()


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
