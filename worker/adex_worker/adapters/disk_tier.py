"""Bundles on disk: content-addressed files that appear whole or not at all."""

import fcntl
import io
import logging
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from adex_proto.adapter import AdapterVersion
from adex_proto.errors import AdexError, SourceUnavailable
from adex_worker.adapters.byte_views import Digest, byte_view, read_into
from adex_worker.adapters.cache_room import cache_full, is_full
from adex_worker.adapters.core.bundle_header import (
    PREAMBLE_BYTES,
    BundleDamaged,
    BundleHeader,
    decode_header,
    digest_in,
    elements_start,
    encode_front,
    file_name,
    header_bytes_of,
)
from adex_worker.adapters.digest import digest_of_content

_log = logging.getLogger(__name__)
# Many Linux kernels do not give a core back within a call: a step's thread waits for its end.
_CHUNK_BYTES = 1 << 17
_PARTIAL = ".partial"


class DiskTier:
    """The bundles for one base shape under `cache_dir`/bundles. Several processes may share it."""

    def __init__(self, cache_dir: Path, fingerprint: str) -> None:
        self._folder = cache_dir / "bundles"
        self._fingerprint = fingerprint
        self._scanned: dict[str, tuple[tuple[int, ...], AdapterVersion]] = {}
        self._make_folder()
        self._remove_leftovers()

    def scan(self) -> tuple[AdapterVersion, ...]:
        """The bundles that lie here, by their headers. A file with a damaged header is removed.

        A file that is what it was at the last scan is not opened again: a stream that opens anew
        over thousands of bundles does not wait for their headers.
        """
        found: dict[str, tuple[tuple[int, ...], AdapterVersion]] = {}
        try:
            names = sorted(os.listdir(self._folder))
        except OSError as error:
            # Whoever sweeps caches may take the folder too: then there is nothing here.
            _log.warning("the adapter cache cannot be listed: %s", error.strerror)
            return ()
        for name in names:
            digest = digest_in(name, self._fingerprint)
            stamp = _stamp(self._folder / name) if digest else None
            if digest is None or stamp is None:
                continue
            known = self._scanned.get(name)
            if known is not None and known[0] == stamp:
                found[name] = known
            elif (header := self.find(digest)) is not None:
                found[name] = stamp, header.version
        self._scanned = found
        return tuple(version for _, version in found.values())

    def find(self, digest: str) -> BundleHeader | None:
        """The header of the bundle, None when it is not here or was damaged (and so removed)."""
        try:
            with self._path(digest).open("rb", buffering=0) as stream:
                header, start = _read_header(stream)
                _check_extent(header, digest, start, os.fstat(stream.fileno()).st_size)
                return header
        except FileNotFoundError:
            return None
        except BundleDamaged as damage:
            self._discard(digest, damage)
            return None
        except OSError as error:
            _log.warning("bundle %s cannot be read: %s", digest, error)
            return None

    def has(self, digest: str) -> bool:
        """Whether a file of that name is here; nothing is read."""
        return self._path(digest).exists()

    def write(self, header: BundleHeader, elements: torch.Tensor) -> None:
        """Keep the bundle; when this returns it survives a crash.

        `elements` is a contiguous CPU tensor. Raises CacheFull when the disk is full and
        SourceUnavailable when it cannot be written; nothing is left behind then.
        """
        front = encode_front(header)
        published = False
        try:
            self._make_folder()
            with self._partial(header.version.digest) as (number, path):
                _write_all(number, memoryview(front))
                _write_all(number, byte_view(elements))
                os.fsync(number)
                os.replace(path, self._path(header.version.digest))
                published = True
            self._sync_folder()
        except OSError as error:
            if published:
                # Whoever is told of a failure does not count the bundle.
                with suppress(OSError):
                    self.remove(header.version.digest)
            raise self._unwritable(header, error) from error

    def read(
        self, digest: str, room: Callable[[BundleHeader], torch.Tensor]
    ) -> tuple[BundleHeader, torch.Tensor]:
        """Header and elements; `room` gives the uint8 tensor that the elements are read into.

        Raises FileNotFoundError, BundleDamaged after removing the file, or SourceUnavailable when
        the disk does not answer.
        """
        try:
            return self._read(digest, room)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise SourceUnavailable(
                f"the bundle of adapter {digest} cannot be read: {error.strerror}",
                field="cache_dir",
                remedy="Check the disk under --cache-dir",
                retry_after_s=30.0,
            ) from error

    def _read(
        self, digest: str, room: Callable[[BundleHeader], torch.Tensor]
    ) -> tuple[BundleHeader, torch.Tensor]:
        with self._path(digest).open("rb", buffering=0) as stream:
            try:
                header, start = _read_header(stream)
                _check_extent(header, digest, start, os.fstat(stream.fileno()).st_size)
                elements = room(header)
                stream.seek(start)
                _read_checked(stream, byte_view(elements), header.checksum)
            except BundleDamaged as damage:
                self._discard(digest, damage)
                raise
        return header, elements

    def remove(self, digest: str) -> None:
        """Forget the bundle; one that is not here is already forgotten."""
        self._path(digest).unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._folder / file_name(digest, self._fingerprint)

    def _discard(self, digest: str, damage: BundleDamaged) -> None:
        _log.warning("removing damaged bundle %s: %s", digest, damage)
        self.remove(digest)

    @contextmanager
    def _partial(self, digest: str) -> Generator[tuple[int, Path], None, None]:
        """A new file to write, locked so that no other process takes it for a leftover."""
        while True:
            path = self._folder / f".{digest[:16]}-{secrets.token_hex(8)}{_PARTIAL}"
            number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(number, fcntl.LOCK_EX)
            # Between creation and lock another process may have swept it away.
            with suppress(FileNotFoundError):
                if os.stat(path).st_ino == os.fstat(number).st_ino:
                    break
            os.close(number)
        try:
            yield number, path
        finally:
            with suppress(FileNotFoundError):
                path.unlink()
            os.close(number)

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _remove_leftovers(self) -> None:
        """Remove what writers left that died; a living writer holds a lock on its file."""
        for path in self._folder.glob(f".*{_PARTIAL}"):
            with suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()

    def _sync_folder(self) -> None:
        number = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)

    def _unwritable(self, header: BundleHeader, error: OSError) -> AdexError:
        what = f"a bundle of {header.version.bundle_bytes} bytes could not be kept"
        if is_full(error):
            return cache_full(what)
        return SourceUnavailable(
            f"the worker's adapter cache cannot be written ({error.strerror}): {what}",
            field="cache_dir",
            remedy="Check the disk under --cache-dir",
            retry_after_s=30.0,
        )


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What differs once the file is another or was written to; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _read_header(stream: io.RawIOBase) -> tuple[BundleHeader, int]:
    """The header and where the elements begin."""
    preamble = _read_exactly(stream, PREAMBLE_BYTES)
    text = _read_exactly(stream, header_bytes_of(preamble))
    return decode_header(preamble, text), elements_start(len(text))


def _check_extent(header: BundleHeader, digest: str, start: int, file_bytes: int) -> None:
    if header.version.digest != digest:
        raise BundleDamaged(f"it is the bundle of {header.version.digest}")
    expected = start + header.version.bundle_bytes
    if file_bytes != expected:
        raise BundleDamaged(f"it has {file_bytes} bytes, expected {expected}")


def _read_exactly(stream: io.RawIOBase, size: int) -> bytes:
    buffer = bytearray(size)
    _fill(stream, memoryview(buffer))
    return bytes(buffer)


def _read_checked(stream: io.RawIOBase, view: memoryview, checksum: str) -> None:
    digest = digest_of_content()
    _fill(stream, view, digest)
    if digest.hexdigest() != checksum:
        raise BundleDamaged("its elements were altered")


def _fill(stream: io.RawIOBase, view: memoryview, digest: Digest | None = None) -> None:
    missing = len(view) - read_into(stream, view, digest)
    if missing:
        raise BundleDamaged(f"it ends {missing} bytes too early")


def _write_all(number: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(number, view[:_CHUNK_BYTES]) :]
