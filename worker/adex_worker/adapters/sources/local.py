"""Adapters in folders of this machine, inside allowed roots only."""

import errno
import io
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.core.config import CONFIG_FILE
from adex_worker.adapters.core.header import WEIGHTS_FILE
from adex_worker.adapters.core.names import FORBIDDEN_REMEDY, local_parts
from adex_worker.adapters.sources.source import Resolved, SourceFile

FILES = (CONFIG_FILE, WEIGHTS_FILE)
# Formats that run code when read, and what people find beside or instead of the weights.
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.ckpt", "pytorch_adapter.bin")
PICKLE_REMEDY = (
    "Convert it with safetensors: save_file(torch.load('adapter_model.bin', weights_only=True),"
    " 'adapter_model.safetensors')"
)

_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class LocalSource:
    """Folders under `roots`. A relative name is looked for in each root, in their order.

    Symbolic links may lead anywhere inside the same root. Where one leads out of it the adapter is
    refused, whether or not anything is there. Files are opened part by part without following
    links, so that a link put in place after the check leads nowhere.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = tuple(os.path.realpath(root) for root in roots)

    def resolve(self, key: AdapterKey, credential: str = "") -> Resolved:
        """Local adapters need no credential: a root is open to every caller."""
        del credential
        if key.revision:
            raise ValidationError(
                f"`revision` {key.revision[:100]!r} cannot be chosen for a local adapter",
                field="revision",
                remedy="Leave the revision out, or give each version a folder of its own",
            )
        for root, folder in self._candidates(key.name):
            files = _folder_files(root, folder, key.name)
            if files is not None:
                stamp = tuple((name, entry) for name, _, entry in files)
                listed = tuple(SourceFile(name, size) for name, size, _ in files)
                return Resolved(key, folder, listed, (folder, stamp))
        raise AdapterNotFound(
            f"no local adapter {key.name[:200]!r}",
            field="adapter_id",
            remedy="Name a folder, relative to an adapter root, that holds adapter_config.json",
        )

    def open(self, resolved: Resolved, name: str) -> io.RawIOBase:
        root = next(root for root in self._roots if _inside(resolved.location, root))
        path = _real_file(root, resolved.location, name, resolved.key.name)
        try:
            return os.fdopen(_open_without_links(root, path), "rb", buffering=0)
        except OSError as error:
            raise _unreadable(resolved.key.name, name, error) from error

    def unchanged(self, resolved: Resolved) -> bool:
        return self.resolve(resolved.key).stamp == resolved.stamp

    def _candidates(self, name: str) -> Iterator[tuple[str, str]]:
        """(root, real folder) for every root in which `name` could lie."""
        absolute, parts = local_parts(name)
        allowed = False
        for root in self._roots:
            written = os.path.join("/" if absolute else root, *parts)
            folder = os.path.realpath(written)
            if _inside(folder, root):
                allowed = True
                yield root, folder
        if not allowed:
            raise AdapterForbidden(
                f"adapter {name[:200]!r} lies outside the folders this server reads adapters from",
                field="adapter_id",
                remedy=FORBIDDEN_REMEDY,
            )


def _inside(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _real_file(root: str, folder: str, name: str, adapter: str) -> str:
    path = os.path.realpath(os.path.join(folder, name))
    if not _inside(path, root):
        raise AdapterForbidden(
            f"`{name}` of adapter {adapter[:200]!r} is a link that leaves the adapter root",
            field="adapter_id",
            remedy="Put the file itself, or a link within the root, in its place",
        )
    return path


def _folder_files(
    root: str, folder: str, adapter: str
) -> list[tuple[str, int, tuple[int, ...]]] | None:
    """(name, bytes, change stamp) of each file, or None when the folder does not exist."""
    found: list[tuple[str, int, tuple[int, ...]]] = []
    for name in FILES:
        path = _real_file(root, folder, name, adapter)
        try:
            entry = os.stat(path, follow_symlinks=False)
        except OSError as error:
            if not os.path.isdir(folder):
                return None
            raise _missing_or_unreadable(folder, adapter, name, error) from error
        if not stat.S_ISREG(entry.st_mode):
            raise AdapterMalformed(
                f"`{name}` of adapter {adapter[:200]!r} is not a regular file",
                field=name,
                remedy="Save the adapter again with PEFT",
            )
        changed = (entry.st_size, entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino, entry.st_dev)
        found.append((name, entry.st_size, changed))
    return found


def _missing_or_unreadable(
    folder: str, adapter: str, name: str, error: OSError
) -> AdapterMalformed | AdapterUnsupported | SourceUnavailable:
    if error.errno not in _MISSING:
        return _unreadable(adapter, name, error)
    for pickle in PICKLES if name == WEIGHTS_FILE else ():
        if os.path.lexists(os.path.join(folder, pickle)):
            return AdapterUnsupported(
                f"adapter {adapter[:200]!r} has `{pickle}` but no `{name}`;"
                " pickled weights can run code when read and are not served",
                field=pickle,
                remedy=PICKLE_REMEDY,
            )
    return AdapterMalformed(
        f"adapter {adapter[:200]!r} has no `{name}`",
        field=name,
        remedy=f"Put {' and '.join(FILES)} in its folder, as PEFT's save_pretrained writes them",
    )


def _unreadable(adapter: str, name: str, error: OSError) -> SourceUnavailable:
    return SourceUnavailable(
        f"`{name}` of adapter {adapter[:200]!r} cannot be read: {error.strerror}",
        field=name,
        remedy="Give the worker permission to read it, and try again",
        retry_after_s=5.0,
    )


@contextmanager
def _directory(name: str, parent: int | None) -> Generator[int, None, None]:
    number = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        yield number
    finally:
        os.close(number)


def _open_without_links(root: str, path: str) -> int:
    """A descriptor of the regular file `path`, reached from `root` through real folders only."""
    parts = os.path.relpath(path, root).split("/")
    return _descend(root, None, parts)


def _descend(name: str, parent: int | None, parts: Sequence[str]) -> int:
    with _directory(name, parent) as folder:
        if len(parts) > 1:
            return _descend(parts[0], folder, parts[1:])
        # O_NONBLOCK: a pipe put in place of the file must not hold the thread.
        number = os.open(parts[0], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError(errno.EINVAL, "not a regular file")
    return number
