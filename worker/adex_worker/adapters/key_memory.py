"""What keys meant when they were last read, so that an unchanged adapter need not be read again."""

import threading
from collections import OrderedDict
from collections.abc import Hashable

from adex_proto.adapter import AdapterKey, AdapterVersion
from adex_worker.adapters.sources.source import Resolved


class KeyMemory:
    """At most `keys_max` keys, each with its stamp and version; the least recently used leaves."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._versions: OrderedDict[AdapterKey, tuple[Hashable, AdapterVersion]] = OrderedDict()
        self._keys: dict[str, AdapterKey] = {}
        self._lock = threading.Lock()

    def version(self, key: AdapterKey, stamp: Hashable) -> AdapterVersion | None:
        """The version `key` had, None when it is unknown or its stamp has changed."""
        with self._lock:
            remembered = self._versions.get(key)
            if remembered is None or remembered[0] != stamp:
                return None
            self._versions.move_to_end(key)
            return remembered[1]

    def key_of(self, digest: str) -> AdapterKey | None:
        """A key that meant `digest` when it was last read."""
        with self._lock:
            return self._keys.get(digest)

    def remember(self, resolved: Resolved, version: AdapterVersion) -> None:
        with self._lock:
            self._forget(resolved.key)
            self._versions[resolved.key] = resolved.stamp, version
            self._keys[version.digest] = resolved.key
            if len(self._versions) > self._keys_max:
                self._forget(next(iter(self._versions)))

    def _forget(self, key: AdapterKey) -> None:
        stale = self._versions.pop(key, None)
        if stale is not None and self._keys.get(stale[1].digest) == key:
            del self._keys[stale[1].digest]
