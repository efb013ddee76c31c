"""What a place that adapters come from must offer."""

import io
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

from adex_proto.adapter import AdapterKey


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of an adapter where it lies: its name inside the adapter and its size in bytes."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a key means at this moment.

    `location` is the source's own way back to it. `stamp` differs whenever the files may hold other
    bytes: as long as it stays, what was read before still counts. `pinned` is what else the source
    needs to open exactly these bytes; it may hold a credential, so it is shown nowhere.
    """

    key: AdapterKey
    location: str
    files: tuple[SourceFile, ...]
    stamp: Hashable
    pinned: object = field(default=None, repr=False, compare=False)

    def file(self, name: str) -> SourceFile | None:
        return next((file for file in self.files if file.name == name), None)


class Source(Protocol):
    """A place adapters come from. Calls may block; they run beside the steps."""

    def resolve(self, key: AdapterKey, credential: str = "") -> Resolved:
        """What `key` means now to the holder of `credential` ("" is anyone).

        Raises AdapterNotFound, AdapterForbidden, SourceUnavailable... It is the one place where
        access is decided, so it asks the source itself every time.
        """
        ...

    def open(self, resolved: Resolved, name: str) -> io.RawIOBase:
        """The bytes of one of the files that `resolve` listed, all of them and no others."""
        ...

    def unchanged(self, resolved: Resolved) -> bool:
        """Whether the files that were opened one after the other belong together."""
        ...
