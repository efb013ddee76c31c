"""What links cost, learned from noisy times; how busy they are; and what a hang does not spoil."""

import math
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import Moved, MoveFailed
from adex_proto.plan import Stage
from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.links import Link, Links


def transfers(link: Link, chance: Random, fixed: float, rate: float, count: int) -> float:
    """Plays transfers of 10 to 300 MB, one after another, a fifth faster or slower than said."""
    now = 0.0
    for _ in range(count):
        size = chance.randrange(10, 300) * 10**6
        link.begin(size, now)
        sent_at = now
        now += (fixed + size / rate) * chance.uniform(0.8, 1.2)
        link.end(size, size, sent_at, now)
    return now


@settings(max_examples=40)
@given(st.integers(0, 1000), st.floats(0.0005, 0.2), st.floats(1e8, 2e10))
def test_a_link_s_cost_is_learned_from_its_transfers(seed: int, fixed: float, rate: float) -> None:
    link = Link.assumed(0.005, 3e9)
    transfers(link, Random(seed), fixed, rate, 200)
    for size in (50e6, 250e6):
        expected = fixed + size / rate
        assert 0.75 * expected < link.seconds(size) < 1.25 * expected
    assert link.cost.fixed_s >= 0
    assert link.cost.s_per_unit > 0


def test_transfers_that_share_a_link_are_not_each_charged_for_all() -> None:
    link = Link.assumed(0.005, 3e9)
    size, now = 100 * 10**6, 0.0
    for _ in range(100):
        sent_at = now
        for _ in range(4):
            link.begin(size, now)
        for _ in range(4):
            now += size / 1e9
            link.end(size, size, sent_at, now)
    assert math.isclose(link.seconds(size), 0.1, rel_tol=0.1)


def test_one_transfer_that_hangs_does_not_spoil_what_is_known() -> None:
    link = Link.assumed(0.005, 3e9)
    now = transfers(link, Random(1), 0.01, 1e9, 100)
    before = link.seconds(100e6)
    link.begin(10**8, now)
    link.end(10**8, 10**8, now, now + 300.0)
    assert link.seconds(100e6) < 1.5 * before


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 100)), max_size=30))
def test_whatever_is_observed_a_transfer_takes_time_and_more_bytes_take_more(
    observed: list[tuple[int, float]],
) -> None:
    link, now = Link.assumed(0.005, 3e9), 0.0
    for size, seconds in observed:
        link.begin(size, now)
        link.end(size, size, now, now + seconds)
        now += seconds
        assert 0 <= link.seconds(1e6) < link.seconds(1e9) < math.inf
        assert 0 <= link.utilisation(now) <= 1.0
        assert 0 <= link.price(now) < math.inf


def test_a_byte_is_dear_on_a_busy_link_and_free_on_an_idle_one() -> None:
    link = Link.assumed(0.005, 3e9)
    assert link.price(0.0) == 0.0
    now = transfers(link, Random(1), 0.01, 1e9, 400)
    assert link.utilisation(now) > 0.8
    assert link.price(now) > link.cost.s_per_unit
    assert link.price(now + 200.0) < 0.01 * link.cost.s_per_unit


def test_moves_are_told_apart_and_those_of_a_lost_worker_are_forgotten() -> None:
    links = Links()
    adapters = {name: Adapter(AdapterVersion(name, 10**8, 8, 4), 1) for name in "ab"}
    stage = links.into(Tier.HOST)
    links.note_sent(Stage("a"), adapters, 0.0)
    links.note_sent(Stage("b"), adapters, 0.0)
    assert stage.under_way == 2
    assert stage.backlog_s > stage.seconds(10**8)
    links.note_answer(Moved("a", Tier.HOST), adapters, 0.1)
    links.note_answer(Moved("a", Tier.HOST), adapters, 0.1)
    known = stage.seconds(1e8)
    links.note_answer(MoveFailed("b", Tier.HOST, ProtocolViolation("x")), adapters, 0.9)
    assert stage.seconds(1e8) == known
    assert stage.under_way == 0
    links.note_sent(Stage("a"), adapters, 1.0)
    links.clear(1.1)
    assert (stage.under_way, stage.under_way_bytes) == (0, 0)
    assert stage.seconds(1e8) == known
