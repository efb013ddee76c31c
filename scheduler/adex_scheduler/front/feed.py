"""One snapshot for all who watch: taken a few times a second, and not at all while nobody does.

Each snapshot is compared with the one before, serialised once, and put before every watcher. Who
does not keep up is dropped, and begins anew with a whole one when it comes back.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field

from adex_proto.errors import Overloaded
from adex_scheduler.front.snapshot import Snapshot
from adex_scheduler.front.sse import frame

_LOG = logging.getLogger("adex.front")


@dataclass(frozen=True, slots=True)
class FeedLimits:
    """`backlog_max` is how many snapshots a watcher may be behind before it is dropped."""

    interval_s: float = 0.25
    watchers_max: int = 32
    backlog_max: int = 8


@dataclass(slots=True, eq=False)
class _Watcher:
    """Frames for one watcher; None ends it."""

    backlog: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue[bytes | None])


class Feed:
    """Watchers of one server."""

    def __init__(
        self, take: Callable[[], Awaitable[Snapshot]], limits: FeedLimits | None = None
    ) -> None:
        self._take = take
        self._limits = limits or FeedLimits()
        self._watchers: dict[_Watcher, None] = {}
        self._latest: Snapshot | None = None
        self._whole = b""
        self._taking: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """How many watch now."""
        return len(self._watchers)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: a whole snapshot, then changes. Raises Overloaded."""
        limits = self._limits
        if len(self._watchers) >= limits.watchers_max:
            raise Overloaded(
                f"{len(self._watchers)} pages watch this server, the most it feeds",
                remedy="Close one of them",
                retry_after_s=10.0,
            )
        watcher = _Watcher()
        self._watchers[watcher] = None
        try:
            if self._taking is None or self._taking.done():
                self._latest, self._whole = None, b""
                self._taking = asyncio.create_task(self._go_on())
            elif self._latest is not None:
                watcher.backlog.put_nowait(self._whole_frame(self._latest))
            while (told := await watcher.backlog.get()) is not None:
                yield told
        finally:
            self._watchers.pop(watcher, None)
            if not self._watchers:
                self._stop()

    async def close(self) -> None:
        """End every watcher: the server shuts down."""
        self._stop()
        for watcher in list(self._watchers):
            self._drop(watcher)

    def _stop(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    async def _go_on(self) -> None:
        try:
            while True:
                snapshot = await self._take()
                before, self._latest = self._latest, snapshot
                self._whole = b""
                told = self._whole_frame(snapshot) if before is None else _change(before, snapshot)
                for watcher in list(self._watchers):
                    if watcher.backlog.qsize() >= self._limits.backlog_max:
                        self._drop(watcher)
                    else:
                        watcher.backlog.put_nowait(told)
                await asyncio.sleep(self._limits.interval_s)
        except Exception:
            _LOG.exception("no snapshot could be taken")
            for watcher in list(self._watchers):
                self._drop(watcher)

    def _whole_frame(self, snapshot: Snapshot) -> bytes:
        if not self._whole:
            self._whole = frame(snapshot.whole)
        return self._whole

    def _drop(self, watcher: _Watcher) -> None:
        self._watchers.pop(watcher, None)
        while not watcher.backlog.empty():
            watcher.backlog.get_nowait()
        watcher.backlog.put_nowait(None)


def _change(before: Snapshot, now: Snapshot) -> bytes:
    return frame(now.since(before))
