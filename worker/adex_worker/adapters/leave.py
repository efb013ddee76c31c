"""Whether somebody still wants what was asked: leave to change a tier, until it is withdrawn."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from adex_proto.errors import ServerError


class Leave:
    """Deeds done under it are whole: once `withdraw` has returned, none is under way or begins."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._under_way = 0
        self._withdrawn = False

    @contextmanager
    def deed(self) -> Generator[None, None, None]:
        """Do what must not be cut off. Raises ServerError once the leave is withdrawn."""
        with self._changed:
            if self._withdrawn:
                raise ServerError("the stream that asked for this has ended")
            self._under_way += 1
        try:
            yield
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def withdraw(self) -> None:
        """Let no deed begin any more, and wait for those under way."""
        with self._changed:
            self._withdrawn = True
            self._changed.wait_for(lambda: not self._under_way)
