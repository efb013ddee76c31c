"""The adapters a worker has, in every tier, moved only on the scheduler's word."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.dispatch import has_kernels
from adex_kernels.layout import ModelShape
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    CallerError,
    ProtocolViolation,
    SourceUnavailable,
    ValidationError,
)
from adex_proto.outcome import Held
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.bundle import checksum_of, pack
from adex_worker.adapters.core.bundle_header import (
    BundleDamaged,
    BundleHeader,
    fingerprint_of,
    layout_of,
)
from adex_worker.adapters.device_tier import DeviceTier
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.format import CheckedAdapter, Limits, read_adapter
from adex_worker.adapters.host_tier import HostCopy, HostTier
from adex_worker.adapters.key_memory import KeyMemory
from adex_worker.adapters.keyed_locks import KeyedLocks
from adex_worker.adapters.leave import Leave
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.adapters.sources.source import Source

# Keys whose meaning is remembered; beyond it the least recently fetched is read again.
KEYS_REMEMBERED_MAX = 65_536
# Packing keeps a core busy that the steps could use; reading does not, and is not counted.
PACKING_MAX = 2


class AdapterStore:
    """Carries out fetch, stage, page-in and evict. Every call may block; any thread may call.

    Work on one adapter is done in turn, so concurrent calls for it share one download, one
    conversion and one copy. `slots` is the step thread's side and never blocks.
    """

    def __init__(
        self,
        *,
        cache_dir: Path,
        roots: Sequence[Path],
        remote: Mapping[str, Source] | None = None,
        shape: ModelShape,
        dtype: torch.dtype,
        arena: Arena,
        host_bytes: int,
        disk_bytes: int,
        rank_max: int,
        slots_max: int = 64,
    ) -> None:
        self._shape = shape
        self._dtype = dtype
        self._dtype_name = str(dtype).removeprefix("torch.")
        self._fingerprint = fingerprint_of(shape, self._dtype_name)
        budget = min(host_bytes, disk_bytes, arena.pages * arena.page_bytes)
        self._limits = Limits(shape, dtype.itemsize, rank_max, budget)
        self._sources: Mapping[str, Source] = {"local": LocalSource(roots), **(remote or {})}
        self._disk = DiskTier(cache_dir, self._fingerprint)
        self._host = HostTier(host_bytes, pinned=arena.device.type == "cuda")
        self._device = DeviceTier(arena, _table(shape, arena, slots_max))
        self.slots = self._device.slots
        self._locks = KeyedLocks()
        self._packing = threading.BoundedSemaphore(PACKING_MAX)
        self._memory = KeyMemory(KEYS_REMEMBERED_MAX)

    def fetch(
        self, key: AdapterKey, credential: str = "", leave: Leave | None = None
    ) -> AdapterVersion:
        """What `key` means now to the holder of `credential`, with its bundle on disk.

        The source is asked first, every time: what is known or kept here answers nobody whom the
        source would refuse. Callers with different credentials then share one download. Nothing is
        kept once `leave` is withdrawn.

        Raises any adapter error of adex_proto.errors, each naming what to change.
        """
        source = self._source(key)
        resolved = source.resolve(key, credential)
        with self._locks.hold((key.source, key.name, key.revision)):
            known = self._memory.version(key, resolved.stamp)
            if known is not None and self._disk.has(known.digest):
                return known
            try:
                adapter = read_adapter(source, resolved, self._limits)
                version = self._convert(adapter, leave or Leave())
            except (AdapterForbidden, AdapterNotFound):
                # What was refused is this caller, not these files.
                raise
            except CallerError as refusal:
                self._memory.remember(resolved, refusal)
                raise
            self._memory.remember(resolved, version)
            return version

    def stage(self, digest: str) -> None:
        """Read the bundle from disk into host memory; nothing to do when it is there.

        A damaged bundle is never used: it is converted again from the key it came from, or reported
        as SourceUnavailable so that the key is fetched again. Raises ProtocolViolation when host
        memory has no room.
        """
        if self._stage_from_disk(digest):
            return
        if not (self._convert_again(digest) and self._stage_from_disk(digest)):
            raise SourceUnavailable(
                f"the bundle of adapter {digest} is missing or was damaged, and is removed",
                field="digest",
                remedy="Fetch the adapter again",
                retry_after_s=1.0,
            )

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

    def _source(self, key: AdapterKey) -> Source:
        source = self._sources.get(key.source)
        if source is None:
            available = ", ".join(sorted(self._sources))
            raise ValidationError(
                f"`adapter_source` {key.source[:100]!r} is not served, available: {available}",
                field="adapter_source",
                remedy=f"Send one of: {available}",
            )
        return source

    def _convert_again(self, digest: str) -> bool:
        """Whether the bundle is on disk again, from the key it came from if that means the same."""
        key = self._memory.key_of(digest)
        if key is None or key.credentialed:
            # The credential it was resolved with is not kept: its holder must ask again.
            return False
        source = self._source(key)
        adapter = read_adapter(source, source.resolve(key), self._limits)
        if adapter.version.digest != digest:
            # Nobody has asked for what the key means now, so nobody would know of its bundle.
            return False
        self._convert(adapter, Leave())
        return True

    def _convert(self, adapter: CheckedAdapter, leave: Leave) -> AdapterVersion:
        """Pack the adapter and keep its bundle, unless the same content is already kept."""
        digest = adapter.version.digest
        with self._locks.hold(digest):
            kept = self._disk.find(digest)
            if kept is not None:
                return kept.version
            with self._packing:
                elements = pack(adapter, self._dtype)
            header = BundleHeader(
                adapter.version,
                self._fingerprint,
                self._dtype_name,
                adapter.ranks,
                checksum_of(elements),
            )
            with leave.deed():
                self._disk.write(header, elements)
            return adapter.version

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
