"""What operators ask about adapters: preload, prefetch, pin, reload, unload."""

from adex_proto.adapter import Tier
from adex_proto.errors import (
    AdapterMalformed,
    AdapterNotFound,
    Overloaded,
    SourceUnavailable,
)
from adex_proto.plan import Fetch, PageIn
from adex_scheduler.core.events import (
    Cancelled,
    Drained,
    Ticked,
    WorkerGone,
    WorkerReady,
)
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

DEVICE, HOST, DISK, ABSENT = Tier.DEVICE, Tier.HOST, Tier.DISK, Tier.ABSENT


# Preloading.


def test_a_preloaded_adapter_is_where_it_was_asked_to_be_and_tells_of_each_tier() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = desk.preload(name)
    desk.settle()
    assert desk.brought[number] == [("digest-a", DISK), ("digest-a", HOST), ("digest-a", DEVICE)]
    assert desk.done == {number: ("digest-a", DEVICE)}
    assert desk.core.statistics().sequences == 0


def test_a_preload_to_host_memory_takes_nothing_of_the_device() -> None:
    desk = Desk()
    number = desk.preload(desk.publish("a"), HOST)
    desk.settle()
    assert desk.done[number] == ("digest-a", HOST)
    assert not desk.sent(PageIn)


def test_what_is_there_already_is_answered_at_once() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.preload(name)
    desk.settle()
    again = desk.preload(name, HOST)
    assert desk.done[again] == ("digest-a", DEVICE)
    assert not desk.worker.commands


def test_a_preload_and_a_request_share_one_fetch() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = desk.preload(name)
    request = desk.arrive(name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DEVICE)
    assert desk.tokens[request] == desk.expected(request, "digest-a")
    assert len(desk.sent(Fetch)) == len(desk.sent(PageIn)) == 1


def test_a_preload_that_cannot_be_is_told_why() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.worker.published[name] = AdapterMalformed("no weights")
    number = desk.preload(name)
    desk.settle()
    assert isinstance(desk.errors[number], AdapterMalformed)
    assert number not in desk.done


def test_a_preload_nobody_waits_for_any_more_is_given_up() -> None:
    desk = Desk()
    number = desk.preload(desk.publish("a"))
    desk.answer()
    desk.tell(Cancelled(number))
    desk.settle()
    assert not desk.sent(PageIn)
    assert not desk.core.sequences


def test_a_preload_outlives_the_loss_of_its_worker() -> None:
    desk = Desk()
    number = desk.preload(desk.publish("a"))
    desk.answer()
    desk.tell(WorkerGone("it died"))
    desk.reconnect()
    desk.settle()
    assert desk.done[number] == ("digest-a", DEVICE)


def test_a_preload_that_takes_too_long_is_given_up() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    number = desk.preload(desk.publish("a"))
    desk.now = 11.0
    desk.tell(Ticked())
    assert isinstance(desk.errors[number], SourceUnavailable)


def test_no_more_is_asked_at_once_than_the_limit() -> None:
    desk = Desk(Limits(errands_max=1))
    desk.preload(desk.publish("a"))
    refused = desk.preload(desk.publish("b"))
    assert isinstance(desk.errors[refused], Overloaded)
    desk.settle()
    assert desk.preload(desk.publish("b")) not in desk.errors


def test_a_server_that_drains_brings_nothing_new() -> None:
    desk = Desk()
    desk.tell(Drained())
    number = desk.preload(desk.publish("a"))
    assert desk.errors[number].code == "shutting_down"


# Hints.


def test_a_hint_is_followed_while_nothing_else_is_to_be_done() -> None:
    desk = Desk()
    name = desk.publish("a")
    number = desk.preload(name, hint=True)
    assert desk.done[number] == ("", ABSENT)
    desk.settle()
    assert desk.tier_of(name) is HOST


def test_a_request_goes_before_every_hint() -> None:
    desk = Desk(Limits(fetches_max=1))
    busy, hinted, wanted = desk.publish("busy"), desk.publish("hinted"), desk.publish("wanted")
    desk.arrive(busy)
    desk.preload(hinted, hint=True)
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
    desk.preload(hinted, hint=True)
    desk.settle_commands()
    assert desk.tier_of(second) is HOST
    assert desk.tier_of(hinted) <= DISK
    desk.settle()
    assert len(desk.finish) == 2


def test_the_oldest_hint_is_forgotten_for_a_new_one() -> None:
    desk = Desk(Limits(hints_max=2, fetches_max=1))
    desk.arrive(desk.publish("busy"))
    names = [desk.publish(f"a{index}") for index in range(3)]
    for name in names:
        desk.preload(name, hint=True)
    desk.settle()
    assert [desk.tier_of(name) for name in names] == [ABSENT, HOST, HOST]


# Reloading.


def test_a_reload_moves_the_name_and_running_requests_finish_on_the_old_version() -> None:
    desk = Desk()
    name = desk.publish("a")
    running = desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    desk.publish("a", digest="newer")
    number = desk.reload(name)
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
    number = desk.reload(name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)
    served = desk.arrive(name)
    desk.settle()
    assert served in desk.finish


def test_a_reload_during_a_resolution_waits_for_one_that_began_after_it() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.arrive(name)
    number = desk.reload(name)
    desk.answer()
    assert number not in desk.done
    desk.publish("a", digest="newer")
    desk.settle()
    assert desk.done[number][0] == "newer"


def test_a_reload_whose_source_is_silent_fails_and_the_known_version_serves_on() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.preload(name)
    desk.settle()
    number = desk.reload(name)
    desk.answer(fail=True)
    assert isinstance(desk.errors[number], SourceUnavailable)
    served = desk.arrive(name)
    desk.settle()
    assert desk.tokens[served] == desk.expected(served, "digest-a")


def test_a_reload_is_asked_again_of_the_next_worker() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.preload(name)
    desk.settle()
    number = desk.reload(name)
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
    number = desk.unload(name)
    desk.settle_commands()
    assert number not in desk.done
    desk.settle()
    assert desk.tokens[running] == desk.expected(running, "digest-a")
    assert desk.done[number] == ("digest-a", DISK)
    assert not desk.worker.host
    assert not any(alias.digest for alias in desk.core.residency.names.all())


def test_an_unload_from_the_disk_leaves_nothing() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.preload(name)
    desk.settle()
    number = desk.unload(name, disk=True)
    desk.settle()
    assert desk.done[number] == ("digest-a", ABSENT)
    assert not desk.worker.disk


def test_requests_that_wait_for_an_adapter_being_unloaded_are_served_afterwards() -> None:
    desk = Desk()
    name = desk.publish("a")
    running = desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    number = desk.unload(name)
    later = desk.arrive(name)
    desk.settle()
    assert number in desk.done
    assert running in desk.finish
    assert desk.tokens[later] == desk.expected(later, "digest-a")


def test_bytes_that_another_name_means_stay() -> None:
    desk = Desk()
    one, other = desk.publish("one", digest="same"), desk.publish("other", digest="same")
    desk.preload(one)
    desk.preload(other)
    desk.settle()
    number = desk.unload(one)
    assert desk.done[number] == ("same", DEVICE)
    assert desk.tier_of(other) is DEVICE


def test_unloading_a_name_that_means_nothing_is_refused() -> None:
    desk = Desk()
    number = desk.unload(desk.publish("a"))
    assert isinstance(desk.errors[number], AdapterNotFound)


def test_unloading_ends_the_pin() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.pin(name)
    desk.settle()
    number = desk.unload(name)
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)
    assert not desk.core.control.pins


def test_an_unload_is_given_up_when_the_adapter_is_used_for_too_long() -> None:
    desk = Desk(Limits(wait_s_max=10.0))
    name = desk.publish("a")
    desk.arrive(name, new=8)
    desk.settle_commands()
    desk.step()
    number = desk.unload(name)
    desk.now = 11.0
    desk.tell(Ticked())
    assert isinstance(desk.errors[number], Overloaded)
    desk.settle()


def test_an_unload_goes_on_with_the_next_worker() -> None:
    desk = Desk()
    name = desk.publish("a")
    desk.preload(name)
    desk.settle()
    number = desk.unload(name)
    desk.tell(WorkerGone("it died"))
    desk.tell(WorkerReady(desk.worker.hello()))
    desk.settle()
    assert desk.done[number] == ("digest-a", DISK)
