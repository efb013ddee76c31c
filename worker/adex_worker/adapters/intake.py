"""From a source to a bundle on disk: resolve, read, check, pack, keep."""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch

from adex_proto.adapter import AdapterKey, AdapterVersion
from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    CallerError,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.bundle import checksum_of, pack
from adex_worker.adapters.core.bundle_header import BundleHeader, fingerprint_of
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.format import CheckedAdapter, Limits, read_adapter
from adex_worker.adapters.key_memory import KeyMemory
from adex_worker.adapters.keyed_locks import KeyedLocks
from adex_worker.adapters.sources.source import Source

# Keys whose meaning is remembered; beyond it the least recently fetched is read again.
KEYS_REMEMBERED_MAX = 65_536
# Packing keeps a core busy that the steps could use; reading does not, and is not counted.
PACKING_MAX = 2


Permission = Callable[[str], AbstractContextManager[None]]
"""Asked with a digest when its bundle is ready to be written, and held while it is. Raises
ServerError once nobody wants it."""


def granted(_digest: str) -> AbstractContextManager[None]:
    """For whoever holds all the leave there is."""
    return nullcontext()


class Bringer(Protocol):
    """Whoever brings adapters onto the disk. Calls block, and may come on any thread."""

    def fetch(self, key: AdapterKey, credential: str, permission: Permission) -> AdapterVersion:
        """What `key` means now to the holder of `credential`, with its bundle on disk.

        The source is asked first, every time: what is known or kept here answers nobody whom the
        source would refuse. Nothing is kept without `permission`.

        Raises any adapter error of adex_proto.errors, each naming what to change.
        """
        ...

    def restore(self, digest: str, permission: Permission) -> None:
        """Convert a bundle again from the key it came from, where that still means the same.

        Raises SourceUnavailable where it does not, so that the adapter is fetched again.
        """
        ...

    def close(self) -> None:
        """Bring no more."""
        ...


def lost_bundle(digest: str) -> SourceUnavailable:
    """The error for a bundle that is not here and cannot be made again."""
    return SourceUnavailable(
        f"the bundle of adapter {digest} is missing or was damaged, and is removed",
        field="digest",
        remedy="Fetch the adapter again",
        retry_after_s=1.0,
    )


class Intake:
    """Brings adapters onto the disk in this process.

    Work on one adapter is done in turn, so concurrent calls for it share one download and one
    conversion.
    """

    def __init__(
        self, sources: Mapping[str, Source], disk: DiskTier, limits: Limits, dtype: torch.dtype
    ) -> None:
        self._sources = sources
        self._disk = disk
        self._limits = limits
        self._dtype = dtype
        self._locks = KeyedLocks()
        self._packing = threading.BoundedSemaphore(PACKING_MAX)
        self._memory = KeyMemory(KEYS_REMEMBERED_MAX)

    def fetch(self, key: AdapterKey, credential: str, permission: Permission) -> AdapterVersion:
        """See Bringer. Callers with different credentials share one download."""
        source = self._source(key)
        resolved = source.resolve(key, credential)
        with self._locks.hold((key.source, key.name, key.revision)):
            known = self._memory.version(key, resolved.stamp)
            if known is not None and self._disk.has(known.digest):
                return known
            try:
                adapter = read_adapter(source, resolved, self._limits)
                version = self._convert(adapter, permission)
            except (AdapterForbidden, AdapterNotFound):
                # What was refused is this caller, not these files.
                raise
            except CallerError as refusal:
                self._memory.remember(resolved, refusal)
                raise
            self._memory.remember(resolved, version)
            return version

    def restore(self, digest: str, permission: Permission) -> None:
        """See Bringer."""
        key = self._memory.key_of(digest)
        # The credential it was resolved with is not kept: its holder must ask again.
        if key is not None and not key.credentialed:
            source = self._source(key)
            adapter = read_adapter(source, source.resolve(key), self._limits)
            # Of what the key means now nobody would know, since nobody has asked for it.
            if adapter.version.digest == digest:
                self._convert(adapter, permission)
                return
        raise lost_bundle(digest)

    def close(self) -> None:
        """See Bringer; nothing is held open."""

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

    def _convert(self, adapter: CheckedAdapter, permission: Permission) -> AdapterVersion:
        """Pack the adapter and keep its bundle, unless the same content is already kept."""
        digest = adapter.version.digest
        with self._locks.hold(digest):
            kept = self._disk.find(digest)
            if kept is not None:
                return kept.version
            with self._packing:
                elements = pack(adapter, self._dtype)
            dtype_name = str(self._dtype).removeprefix("torch.")
            header = BundleHeader(
                adapter.version,
                fingerprint_of(self._limits.shape, dtype_name),
                dtype_name,
                adapter.form.ranks,
                checksum_of(elements),
            )
            with permission(digest):
                self._disk.write(header, elements)
            return adapter.version
