"""Where what a device computes is done, one thing after the other.

A GPU has a queue of its own, and whoever launches something goes on. A processor has none: there a
thread computes the step, while the step thread ends the one before it and makes the next.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class Lane(Protocol):
    """Does what it is given, in order."""

    def submit(self, work: Callable[[], T]) -> Future[T]: ...

    def settle(self) -> None:
        """Return when nothing is under way; whatever failed is for those who hold its future."""
        ...


class AtOnce:
    """Does it while the caller waits, who is told what it raises."""

    def submit(self, work: Callable[[], T]) -> Future[T]:
        done: Future[T] = Future()
        done.set_result(work())
        return done

    def settle(self) -> None:
        """Nothing ever is under way."""


class Beside:
    """Does it on a thread of its own. One thread may call."""

    def __init__(self) -> None:
        """Raises RuntimeError where the system has no thread for it."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="adex-compute")
        self._latest: Future[Any] = self._thread.submit(lambda: None)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        done = self._thread.submit(work)
        self._latest = done
        return done

    def settle(self) -> None:
        wait([self._latest])
