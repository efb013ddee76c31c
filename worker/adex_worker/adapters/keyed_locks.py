"""One lock per key, for as long as anyone wants it."""

import threading
from collections.abc import Generator, Hashable
from contextlib import contextmanager


class KeyedLocks:
    """Work on one key is done by one thread at a time; work on different keys does not wait."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._locks: dict[Hashable, tuple[threading.Lock, int]] = {}

    @contextmanager
    def hold(self, key: Hashable) -> Generator[None, None, None]:
        with self._mutex:
            lock, wanted = self._locks.get(key, (threading.Lock(), 0))
            self._locks[key] = lock, wanted + 1
        try:
            with lock:
                yield
        finally:
            with self._mutex:
                lock, wanted = self._locks.pop(key)
                if wanted > 1:
                    self._locks[key] = lock, wanted - 1

    def __len__(self) -> int:
        """Keys that someone holds or waits for."""
        with self._mutex:
            return len(self._locks)
