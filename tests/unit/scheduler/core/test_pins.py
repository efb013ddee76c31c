"""Pins: what an operator keeps near the device, and what that may cost the others."""

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.errors import (
    AdapterNotFound,
    PinRefused,
)
from adex_scheduler.core.events import (
    Cancelled,
    Ticked,
    WorkerGone,
)
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

DEVICE, HOST, DISK, ABSENT = Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.ABSENT


def test_a_pinned_adapter_stays_on_the_device_whatever_else_comes() -> None:
    desk = Desk(slots_max=2, pages=60)
    kept = desk.publish("kept")
    number = desk.pin(kept)
    desk.settle()
    assert desk.done[number] == ("digest-kept", DEVICE)
    for index in range(6):
        desk.arrive(desk.publish(f"a{index}"))
        desk.settle()
        assert desk.tier_of(kept) is DEVICE
    assert len(desk.finish) == 6


def test_a_pin_in_host_memory_outlives_the_crowd_and_ends_with_unpin() -> None:
    desk = Desk(host_bytes=250, slots_max=1, pages=60)
    kept = desk.publish("kept")
    desk.pin(kept, HOST)
    desk.settle()
    crowd = [desk.publish(f"a{index}") for index in range(4)]
    for name in crowd:
        desk.arrive(name)
        desk.settle()
        assert desk.tier_of(kept) is HOST
    assert desk.unpin(kept) in desk.done
    for name in crowd:
        desk.arrive(name)
        desk.settle()
    assert desk.tier_of(kept) is DISK


def test_pins_keep_no_more_than_their_share() -> None:
    desk = Desk(slots_max=4, pages=100)
    numbers = [desk.pin(desk.publish(f"a{index}")) for index in range(3)]
    desk.settle()
    assert numbers[0] in desk.done
    assert numbers[1] in desk.done
    error = desk.errors[numbers[2]]
    assert isinstance(error, PinRefused)
    assert "3 slots of the device would be kept by pins, at most 2 may" in str(error)
    assert not [key for key in desk.core.control.pins if key.name == "a2"]


def test_a_pin_refused_for_its_pages_or_its_bytes_says_so() -> None:
    desk = Desk(pages=20, page_bytes=10, host_bytes=1000)
    large = desk.publish("large", 150)
    number = desk.pin(large)
    desk.settle()
    assert "15 pages of the device" in str(desk.errors[number])
    desk = Desk(host_bytes=1000)
    number = desk.pin(desk.publish("large", 600), HOST)
    desk.settle()
    assert "600 bytes of host memory" in str(desk.errors[number])


def test_a_request_that_could_never_be_served_beside_a_pin_is_served_and_the_pin_comes_back() -> (
    None
):
    desk = Desk(Limits(turn_s=0.5, turn_admissions=2), slots_max=4, pages=20, page_bytes=10)
    kept = desk.publish("kept", 80)
    desk.pin(kept)
    desk.settle()
    large = desk.publish("large", 150)
    number = desk.arrive(large)
    for _ in range(20):
        desk.now += 1.0
        desk.tell(Ticked())
        desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-large")
    assert desk.tier_of(kept) is DEVICE


def test_a_prompt_that_needs_the_whole_pool_is_served_beside_a_pin() -> None:
    desk = Desk(slots_max=4, pages=20, page_bytes=10, block_tokens=4)
    kept = desk.publish("kept", 80)
    desk.pin(kept)
    desk.settle()
    number = desk.arrive(None, prompt=70, new=8)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)
    assert desk.tier_of(kept) is DEVICE


def test_a_large_adapter_passes_through_host_memory_beside_a_pin() -> None:
    desk = Desk(host_bytes=1000)
    kept = desk.publish("kept", 450)
    desk.pin(kept, HOST)
    desk.settle()
    number = desk.arrive(desk.publish("large", 700))
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-large")


def test_a_pin_is_renewed_on_the_next_worker() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    desk.pin(kept)
    desk.settle()
    desk.tell(WorkerGone("it died"))
    desk.worker.host.clear()
    desk.reconnect()
    desk.settle()
    assert desk.tier_of(kept) is DEVICE
    desk.tell(WorkerGone("it died"))
    desk.worker.disk.clear()
    desk.worker.host.clear()
    desk.reconnect()
    desk.settle()
    assert desk.tier_of(kept) is DEVICE


def test_a_pin_that_cannot_be_renewed_says_why_and_is_tried_with_the_next_worker() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    desk.pin(kept)
    desk.settle()
    desk.tell(WorkerGone("it died"))
    meaning = desk.worker.published.pop(kept)
    desk.worker.disk.clear()
    desk.worker.host.clear()
    desk.reconnect()
    desk.settle()
    assert isinstance(desk.core.control.pins[kept].error, AdapterNotFound)
    desk.worker.published[kept] = meaning
    desk.now += 10.0
    desk.tell(WorkerGone("it died"))
    desk.reconnect()
    desk.settle()
    assert desk.core.control.pins[kept].error is None
    assert desk.tier_of(kept) is DEVICE


def test_a_pin_follows_its_name_to_the_next_version() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    desk.pin(kept)
    desk.settle()
    desk.publish("kept", digest="newer")
    number = desk.reload(kept)
    desk.settle()
    assert desk.done[number][0] == "newer"
    assert desk.tier_of(kept) is DEVICE
    assert not desk.core.tiers.adapters["digest-kept"].kept


def test_a_pin_stands_though_its_asker_left() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    number = desk.pin(kept)
    desk.tell(Cancelled(number))
    desk.settle()
    assert desk.tier_of(kept) is DEVICE
    assert desk.core.tiers.adapters["digest-kept"].kept is DEVICE


def test_a_pinned_name_is_not_forgotten_for_newer_ones() -> None:
    desk = Desk(Limits(aliases_max=2))
    kept = desk.publish("kept")
    desk.pin(kept, HOST)
    desk.settle()
    for index in range(5):
        desk.arrive(desk.publish(f"a{index}"))
        desk.settle()
    assert desk.tier_of(kept) is HOST


def test_there_may_be_only_so_many_pins() -> None:
    desk = Desk(Limits(pins_max=1))
    desk.pin(desk.publish("a"), HOST)
    refused = desk.pin(desk.publish("b"), HOST)
    assert isinstance(desk.errors[refused], PinRefused)


def test_unpinning_what_is_not_pinned_is_fine() -> None:
    desk = Desk()
    assert desk.unpin(desk.publish("a")) in desk.done


def test_a_version_published_as_pinned_is_kept_once_for_two_names() -> None:
    desk = Desk(slots_max=2)
    one, other = desk.publish("one", digest="same"), desk.publish("other", digest="same")
    first, second = desk.pin(one), desk.pin(other)
    desk.settle()
    assert desk.done[first] == desk.done[second] == ("same", DEVICE)
    desk.unpin(one)
    assert desk.core.tiers.adapters["same"].kept is DEVICE
    desk.unpin(other)
    assert desk.core.tiers.adapters["same"].kept is ABSENT


def test_a_version_that_grows_beyond_the_share_loses_its_pin_and_says_so() -> None:
    desk = Desk(pages=20, page_bytes=10)
    kept = desk.publish("kept", 80)
    desk.pin(kept)
    desk.settle()
    desk.worker.published[kept] = AdapterVersion("newer", 150, 8, 4)
    desk.reload(kept)
    desk.settle()
    assert isinstance(desk.core.control.pins[kept].error, PinRefused)
