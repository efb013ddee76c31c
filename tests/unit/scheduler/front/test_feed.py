"""One snapshot for everybody who watches, and none while nobody does."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from adex_proto.errors import Overloaded
from adex_scheduler.core.picture import picture_of
from adex_scheduler.engine import Scene
from adex_scheduler.front.feed import Feed, FeedLimits
from adex_scheduler.front.snapshot import Labels, Snapshot
from adex_scheduler.front.tenants import Directory
from adex_scheduler.testing.desk import Desk

LABELS = Labels(Directory(("m",)), ())


class Source:
    """Snapshots of an idle desk, counted."""

    def __init__(self) -> None:
        self.desk = Desk()
        self.taken = 0
        self.broken = False

    async def take(self) -> Snapshot:
        self.taken += 1
        if self.broken:
            raise RuntimeError("a bug")
        picture = picture_of(self.desk.core, None, float(self.taken))
        return Snapshot(Scene(self.desk.core.info, False, picture, (), ()), "m", LABELS, ())


def told(frame: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(frame.removeprefix(b"data: "))
    return value


def quick(**limits: int) -> FeedLimits:
    return FeedLimits(interval_s=0.001, **limits)


async def test_all_watchers_get_the_same_bytes() -> None:
    source = Source()
    feed = Feed(source.take, quick(backlog_max=1000))
    async with aclosing(feed.frames()) as one, aclosing(feed.frames()) as other:
        assert told(await anext(one))["whole"] is True
        joined = told(await anext(other))
        assert joined["whole"] is True
        frames = {told(frame)["at"]: frame for frame in [await anext(one) for _ in range(40)]}
        for _ in range(5):
            frame = await anext(other)
            assert frames[told(frame)["at"]] is frame


async def test_a_late_watcher_misses_no_change() -> None:
    source = Source()
    feed = Feed(source.take, quick(backlog_max=1000))
    async with aclosing(feed.frames()) as one:
        for _ in range(5):
            await anext(one)
        async with aclosing(feed.frames()) as late:
            whole = told(await anext(late))
            assert whole["whole"] is True
            assert told(await anext(late))["at"] == whole["at"] + 1


async def test_nothing_is_taken_while_nobody_watches() -> None:
    source = Source()
    feed = Feed(source.take, quick())
    async with aclosing(feed.frames()) as frames:
        await anext(frames)
    taken = source.taken
    await asyncio.sleep(0.02)
    assert (source.taken, feed.watchers) == (taken, 0)
    async with aclosing(feed.frames()) as frames:
        assert told(await anext(frames))["whole"] is True


async def test_one_watcher_too_many_is_refused() -> None:
    source = Source()
    feed = Feed(source.take, quick(watchers_max=1))
    async with aclosing(feed.frames()) as one, aclosing(feed.frames()) as other:
        await anext(one)
        with pytest.raises(Overloaded, match="1 pages watch"):
            await anext(other)
        assert feed.watchers == 1


async def test_who_does_not_keep_up_is_dropped_and_the_others_go_on() -> None:
    source = Source()
    feed = Feed(source.take, quick(backlog_max=3))
    async with aclosing(feed.frames()) as slow, aclosing(feed.frames()) as other:
        await anext(slow)
        async with asyncio.timeout(10):
            while feed.watchers < 1 or source.taken < 20:
                await anext(other)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)
        assert feed.watchers == 1


async def test_a_snapshot_that_cannot_be_taken_ends_the_feed_and_not_for_good() -> None:
    source = Source()
    feed = Feed(source.take, quick())
    source.broken = True
    assert [frame async for frame in feed.frames()] == []
    source.broken = False
    async with aclosing(feed.frames()) as frames:
        assert told(await anext(frames))["whole"] is True


async def test_closing_ends_every_watcher() -> None:
    source = Source()
    feed = Feed(source.take, quick())
    async with aclosing(feed.frames()) as frames:
        await anext(frames)
        await feed.close()
        assert [frame async for frame in frames] == []
