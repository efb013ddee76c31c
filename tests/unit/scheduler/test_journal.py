"""What the engine writes down for those who watch."""

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdapterNotFound, Overloaded, SourceUnavailable
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Moved,
    MoveFailed,
    SampledTokens,
    StepOutcome,
)
from adex_scheduler.engine.journal import ENTRIES_MAX, SECONDS_MAX, Happening, Journal
from adex_scheduler.engine.journey import Move, MoveKind
from adex_scheduler.testing.desk import Desk, key

PRIVATE = AdapterKey("t:1234", "hub", "acme/secret")


def served(desk: Desk, name: AdapterKey) -> None:
    desk.arrive(name)
    desk.settle()


def told(
    journal: Journal, event: AdapterEvent, desk: Desk, now: float, seconds: float = 0.0
) -> None:
    """The answer to a move that took so long."""
    journal.answered(event, Move(MoveKind.FETCH, now - seconds, now), desk.core, now)


def test_an_adapter_is_followed_from_its_source_to_the_device_and_away() -> None:
    desk, journal = Desk(), Journal()
    tone = desk.publish("tone", digest="d1")
    told(journal, Fetched(tone, AdapterVersion("d1", 100, 8, 4)), desk, 1.5, seconds=0.5)
    served(desk, tone)
    told(journal, Moved("d1", Tier.HOST), desk, 2.25, seconds=0.25)
    told(journal, Moved("d1", Tier.DEVICE), desk, 3.125, seconds=0.125)
    journal.answered(Evicted("d1", Tier.DEVICE), None, desk.core, 4.0)
    assert [(e.what, e.key, e.tier, e.seconds) for e in journal.entries] == [
        (Happening.FETCHED, tone, Tier.DISK, 0.5),
        (Happening.STAGED, tone, Tier.HOST, 0.25),
        (Happening.PAGED_IN, tone, Tier.DEVICE, 0.125),
        (Happening.EVICTED, tone, Tier.DEVICE, 0.0),
    ]


def test_a_name_that_still_means_the_same_is_no_news() -> None:
    desk, journal = Desk(), Journal()
    tone = desk.publish("tone", digest="d1")
    served(desk, tone)
    told(journal, Fetched(tone, AdapterVersion("d1", 100, 8, 4)), desk, 1.0)
    assert journal.entries == ()


def test_a_failure_says_why_and_of_a_private_name_only_its_code() -> None:
    desk, journal = Desk(), Journal()
    error = SourceUnavailable("the hub does not answer for acme/secret")
    told(journal, FetchFailed(key("tone"), error), desk, 1.0)
    told(journal, FetchFailed(PRIVATE, error), desk, 2.0)
    told(journal, MoveFailed("unknown", Tier.HOST, error), desk, 3.0)
    journal.failed(PRIVATE, "", AdapterNotFound.code, 4.0)
    public, *private = journal.entries
    assert (public.key, public.code) == (key("tone"), "source_unavailable")
    assert public.reason == error.message
    assert "secret" not in f"{private}"
    assert [entry.code for entry in private] == [
        "source_unavailable",
        "source_unavailable",
        "adapter_not_found",
    ]


def test_a_private_adapter_that_arrives_is_known_by_its_digest_only() -> None:
    desk, journal = Desk(), Journal()
    name = desk.publish("secret", tenant="t:1", digest="d1")
    told(journal, Fetched(name, AdapterVersion("d1", 100, 8, 4)), desk, 1.0)
    desk.arrive(name, tenant="t:1")
    desk.settle()
    told(journal, Moved("d1", Tier.HOST), desk, 2.0)
    [entry] = journal.entries
    assert (entry.what, entry.key, entry.digest) == (Happening.STAGED, None, "d1")


def test_a_storm_of_one_kind_is_one_line_that_counts() -> None:
    journal = Journal()
    for number in range(1000):
        journal.failed(None, "", Overloaded.code, number / 100)
    [entry] = journal.entries
    assert (entry.times, entry.number, entry.code) == (1000, 1000, "overloaded")


def test_the_log_and_the_rates_are_bounded() -> None:
    desk, journal = Desk(), Journal()
    for number in range(5000):
        journal.failed(key(f"a{number}"), "", Overloaded.code, float(number))
        told(journal, Fetched(key("b"), AdapterVersion(f"{number}", 1, 1, 1)), desk, 0.0)
    assert len(journal.entries) == ENTRIES_MAX
    assert len(journal.seconds) == SECONDS_MAX


def test_a_second_adds_up_what_it_saw() -> None:
    journal = Journal()
    tokens, one = SampledTokens((1, 2), (5, 6)), SampledTokens((1,), (7,))
    journal.arrived(7.0)
    journal.stepped(StepOutcome(0, tokens, seconds=0.25), 7.1)
    journal.stepped(StepOutcome(1, one, seconds=0.75), 7.9)
    journal.first_token(0.5, 7.9)
    journal.stepped(StepOutcome(2, tokens), 8.0)
    first, second = journal.seconds
    assert (first.at, first.tokens, first.steps, first.step_s) == (7, 3, 2, 1.0)
    assert (first.arrived, first.firsts, first.first_s) == (1, 1, 0.5)
    assert (second.at, second.tokens) == (8, 2)


def test_a_worker_is_lost_and_comes_back() -> None:
    journal = Journal()
    journal.lost("it was silent for 15 s", 1.0)
    journal.connected(3.0)
    assert [(entry.what, entry.reason) for entry in journal.entries] == [
        (Happening.WORKER_LOST, "it was silent for 15 s"),
        (Happening.WORKER_BACK, ""),
    ]
