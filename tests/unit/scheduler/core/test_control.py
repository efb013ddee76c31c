"""What operators ask about adapters: preload, prefetch, pin, reload, unload."""

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterMalformed,
    AdapterNotFound,
    Overloaded,
    PinRefused,
    SourceUnavailable,
)
from adex_proto.plan import Fetch, PageIn
from adex_scheduler.core.events import (
    Cancelled,
    Drained,
    Pin,
    Preload,
    Reload,
    Ticked,
    Unload,
    Unpin,
    WorkerGone,
    WorkerReady,
)
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

DEVICE, HOST, DISK, ABSENT = Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.ABSENT


def tier_of(desk: Desk, name: AdapterKey) -> Tier:
    alias = desk.core.residency.names.get(name)
    adapter = desk.core.tiers.adapters.get(alias.digest or "") if alias else None
    return adapter.tier if adapter else ABSENT


def preload(desk: Desk, name: AdapterKey, tier: Tier = DEVICE, *, hint: bool = False) -> int:
    return desk.ask(lambda number: Preload(number, "", name, tier, hint))


def pin(desk: Desk, name: AdapterKey, tier: Tier = DEVICE) -> int:
    return desk.ask(lambda number: Pin(number, "", name, tier))


def unpin(desk: Desk, name: AdapterKey) -> int:
    return desk.ask(lambda number: Unpin(number, name))


def reload(desk: Desk, name: AdapterKey) -> int:
    return desk.ask(lambda number: Reload(number, "", name))


def unload(desk: Desk, name: AdapterKey, *, disk: bool = False) -> int:
    return desk.ask(lambda number: Unload(number, name, disk))


# Preloading.


def test_a_preloaded_adapter_is_where_it_was_asked_to_be_and_tells_of_each_tier() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = preload(desk, name)
    desk.settle()
    assert desk.brought[number] == [("digest-a", DISK), ("digest-a", HOST), ("digest-a", DEVICE)]
    assert desk.done == {number: ("digest-a", DEVICE)}
    assert desk.core.statistics().sequences == 0


def test_a_preload_to_host_memory_takes_nothing_of_the_device() -> None:
    desk = Desk()
    number = preload(desk, desk.publish("a"), HOST)
    desk.settle()
    assert desk.done[number] == ("digest-a", HOST)
    assert not desk.sent(PageIn)


def test_what_is_there_already_is_answered_at_once() -> None:
    desk = Desk()
    name = desk.publish("a")
    preload(desk, name)
    desk.settle()
    again = preload(desk, name, HOST)
    assert desk.done[again] == ("digest-a", DEVICE)
    assert not desk.worker.commands


def test_a_preload_and_a_request_share_one_fetch() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = preload(desk, name)
    request = desk.arrive(name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DEVICE)
    assert desk.tokens[request] == desk.expected(request, "digest-a")
    assert len(desk.sent(Fetch)) == len(desk.sent(PageIn)) == 1


def test_a_preload_that_cannot_be_is_told_why() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.worker.published[name] = AdapterMalformed("no weights")
    number = preload(desk, name)
    desk.settle()
    assert isinstance(desk.errors[number], AdapterMalformed)
    assert number not in desk.done


def test_a_preload_nobody_waits_for_any_more_is_given_up() -> None:
    desk = Desk()
    number = preload(desk, desk.publish("a"))
    desk.answer()
    desk.tell(Cancelled(number))
    desk.settle()
    assert not desk.sent(PageIn)
    assert not desk.core.sequences


def test_a_preload_outlives_the_loss_of_its_worker() -> None:
    desk = Desk()
    number = preload(desk, desk.publish("a"))
    desk.answer()
    desk.tell(WorkerGone("it died"))
    desk.reconnect()
    desk.settle()
    assert desk.done[number] == ("digest-a", DEVICE)


def test_a_preload_that_takes_too_long_is_given_up() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    number = preload(desk, desk.publish("a"))
    desk.now = 11.0
    desk.tell(Ticked())
    assert isinstance(desk.errors[number], SourceUnavailable)


def test_no_more_is_asked_at_once_than_the_limit() -> None:
    desk = Desk(Limits(errands_max=1))
    preload(desk, desk.publish("a"))
    refused = preload(desk, desk.publish("b"))
    assert isinstance(desk.errors[refused], Overloaded)
    desk.settle()
    assert preload(desk, desk.publish("b")) not in desk.errors


def test_a_server_that_drains_brings_nothing_new() -> None:
    desk = Desk()
    desk.tell(Drained())
    number = preload(desk, desk.publish("a"))
    assert desk.errors[number].code == "shutting_down"


# Hints.


def test_a_hint_is_followed_while_nothing_else_is_to_be_done() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = preload(desk, name, hint=True)
    assert desk.done[number] == ("", ABSENT)
    desk.settle()
    assert tier_of(desk, name) is HOST


def test_a_request_goes_before_every_hint() -> None:
    desk = Desk(Limits(fetches_max=1))
    busy, hinted, wanted = desk.publish("busy"), desk.publish("hinted"), desk.publish("wanted")
    desk.arrive(busy)
    preload(desk, hinted, hint=True)
    desk.arrive(wanted)
    desk.settle()
    fetched = [command.key for command in desk.sent(Fetch) if isinstance(command, Fetch)]
    assert fetched == [busy, wanted, hinted]


def test_a_hint_never_displaces_what_someone_waits_for() -> None:
    # Host memory for one: the one that waits for the device stays in it.
    desk = Desk(host_bytes=150, slots_max=1, pages=40)
    first, second, hinted = desk.publish("first"), desk.publish("second"), desk.publish("hinted")
    desk.arrive(first, new=30)
    desk.settle_commands()
    desk.arrive(second)
    preload(desk, hinted, hint=True)
    desk.settle_commands()
    assert tier_of(desk, second) is HOST
    assert tier_of(desk, hinted) <= DISK
    desk.settle()
    assert len(desk.finish) == 2


def test_the_oldest_hint_is_forgotten_for_a_new_one() -> None:
    desk = Desk(Limits(hints_max=2, fetches_max=1))
    desk.arrive(desk.publish("busy"))
    names = [desk.publish(f"a{index}") for index in range(3)]
    for name in names:
        preload(desk, name, hint=True)
    desk.settle()
    assert [tier_of(desk, name) for name in names] == [ABSENT, HOST, HOST]


# Pins.


def test_a_pinned_adapter_stays_on_the_device_whatever_else_comes() -> None:
    desk = Desk(slots_max=2, pages=60)
    kept = desk.publish("kept")
    number = pin(desk, kept)
    desk.settle()
    assert desk.done[number] == ("digest-kept", DEVICE)
    for index in range(6):
        desk.arrive(desk.publish(f"a{index}"))
        desk.settle()
        assert tier_of(desk, kept) is DEVICE
    assert len(desk.finish) == 6


def test_a_pin_in_host_memory_outlives_the_crowd_and_ends_with_unpin() -> None:
    desk = Desk(host_bytes=250, slots_max=1, pages=60)
    kept = desk.publish("kept")
    pin(desk, kept, HOST)
    desk.settle()
    crowd = [desk.publish(f"a{index}") for index in range(4)]
    for name in crowd:
        desk.arrive(name)
        desk.settle()
        assert tier_of(desk, kept) is HOST
    assert unpin(desk, kept) in desk.done
    for name in crowd:
        desk.arrive(name)
        desk.settle()
    assert tier_of(desk, kept) is DISK


def test_pins_keep_no_more_than_their_share() -> None:
    desk = Desk(slots_max=4, pages=100)
    numbers = [pin(desk, desk.publish(f"a{index}")) for index in range(3)]
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
    number = pin(desk, large)
    desk.settle()
    assert "15 pages of the device" in str(desk.errors[number])
    desk = Desk(host_bytes=1000)
    number = pin(desk, desk.publish("large", 600), HOST)
    desk.settle()
    assert "600 bytes of host memory" in str(desk.errors[number])


def test_a_request_that_could_never_be_served_beside_a_pin_is_served_and_the_pin_comes_back() -> (
    None
):
    desk = Desk(Limits(turn_s=0.5, turn_admissions=2), slots_max=4, pages=20, page_bytes=10)
    kept = desk.publish("kept", 80)
    pin(desk, kept)
    desk.settle()
    large = desk.publish("large", 150)
    number = desk.arrive(large)
    for _ in range(20):
        desk.now += 1.0
        desk.tell(Ticked())
        desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-large")
    assert tier_of(desk, kept) is DEVICE


def test_a_prompt_that_needs_the_whole_pool_is_served_beside_a_pin() -> None:
    desk = Desk(slots_max=4, pages=20, page_bytes=10, block_tokens=4)
    kept = desk.publish("kept", 80)
    pin(desk, kept)
    desk.settle()
    number = desk.arrive(None, prompt=70, new=8)
    desk.settle()
    assert desk.tokens[number] == desk.expected(number)
    assert tier_of(desk, kept) is DEVICE


def test_a_large_adapter_passes_through_host_memory_beside_a_pin() -> None:
    desk = Desk(host_bytes=1000)
    kept = desk.publish("kept", 450)
    pin(desk, kept, HOST)
    desk.settle()
    number = desk.arrive(desk.publish("large", 700))
    desk.settle()
    assert desk.tokens[number] == desk.expected(number, "digest-large")


def test_a_pin_is_renewed_on_the_next_worker() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    pin(desk, kept)
    desk.settle()
    desk.tell(WorkerGone("it died"))
    desk.worker.host.clear()
    desk.reconnect()
    desk.settle()
    assert tier_of(desk, kept) is DEVICE
    desk.tell(WorkerGone("it died"))
    desk.worker.disk.clear()
    desk.worker.host.clear()
    desk.reconnect()
    desk.settle()
    assert tier_of(desk, kept) is DEVICE


def test_a_pin_that_cannot_be_renewed_says_why_and_is_tried_with_the_next_worker() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    pin(desk, kept)
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
    assert tier_of(desk, kept) is DEVICE


def test_a_pin_follows_its_name_to_the_next_version() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    pin(desk, kept)
    desk.settle()
    desk.publish("kept", digest="newer")
    number = reload(desk, kept)
    desk.settle()
    assert desk.done[number][0] == "newer"
    assert tier_of(desk, kept) is DEVICE
    assert not desk.core.tiers.adapters["digest-kept"].kept


def test_a_pin_stands_though_its_asker_left() -> None:
    desk = Desk()
    kept = desk.publish("kept")
    number = pin(desk, kept)
    desk.tell(Cancelled(number))
    desk.settle()
    assert tier_of(desk, kept) is DEVICE
    assert desk.core.tiers.adapters["digest-kept"].kept is DEVICE


def test_a_pinned_name_is_not_forgotten_for_newer_ones() -> None:
    desk = Desk(Limits(aliases_max=2))
    kept = desk.publish("kept")
    pin(desk, kept, HOST)
    desk.settle()
    for index in range(5):
        desk.arrive(desk.publish(f"a{index}"))
        desk.settle()
    assert tier_of(desk, kept) is HOST


def test_there_may_be_only_so_many_pins() -> None:
    desk = Desk(Limits(pins_max=1))
    pin(desk, desk.publish("a"), HOST)
    refused = pin(desk, desk.publish("b"), HOST)
    assert isinstance(desk.errors[refused], PinRefused)


def test_unpinning_what_is_not_pinned_is_fine() -> None:
    desk = Desk()
    assert unpin(desk, desk.publish("a")) in desk.done


# Reloading.


def test_a_reload_moves_the_name_and_running_requests_finish_on_the_old_version() -> None:
    desk = Desk()
    name = desk.publish("a")
    running = desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    desk.publish("a", digest="newer")
    number = reload(desk, name)
    desk.settle_commands()
    later = desk.arrive(name, new=8)
    desk.settle()
    assert desk.done[number] == ("newer", DISK)
    assert desk.tokens[running] == desk.expected(running, "digest-a")
    assert desk.tokens[later] == desk.expected(later, "newer")


def test_a_reload_ends_the_memory_of_a_failure() -> None:
    desk = Desk(Limits(failure_ttl_s=1000.0))
    name = desk.publish("a")
    good = desk.worker.published[name]
    desk.worker.published[name] = AdapterMalformed("no weights")
    desk.arrive(name)
    desk.settle()
    desk.worker.published[name] = good
    remembered = desk.arrive(name)
    assert remembered in desk.errors
    number = reload(desk, name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)
    served = desk.arrive(name)
    desk.settle()
    assert served in desk.finish


def test_a_reload_during_a_resolution_waits_for_one_that_began_after_it() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.arrive(name)
    number = reload(desk, name)
    desk.answer()
    assert number not in desk.done
    desk.publish("a", digest="newer")
    desk.settle()
    assert desk.done[number][0] == "newer"


def test_a_reload_whose_source_is_silent_fails_and_the_known_version_serves_on() -> None:
    desk = Desk()
    name = desk.publish("a")
    preload(desk, name)
    desk.settle()
    number = reload(desk, name)
    desk.answer(fail=True)
    assert isinstance(desk.errors[number], SourceUnavailable)
    served = desk.arrive(name)
    desk.settle()
    assert desk.tokens[served] == desk.expected(served, "digest-a")


def test_a_reload_is_asked_again_of_the_next_worker() -> None:
    desk = Desk()
    name = desk.publish("a")
    preload(desk, name)
    desk.settle()
    number = reload(desk, name)
    desk.tell(WorkerGone("it died"))
    desk.publish("a", digest="newer")
    desk.reconnect()
    desk.settle()
    assert desk.done[number][0] == "newer"


# Unloading.


def test_an_unloaded_adapter_leaves_device_and_host_memory_after_its_last_user() -> None:
    desk = Desk()
    name = desk.publish("a")
    running = desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    number = unload(desk, name)
    desk.settle_commands()
    assert number not in desk.done
    desk.settle()
    assert desk.tokens[running] == desk.expected(running, "digest-a")
    assert desk.done[number] == ("digest-a", DISK)
    assert not desk.worker.host
    assert not desk.core.residency.named_adapters()


def test_an_unload_from_the_disk_leaves_nothing() -> None:
    desk = Desk()
    name = desk.publish("a")
    preload(desk, name)
    desk.settle()
    number = unload(desk, name, disk=True)
    desk.settle()
    assert desk.done[number] == ("digest-a", ABSENT)
    assert not desk.worker.disk


def test_requests_that_wait_for_an_adapter_being_unloaded_are_served_afterwards() -> None:
    desk = Desk()
    name = desk.publish("a")
    running = desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    number = unload(desk, name)
    later = desk.arrive(name)
    desk.settle()
    assert number in desk.done
    assert running in desk.finish
    assert desk.tokens[later] == desk.expected(later, "digest-a")


def test_bytes_that_another_name_means_stay() -> None:
    desk = Desk()
    one, other = desk.publish("one", digest="same"), desk.publish("other", digest="same")
    preload(desk, one)
    preload(desk, other)
    desk.settle()
    number = unload(desk, one)
    assert desk.done[number] == ("same", DEVICE)
    assert tier_of(desk, other) is DEVICE


def test_unloading_a_name_that_means_nothing_is_refused() -> None:
    desk = Desk()
    number = unload(desk, desk.publish("a"))
    assert isinstance(desk.errors[number], AdapterNotFound)


def test_unloading_ends_the_pin() -> None:
    desk = Desk()
    name = desk.publish("a")
    pin(desk, name)
    desk.settle()
    number = unload(desk, name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)
    assert not desk.core.control.pins


def test_an_unload_is_given_up_when_the_adapter_is_used_for_too_long() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    name = desk.publish("a")
    desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    number = unload(desk, name)
    desk.now = 11.0
    desk.tell(Ticked())
    assert isinstance(desk.errors[number], Overloaded)
    desk.settle()


def test_an_unload_goes_on_with_the_next_worker() -> None:
    desk = Desk()
    name = desk.publish("a")
    preload(desk, name)
    desk.settle()
    number = unload(desk, name)
    desk.tell(WorkerGone("it died"))
    desk.tell(WorkerReady(desk.worker.hello()))
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)


def test_a_version_published_as_pinned_is_kept_once_for_two_names() -> None:
    desk = Desk(slots_max=2)
    one, other = desk.publish("one", digest="same"), desk.publish("other", digest="same")
    first, second = pin(desk, one), pin(desk, other)
    desk.settle()
    assert desk.done[first] == desk.done[second] == ("same", DEVICE)
    unpin(desk, one)
    assert desk.core.tiers.adapters["same"].kept is DEVICE
    unpin(desk, other)
    assert desk.core.tiers.adapters["same"].kept is ABSENT


def test_a_version_that_grows_beyond_the_share_loses_its_pin_and_says_so() -> None:
    desk = Desk(pages=20, page_bytes=10)
    kept = desk.publish("kept", 80)
    pin(desk, kept)
    desk.settle()
    desk.worker.published[kept] = AdapterVersion("newer", 150, 8, 4)
    reload(desk, kept)
    desk.settle()
    assert isinstance(desk.core.control.pins[kept].error, PinRefused)
