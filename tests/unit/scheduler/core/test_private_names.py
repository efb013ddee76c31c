"""Names that belong to one credential: always resolved by their own, and again before use."""

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_proto.errors import AdapterNotFound, SourceUnavailable
from adex_proto.plan import Fetch
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

MINE, OTHERS = credential_tenant("", "mine"), credential_tenant("", "others")


def test_tenants_of_credentials_differ_and_show_nothing() -> None:
    assert len({MINE, OTHERS, credential_tenant("a", "mine"), credential_tenant("am", "ine")}) == 4
    assert "mine" not in MINE


def test_hot_bytes_do_not_answer_for_another_credential() -> None:
    desk = Desk()
    first = desk.arrive(desk.publish("a", tenant=MINE), tenant=MINE)
    desk.settle()
    assert desk.tokens[first] == desk.expected(first, "digest-a")
    named = desk.publish("a", tenant=OTHERS)
    desk.worker.published[named] = AdapterNotFound("no such adapter")
    second = desk.arrive(named, tenant=OTHERS)
    desk.settle()
    assert isinstance(desk.errors[second], AdapterNotFound)
    assert desk.tokens[second] == []


def test_two_credentials_share_one_copy() -> None:
    desk = Desk()
    for tenant in (MINE, OTHERS):
        number = desk.arrive(desk.publish("a", tenant=tenant), tenant=tenant)
        desk.settle()
        assert desk.tokens[number] == desk.expected(number, "digest-a")
    assert len(desk.sent(Fetch)) == 2
    assert len(desk.core.tiers.adapters) == 1


def test_an_old_private_name_is_resolved_before_the_request_and_a_public_one_beside_it() -> None:
    for tenant in (MINE, ""):
        desk = Desk(Limits(alias_ttl_s=5.0))
        named = desk.publish("a", tenant=tenant)
        desk.arrive(named, tenant=tenant)
        desk.settle()
        desk.now += 6.0
        desk.worker.published[named] = AdapterNotFound("no longer yours")
        number = desk.arrive(named, tenant=tenant)
        desk.settle()
        assert (number in desk.errors) == (tenant == MINE)


def test_a_private_name_whose_source_is_gone_is_not_served_on_trust() -> None:
    desk = Desk(Limits(alias_ttl_s=5.0))
    named = desk.publish("a", tenant=MINE)
    desk.arrive(named, tenant=MINE)
    desk.settle()
    desk.now += 6.0
    desk.worker.published[named] = SourceUnavailable("no answer")
    number = desk.arrive(named, tenant=MINE)
    desk.settle()
    assert isinstance(desk.errors[number], SourceUnavailable)
    desk.now += 6.0
    again = desk.arrive(desk.publish("a", tenant=MINE), tenant=MINE)
    desk.settle()
    assert desk.tokens[again] == desk.expected(again, "digest-a")


def test_a_source_that_hangs_leaves_room_to_ask_the_others() -> None:
    desk = Desk()
    for number in range(20):
        desk.arrive(AdapterKey("", "hub", f"org/{number}"))
    local = desk.arrive(desk.publish("a"))
    asked = [command for command in desk.sent(Fetch) if isinstance(command, Fetch)]
    assert [command.key.source for command in asked] == ["hub"] * 6 + ["local"]
    desk.answer(index=6)
    while len(desk.worker.commands) > 6:
        desk.answer(index=6)
    while desk.worker.plans:
        desk.step()
    assert desk.tokens[local] == desk.expected(local, "digest-a")
