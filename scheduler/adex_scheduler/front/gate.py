"""How many requests may be under way at once, over both doors; one more is refused, not queued."""

from collections.abc import Generator
from contextlib import contextmanager

from adex_proto.errors import Overloaded


class Gate:
    """Counts the requests under way."""

    def __init__(self, requests_max: int) -> None:
        self._requests_max = requests_max
        self._running = 0

    @property
    def running(self) -> int:
        """Requests under way now."""
        return self._running

    @contextmanager
    def entered(self) -> Generator[None, None, None]:
        """Be one of those under way. Raises Overloaded when there are too many already."""
        if self._running >= self._requests_max:
            raise Overloaded(
                f"{self._running} requests are under way, the most this server takes",
                remedy="Try again shortly",
                retry_after_s=1.0,
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
