"""What those who watch are shown of a core: enough to see what it does, and never too much."""

from adex_proto.adapter import Tier
from adex_proto.errors import SourceUnavailable
from adex_proto.outcome import FetchFailed
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.picture import (
    ADAPTERS_MAX,
    CELLS_MAX,
    QUEUES_MAX,
    RUNNING_MAX,
    Picture,
    picture_of,
)
from adex_scheduler.testing.desk import Desk, key


def picture(desk: Desk) -> Picture:
    return picture_of(desk.core, desk.plans[-1] if desk.plans else None, desk.now)


def test_an_idle_core_has_nothing_to_show() -> None:
    desk = Desk(pages=64)
    shown = picture(desk)
    assert (shown.running, shown.waiting, shown.pages_free) == (0, 0, 64)
    assert (shown.adapters, shown.segments, shown.sequences, shown.queues) == ((), (), (), ())


def test_a_running_adapter_is_on_the_device_with_its_pages_and_its_rows() -> None:
    desk = Desk()
    tone = desk.publish("tone", size=250)
    desk.arrive(tone, prompt=3, new=8)
    desk.arrive(None, prompt=5, new=8)
    desk.settle_commands()
    desk.step()
    desk.step()
    shown = picture(desk)
    [view] = shown.adapters
    assert (view.key, view.state, view.tier, view.in_host) == (tone, "device", Tier.DEVICE, True)
    assert (view.first_page, view.pages, view.running) == (0, 3, 1)
    assert [segment.digest for segment in shown.segments] == ["", "digest-tone"]
    assert sorted(one.prompt for one in shown.sequences) == [3, 5]
    assert (shown.on_device, shown.in_host, shown.on_disk) == (1, 1, 1)
    assert shown.pages_adapters == 3
    assert shown.pages_kv > 0


def test_what_waits_is_grouped_by_tenant_and_adapter() -> None:
    desk = Desk()
    tone = desk.publish("tone")
    for _ in range(3):
        desk.arrive(tone, tenant="a")
    desk.arrive(tone, tenant="b")
    shown = picture(desk)
    assert [(q.tenant, q.waiting, q.for_adapter) for q in shown.queues] == [(1, 3, 3), (2, 1, 1)]
    [view] = shown.adapters
    assert (view.state, view.tier, view.waiting) == ("fetching", Tier.ABSENT, 4)


def test_a_private_name_is_nowhere_in_the_picture() -> None:
    desk = Desk()
    secret = desk.publish("secret-project", tenant="t:1234", digest="d" * 64)
    desk.arrive(secret, tenant="t:1234")
    before = picture(desk)
    assert before.adapters == ()
    assert [(queue.key, queue.base) for queue in before.queues] == [(None, False)]
    desk.settle_commands()
    desk.step()
    after = picture(desk)
    assert [(view.digest, view.key) for view in after.adapters] == [("d" * 64, None)]
    assert "secret" not in f"{before}{after}"
    assert "1234" not in f"{before}{after}"


def test_an_adapter_with_a_public_name_too_is_shown_by_that() -> None:
    desk = Desk()
    private = desk.publish("secret", tenant="t:1", digest="same")
    public = desk.publish("shown", digest="same")
    desk.arrive(private, tenant="t:1")
    desk.arrive(public)
    desk.settle_commands()
    [view] = picture(desk).adapters
    assert view.key == public


def test_a_name_that_could_not_be_fetched_says_why_while_that_is_remembered() -> None:
    desk = Desk()
    desk.arrive(key("gone"))
    desk.tell(FetchFailed(key("gone"), SourceUnavailable("away")))
    [view] = picture(desk).adapters
    assert (view.state, view.code) == ("failed", "source_unavailable")
    desk.now += 60
    assert picture(desk).adapters == ()


def test_ten_thousand_adapters_and_a_full_queue_make_no_large_picture() -> None:
    many = {"slots_max": 12_000, "host_bytes": 10**9, "disk_bytes": 10**9}
    desk = Desk(Limits(waiting_max=4096, waiting_tenant_max=4096), pages=200_000, **many)
    desk.checking = False
    keys = [desk.publish(f"a{number}") for number in range(10_000)]
    for name in keys[-1000:]:
        desk.arrive(name, new=50)
    desk.settle_commands()
    desk.step()
    for name in keys[:1000]:
        desk.arrive(name)
    shown = picture(desk)
    assert shown.names == 2000
    assert len(shown.adapters) == ADAPTERS_MAX
    assert len(shown.sequences) <= RUNNING_MAX
    assert len(shown.queues) == QUEUES_MAX
    assert sum(len(stretch.cells) for stretch in shown.map.stretches) <= CELLS_MAX
    assert shown.adapters[0].key == keys[999]


def test_the_counts_agree_with_those_of_the_statistics() -> None:
    desk = Desk(pages=40, slots_max=3, host_bytes=600)
    names = [desk.publish(f"a{number}", size=150) for number in range(9)]
    for number in range(30):
        desk.arrive(names[number % 9], prompt=4, new=3)
        desk.settle_commands()
        desk.step()
        shown, counted = picture(desk), desk.core.statistics()
        assert shown.pages_adapters == counted.pages_adapters
        assert (shown.pages_kv, shown.pages_free) == (counted.pages_kv, counted.pages_free)
        assert (shown.running, shown.waiting) == (counted.running, counted.waiting)
        assert shown.on_device == counted.slots_used
        assert shown.on_disk == sum(counted.adapters_by_tier.values())
