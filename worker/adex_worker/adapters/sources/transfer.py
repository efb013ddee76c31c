"""What remote sources share: patience with failures, and files that count only when verified."""

import hashlib
import io
import mmap
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from adex_proto.errors import AdexError, SourceUnavailable
from adex_worker.adapters.cache_room import cache_full, is_full

_T = TypeVar("_T")

# Of what is on its way a file of up to so many bytes is held in memory, and a larger one on disk.
MEMORY_BYTES_MAX = 64 << 20
_RESERVED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a source is waited for. A file may take `grace_s` and its bytes at the least pace.

    `tries` counts all attempts. Waits between them double from `wait_first_s`, are jittered, and
    follow a source's own hint up to `wait_s_max`.
    """

    tries: int = 4
    wait_first_s: float = 0.25
    wait_s_max: float = 8.0
    connect_s: float = 5.0
    read_s: float = 10.0
    grace_s: float = 60.0
    bytes_per_s_min: int = 256 << 10

    def deadline_s(self, size: int) -> float:
        """When, on the monotonic clock, a file of `size` bytes that starts now must be here."""
        return time.monotonic() + self.grace_s + size / self.bytes_per_s_min


class PassingFailureError(Exception):
    """A failure that another try may not meet. `reason` says what happened, in a few words."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


class Checksum(Protocol):
    """A hash under way."""

    def update(self, data: bytes | memoryview, /) -> object: ...
    def hexdigest(self) -> str: ...


def patiently(work: Callable[[], _T], patience: Patience, source: str) -> _T:
    """`work`'s result, from one of its tries; a PassingFailureError makes the next.

    Raises SourceUnavailable, naming `source` and the last reason, when none succeeds or the source
    asks for a longer wait than there is patience for.
    """
    tried = 0
    while True:
        tried += 1
        try:
            return work()
        except PassingFailureError as failure:
            reason, hint_s = failure.reason, failure.retry_after_s
        # Half of the wait is chance, so that many who failed together do not return together.
        longest_s = min(patience.wait_s_max, patience.wait_first_s * 2.0**tried)
        wait_s = max(hint_s or 0.0, longest_s * random.uniform(0.5, 1.0))  # noqa: S311
        if tried >= patience.tries or wait_s > patience.wait_s_max:
            raise unavailable(source, f"{reason} ({tried} tries)", hint_s)
        time.sleep(wait_s)


def unavailable(source: str, reason: str, retry_after_s: float | None = None) -> SourceUnavailable:
    """The error for a source that gave no usable answer."""
    return SourceUnavailable(
        f"{source} did not deliver the adapter: {reason}",
        field="adapter_id",
        remedy="Try again later",
        retry_after_s=5.0 if retry_after_s is None else retry_after_s,
    )


class Room(io.RawIOBase):
    """Memory for all bytes of one file, while they come and then to be read."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        found = self.memory[self._at : self._at + len(view)]
        view[: len(found)] = found
        self._at += len(found)
        return len(found)


def room_for(size: int, folder: Path) -> Room:
    """Room for a file of `size` bytes.

    A large one, which may take long to come, lies in a file of `folder` that has no name: whatever
    ends the process, nothing of it stays. Raises CacheFull or SourceUnavailable where the folder
    takes none.
    """
    if size <= MEMORY_BYTES_MAX:
        return Room(np.empty(size, np.uint8).data)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            _reserve(file.fileno(), size)
            return Room(memoryview(mmap.mmap(file.fileno(), size)))
    except OSError as error:
        raise no_room(error) from error


def _reserve(number: int, size: int) -> None:
    """Give the file its bytes now: what writes to memory cannot be told that a disk is full."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
        return
    zeros = bytes(_RESERVED_BYTES)
    for start in range(0, size, len(zeros)):
        os.write(number, zeros[: size - start])


def keep(room: Room, at: int, data: bytes) -> None:
    """Put `data` at byte `at` of what comes."""
    room.memory[at : at + len(data)] = data


def no_room(error: OSError) -> AdexError:
    """The error for a download this machine cannot hold."""
    if is_full(error):
        return cache_full("the download could not be kept")
    return SourceUnavailable(
        f"the download cannot be kept: {error.strerror}",
        field="adapter_id",
        remedy="Check the disk under the worker's --cache-dir, and try again",
        retry_after_s=10.0,
    )


def checksum_of(room: Room, checksum: Checksum) -> str:
    """The hexadecimal checksum of all that the room holds."""
    checksum.update(room.memory)
    return checksum.hexdigest()


def sha256() -> Checksum:
    return hashlib.sha256()


def git_blob(size: int) -> Checksum:
    """What git names a file of `size` bytes by: no secret rests on it being SHA-1."""
    checksum = hashlib.sha1(usedforsecurity=False)
    checksum.update(b"blob %d\0" % size)
    return checksum
