"""The adapters a worker has, in every tier, moved only on the scheduler's word."""

import torch

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.dispatch import has_kernels
from adex_kernels.layout import ModelShape
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import Held
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.core.bundle_header import BundleDamaged, layout_of
from adex_worker.adapters.device_tier import DeviceTier
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.host_tier import HostCopy, HostTier
from adex_worker.adapters.intake import Bringer, granted, lost_bundle
from adex_worker.adapters.keyed_locks import KeyedLocks
from adex_worker.adapters.leave import Leave


class AdapterStore:
    """Carries out fetch, stage, page-in and evict. Every call may block; any thread may call.

    Work on one adapter is done in turn, so concurrent calls for it share one copy. `slots` is the
    step thread's side and never blocks.
    """

    def __init__(
        self,
        *,
        bringer: Bringer,
        disk: DiskTier,
        shape: ModelShape,
        dtype: torch.dtype,
        arena: Arena,
        host_bytes: int,
        slots_max: int = 64,
    ) -> None:
        """`bringer` puts its bundles where `disk` finds them."""
        self._shape = shape
        self._dtype = dtype
        self._bringer = bringer
        self._disk = disk
        self._host = HostTier(host_bytes, pinned=arena.device.type == "cuda")
        self._device = DeviceTier(arena, _table(shape, arena, slots_max))
        self.slots = self._device.slots
        self._locks = KeyedLocks()

    def fetch(
        self, key: AdapterKey, credential: str = "", leave: Leave | None = None
    ) -> AdapterVersion:
        """What `key` means now to the holder of `credential`, with its bundle on disk.

        Nothing is kept once `leave` is withdrawn. Raises any adapter error of adex_proto.errors.
        """
        leave = leave or Leave()
        return self._bringer.fetch(key, credential, lambda _digest: leave.deed())

    def stage(self, digest: str) -> None:
        """Read the bundle from disk into host memory; nothing to do when it is there.

        A damaged bundle is never used: it is converted again from the key it came from, or reported
        as SourceUnavailable so that the key is fetched again. Raises ProtocolViolation when host
        memory has no room.
        """
        if self._stage_from_disk(digest):
            return
        self._bringer.restore(digest, granted)
        if not self._stage_from_disk(digest):
            raise lost_bundle(digest)

    def page_in(self, digest: str, slot: int, first_page: int, pages: int) -> None:
        """Copy the bundle from host memory to the pages and publish it as `slot`."""
        with self._locks.hold(digest):
            copy = self._host.get(digest)
            if copy is None:
                raise ProtocolViolation(
                    f"adapter {digest} is not in host memory and cannot be paged in",
                    field="digest",
                )
            self._device.page_in(copy, slot, first_page, pages)

    def evict(self, digest: str, tier: Tier) -> None:
        """Forget the copy in `tier`. On the device it must be there; elsewhere absence is fine."""
        with self._locks.hold(digest):
            match tier:
                case Tier.DEVICE:
                    self._device.evict(digest)
                case Tier.HOST:
                    self._host.drop(digest)
                case Tier.DISK:
                    self._disk.remove(digest)
                case Tier.ABSENT:
                    raise ProtocolViolation("nothing can be evicted from ABSENT", field="tier")

    def held(self) -> tuple[Held, ...]:
        """Every bundle here in its nearest tier below DEVICE, in the order of digests."""
        found = {version.digest: Held(version, Tier.DISK) for version in self._disk.scan()}
        for copy in self._host.copies():
            version = copy.header.version
            found[version.digest] = Held(version, Tier.HOST)
        return tuple(found[digest] for digest in sorted(found))

    def release_device(self) -> None:
        """Forget every device copy; host and disk copies stay."""
        self._device.release_all()

    def close(self) -> None:
        """Bring no more adapters."""
        self._bringer.close()

    def _stage_from_disk(self, digest: str) -> bool:
        """Whether the bundle is now in host memory; False when the disk has no sound copy."""
        with self._locks.hold(digest):
            if self._host.get(digest) is not None:
                return True
            try:
                header, elements = self._disk.read(
                    digest, lambda h: self._host.reserve(digest, h.version.bundle_bytes)
                )
                layout = layout_of(header, self._shape, self._dtype.itemsize)
                self._host.put(HostCopy(header, layout, elements))
            except (FileNotFoundError, BundleDamaged):
                self._host.drop(digest)
                return False
            except BaseException:
                self._host.drop(digest)
                raise
            return True


def _table(shape: ModelShape, arena: Arena, slots_max: int) -> AdapterTable | None:
    """The table that kernels on the device read, where there are such kernels."""
    if not has_kernels(arena.device.type):
        return None
    return AdapterTable(shape, slots_max + 1, arena.elements)
