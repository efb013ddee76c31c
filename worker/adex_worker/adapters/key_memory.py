"""What keys meant when they were last read, so that an unchanged adapter need not be read again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

from adex_proto.adapter import AdapterKey, AdapterVersion
from adex_proto.errors import CallerError, error_of
from adex_worker.adapters.sources.source import Resolved


class KeyMemory:
    """At most `keys_max` keys, each with its stamp and version; the least recently used leaves.

    Tenants share what is remembered: a stamp tells the same of the files whoever was shown them.
    A refusal is remembered like a version: files that have not changed are refused again unread.
    """

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._known: OrderedDict[AdapterKey, tuple[Hashable, AdapterVersion | CallerError]]
        self._known = OrderedDict()
        self._keys: dict[str, AdapterKey] = {}
        self._lock = threading.Lock()

    def version(self, key: AdapterKey, stamp: Hashable) -> AdapterVersion | None:
        """The version `key` had, None when it is unknown or its stamp has changed.

        Raises the refusal that the same files met before.
        """
        with self._lock:
            known = self._known.get(_shared(key))
            if known is None or known[0] != stamp:
                return None
            self._known.move_to_end(_shared(key))
        if isinstance(known[1], CallerError):
            raise _again(known[1])
        return known[1]

    def key_of(self, digest: str) -> AdapterKey | None:
        """A key that meant `digest` when it was last read."""
        with self._lock:
            return self._keys.get(digest)

    def remember(self, resolved: Resolved, found: AdapterVersion | CallerError) -> None:
        """`resolved` is this version, or was refused with this error."""
        with self._lock:
            key = _shared(resolved.key)
            self._forget(key)
            # A copy, because a raised error holds on to all that was read.
            found = _again(found) if isinstance(found, CallerError) else found
            self._known[key] = resolved.stamp, found
            if isinstance(found, AdapterVersion):
                self._keys[found.digest] = resolved.key
            if len(self._known) > self._keys_max:
                self._forget(next(iter(self._known)))

    def _forget(self, key: AdapterKey) -> None:
        known = self._known.pop(key, None)
        if known is None or isinstance(known[1], CallerError):
            return
        named = self._keys.get(known[1].digest)
        if named is not None and _shared(named) == key:
            del self._keys[known[1].digest]


def _shared(key: AdapterKey) -> AdapterKey:
    return replace(key, tenant="")


def _again(error: CallerError) -> CallerError:
    """The same refusal as a new exception, without the traceback of the first."""
    twin = error_of(error.code, error.message, field=error.field, remedy=error.remedy)
    assert isinstance(twin, CallerError), f"{error.code} is a caller's error"
    return twin
