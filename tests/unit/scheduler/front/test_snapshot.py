"""The JSON that the page gets: whole once, then what changed."""

import json
from typing import Any

from adex_proto.adapter import AdapterKey
from adex_proto.errors import AdapterNotFound, Overloaded
from adex_proto.outcome import FetchFailed
from adex_scheduler.core.picture import ADAPTERS_MAX, picture_of
from adex_scheduler.engine import Scene
from adex_scheduler.engine.journal import Journal
from adex_scheduler.front.snapshot import SOURCE_NAMES_MAX, Labels, Snapshot
from adex_scheduler.front.sse import frame
from adex_scheduler.front.tenants import Directory
from adex_scheduler.testing.desk import Desk

ALIAS = AdapterKey("", "local", "/adapters/friendly")
LABELS = Labels(Directory(("m",), {"friendly": ALIAS}), ("/adapters", "/more/"))


FULL = Overloaded.code


def snapshot(desk: Desk, journal: Journal, known: tuple[str, ...] = ()) -> Snapshot:
    plan = desk.plans[-1] if desk.plans else None
    picture = picture_of(desk.core, plan, desk.now)
    scene = Scene(desk.core.info, False, picture, journal.entries, journal.seconds)
    return Snapshot(scene, "m", LABELS, known)


def merged(tiles: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """What the page makes of it."""
    kept = {} if told.get("whole") else dict(tiles)
    for gone in told["gone"]:
        del kept[gone]
    return kept | {tile["id"]: tile for tile in told["tiles"]}


def test_names_are_shown_as_a_caller_would_write_them() -> None:
    assert LABELS.of(ALIAS) == "friendly"
    assert LABELS.of(AdapterKey("", "local", "/adapters/owner/tone")) == "owner/tone"
    assert LABELS.of(AdapterKey("", "local", "/more/tone")) == "tone"
    assert LABELS.of(AdapterKey("", "local", "tone")) == "tone"
    assert LABELS.of(AdapterKey("", "hub", "org/name", "v1")) == "org/name@v1"


def test_before_any_worker_there_is_only_what_is_listed() -> None:
    known = tuple(f"a{number:05}" for number in range(10_000))
    told = Snapshot(None, "m", LABELS, known).whole
    assert told["connected"] is False
    assert told["source"] == {"count": 10_000, "names": known[:SOURCE_NAMES_MAX]}


def test_changes_upon_changes_come_to_the_same_as_the_whole() -> None:
    desk, journal = Desk(pages=40, slots_max=3, host_bytes=600), Journal()
    names = [desk.publish(f"a{number}", size=150) for number in range(9)]
    before = snapshot(desk, journal)
    tiles = merged({}, before.whole)
    for number in range(60):
        desk.arrive(names[number % 9], prompt=4, new=3)
        if number % 3:
            desk.settle_commands()
        if desk.worker.plans:
            desk.step()
        now = snapshot(desk, journal)
        tiles = merged(tiles, now.since(before))
        assert tiles == merged({}, now.whole)
        before = now


def test_nothing_new_is_a_small_change() -> None:
    desk, journal = Desk(), Journal()
    for number in range(100):
        desk.arrive(desk.publish(f"a{number}"))
    desk.settle()
    known = tuple(f"a{number}" for number in range(100))
    before, now = snapshot(desk, journal, known), snapshot(desk, journal, known)
    told = now.since(before)
    assert (told["tiles"], told["gone"], told["log"]) == ([], [], [])
    assert "map" not in told
    assert "source" not in told
    assert len(frame(told)) < 1000


def test_a_line_of_the_log_is_told_once_and_again_when_it_counts_on() -> None:
    desk, journal = Desk(), Journal()
    from_start = snapshot(desk, journal)
    for _ in range(2):
        journal.failed(None, "", FULL, 1.0)
    first = snapshot(desk, journal)
    [line] = first.since(from_start)["log"]
    assert (line["n"], line["times"]) == (2, 2)
    assert snapshot(desk, journal).since(first)["log"] == []
    journal.failed(None, "", FULL, 2.0)
    [line] = snapshot(desk, journal).since(first)["log"]
    assert line["times"] == 3


def test_a_whole_snapshot_of_ten_thousand_adapters_stays_below_150_kilobytes() -> None:
    desk = Desk(pages=20_000, slots_max=64, host_bytes=10**9, disk_bytes=10**9)
    desk.checking = False
    journal = Journal()
    for number in range(10_000):
        named, digest = f"an-adapter-with-a-rather-long-name-{number}", f"{number:012}" * 5
        name = desk.publish(named, digest=digest)
        desk.arrive(name, new=1)
        if number % 500 == 499:
            desk.settle()
    for number in range(1000):
        journal.failed(AdapterKey("", "local", f"a{number}"), "", FULL, number / 10)
    whole = snapshot(desk, journal).whole
    assert len(whole["tiles"]) == ADAPTERS_MAX
    told = frame(whole)
    assert len(told) < 150_000
    assert json.loads(told.removeprefix(b"data: "))["tiers"]["disk"]["count"] > 5000


def test_the_name_of_a_private_adapter_is_in_no_frame() -> None:
    desk, journal = Desk(), Journal()
    secret = desk.publish("secret-project", tenant="t:abcd", digest="5" * 64)
    empty = snapshot(desk, journal)
    desk.arrive(secret, tenant="t:abcd")
    waiting = snapshot(desk, journal)
    desk.settle_commands()
    desk.step()
    running = snapshot(desk, journal)
    for told in (waiting.whole, running.whole, waiting.since(empty), running.since(waiting)):
        assert b"secret" not in frame(told)
        assert b"abcd" not in frame(told)
    [tile] = running.tiles.values()
    assert (tile["id"], tile["name"], tile["running"]) == ("5" * 12, None, 1)


def test_a_name_that_means_nothing_is_in_no_frame_unless_it_is_listed() -> None:
    desk, journal = Desk(), Journal()
    secret, listed = AdapterKey("", "hub", "org/secret"), AdapterKey("", "local", "/adapters/tone")
    for key in (secret, listed):
        desk.arrive(key)
    waiting = snapshot(desk, journal, ("tone",))
    for key in (secret, listed):
        journal.failed(key, "", AdapterNotFound.code, 1.0)
        journal.answered(FetchFailed(key, AdapterNotFound(key.name)), None, desk.core, 1.0)
    desk.settle_commands()
    failed = snapshot(desk, journal, ("tone",))
    for told in (waiting.whole, failed.whole, failed.since(waiting)):
        assert b"secret" not in frame(told)
    assert [tile["name"] for tile in waiting.tiles.values()] == ["tone"]
    assert [tile["name"] for tile in failed.tiles.values()] == ["tone"]
    assert [line["name"] for line in failed.whole["log"]] == [None, None, "tone", "tone"]
