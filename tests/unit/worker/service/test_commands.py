"""Adapter commands: one answer each, in turn for one digest, side by side for others."""

import asyncio
import logging
import threading

import pytest

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMismatch,
    AdapterNotFound,
    AdexError,
    CacheFull,
    ProtocolViolation,
    ServerError,
    SourceUnavailable,
)
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Held,
    Moved,
    MoveFailed,
)
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage
from adex_worker.adapters.leave import Leave
from adex_worker.service import commands as commands_module
from adex_worker.service.commands import CommandPools, Commands

VERSION = AdapterVersion("d" * 64, 1, 1, 1)


class FakeStore:
    """Does nothing, slowly where a gate is set for a method, and remembers the order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.gates: dict[str, threading.Event] = {}
        self.failures: dict[str, Exception] = {}

    def _do(self, name: str, what: str) -> None:
        gate = self.gates.get(name)
        if gate is not None:
            assert gate.wait(10)
        self.calls.append(f"{name} {what}")
        if name in self.failures:
            raise self.failures[name]

    def fetch(
        self, key: AdapterKey, credential: str = "", leave: Leave | None = None
    ) -> AdapterVersion:
        self._do("fetch", key.name)
        return VERSION

    def stage(self, digest: str) -> None:
        self._do("stage", digest)

    def page_in(self, digest: str, slot: int, first_page: int, pages: int) -> None:
        self._do("page_in", f"{digest} {slot} {first_page} {pages}")

    def evict(self, digest: str, tier: Tier) -> None:
        self._do("evict", f"{digest} {tier.name}")

    def held(self) -> tuple[Held, ...]:
        return ()

    def release_device(self) -> None:
        self.calls.append("release")


def key(name: str, tenant: str = "") -> AdapterKey:
    return AdapterKey(tenant, "local", name)


async def settled(commands: Commands, answers: list[AdapterEvent], count: int) -> None:
    async with asyncio.timeout(10):
        while len(answers) < count:
            await asyncio.sleep(0.005)
        await commands.settle()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (Fetch(key("x")), Fetched(key("x"), VERSION)),
        (Stage("a"), Moved("a", Tier.HOST)),
        (PageIn("a", 1, 2, 3), Moved("a", Tier.DEVICE)),
        (Evict("a", Tier.DISK), Evicted("a", Tier.DISK)),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_each_command_has_its_answer(command: AdapterCommand, answer: AdapterEvent) -> None:
    answers: list[AdapterEvent] = []
    commands = Commands(CommandPools(FakeStore()), answers.append)
    commands.submit(command)
    await settled(commands, answers, 1)
    assert answers == [answer]


@pytest.mark.parametrize(
    ("command", "method", "tier"),
    [
        (Fetch(key("x")), "fetch", None),
        (Stage("a"), "stage", Tier.HOST),
        (PageIn("a", 1, 2, 3), "page_in", Tier.DEVICE),
        (Evict("a", Tier.HOST), "evict", Tier.HOST),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("failure", [AdapterNotFound("gone"), OSError("disk on fire")])
async def test_a_failure_is_the_answer_of_its_own_command(
    command: AdapterCommand, method: str, tier: Tier | None, failure: Exception
) -> None:
    store, answers = FakeStore(), list[AdapterEvent]()
    store.failures[method] = failure
    commands = Commands(CommandPools(store), answers.append)
    commands.submit(command)
    await settled(commands, answers, 1)
    [answer] = answers
    assert isinstance(answer, FetchFailed | MoveFailed)
    if isinstance(failure, AdapterNotFound):
        assert answer.error is failure
    else:
        assert isinstance(answer.error, ServerError)
        assert "disk on fire" not in str(answer.error), "the operator's log has the details"
    assert tier is None or (isinstance(answer, MoveFailed) and answer.tier is tier)


async def test_commands_on_one_digest_keep_their_order_and_others_pass_them() -> None:
    store, answers = FakeStore(), list[AdapterEvent]()
    store.gates["stage"] = threading.Event()
    commands = Commands(CommandPools(store), answers.append)
    for command in (Stage("a"), PageIn("a", 1, 0, 1), Evict("a", Tier.HOST), Evict("b", Tier.DISK)):
        commands.submit(command)
    async with asyncio.timeout(10):
        while not answers:
            await asyncio.sleep(0.005)
    assert answers == [Evicted("b", Tier.DISK)]
    store.gates["stage"].set()
    await settled(commands, answers, 4)
    assert answers[1:] == [
        Moved("a", Tier.HOST),
        Moved("a", Tier.DEVICE),
        Evicted("a", Tier.HOST),
    ]


async def test_slow_downloads_do_not_delay_a_page_in() -> None:
    store, answers = FakeStore(), list[AdapterEvent]()
    store.gates["fetch"] = threading.Event()
    commands = Commands(CommandPools(store), answers.append)
    for index in range(50):
        commands.submit(Fetch(key(str(index))))
    commands.submit(PageIn("a", 1, 0, 1))
    async with asyncio.timeout(10):
        while not answers:
            await asyncio.sleep(0.005)
    assert answers == [Moved("a", Tier.DEVICE)]
    store.gates["fetch"].set()
    await settled(commands, answers, 51)


async def test_settling_waits_for_moves_drops_what_has_not_begun_and_leaves_downloads() -> None:
    store, answers = FakeStore(), list[AdapterEvent]()
    store.gates = {"fetch": threading.Event(), "page_in": threading.Event()}
    commands = Commands(CommandPools(store), answers.append)
    commands.submit(Fetch(key("slow")))
    for index in range(6):
        commands.submit(PageIn(str(index), index, index, 1))
    await asyncio.sleep(0.05)
    settling = asyncio.create_task(commands.settle())
    await asyncio.sleep(0.05)
    assert not settling.done()
    store.gates["page_in"].set()
    async with asyncio.timeout(10):
        await settling
    assert len([call for call in store.calls if call.startswith("page_in")]) == 2
    assert not [call for call in store.calls if call.startswith("fetch")]
    store.gates["fetch"].set()


async def test_commands_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_module, "COMMANDS_UNDER_WAY_MAX", 3)
    commands = Commands(CommandPools(FakeStore()), lambda _: None)
    for _ in range(3):
        commands.submit(Stage("a"))
    with pytest.raises(ProtocolViolation, match="more than 3"):
        commands.submit(Stage("a"))
    await commands.settle()


async def test_a_full_disk_is_a_warning_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    store, answers = FakeStore(), list[AdapterEvent]()
    store.failures["fetch"] = CacheFull("the disk is full", remedy="Free some of it")
    commands = Commands(CommandPools(store), answers.append)
    commands.submit(Fetch(key("a")))
    await settled(commands, answers, 1)
    assert caplog.messages == [
        "fetch of an adapter from local: cache_full: the disk is full. Free some of it"
    ]


@pytest.mark.parametrize(
    ("tenant", "error", "is_shown"),
    [
        ("", AdapterMismatch("secret-name has 3 layers"), True),
        ("acme", AdapterMismatch("secret-name has 3 layers"), False),
        # It may be a private one, asked for without its credential.
        ("", AdapterNotFound("no secret-name"), False),
        ("", AdapterForbidden("secret-name is gated"), False),
        ("", SourceUnavailable("no word of secret-name"), False),
    ],
)
async def test_the_log_names_the_adapters_that_everybody_may_read_and_no_others(
    caplog: pytest.LogCaptureFixture, tenant: str, error: AdexError, is_shown: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    store, answers = FakeStore(), list[AdapterEvent]()
    store.failures["fetch"] = error
    commands = Commands(CommandPools(store), answers.append)
    commands.submit(Fetch(key("secret-name", tenant)))
    await settled(commands, answers, 1)
    assert ("secret-name" in caplog.text) is is_shown
