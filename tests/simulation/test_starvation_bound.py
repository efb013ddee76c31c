"""No wait is longer than the bound that the world's own limits, demand and slowest moves give."""

from collections import deque
from random import Random

import pytest

from adex_proto.adapter import AdapterKey
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage
from adex_scheduler.core.fairness import charge_max, lag_max, rank
from adex_scheduler.core.limits import PACING, Limits, Pacing
from adex_scheduler.core.sequence import Stage as Life
from adex_scheduler.core.starvation import (
    Slowest,
    first_wait_s,
    firsts_ahead,
    longest_wait_s,
    remainder_s,
)
from adex_scheduler.testing.desk import Desk

NEW, PROMPT_MIN, PROMPT_MAX, TURN_S = 12, 10, 20, 0.01
WAITING = (Life.WAITING, Life.WAITING_ADAPTER)
COLD_BYTES, HOT_BYTES = 2500, 300


class Storm:
    """A flood of requests for the base model and a few hot adapters, and cold ones that come once.

    Steps and moves are answered by chance, so that either may lag. Every wait is noted: until the
    first step, and how long of it the request was the first in fair order.
    """

    def __init__(self, seed: int, tenants: int, pacing: Pacing) -> None:
        self.chance = Random(seed)
        self.limits = Limits(
            turn_s=0.2,
            turn_admissions=10**9,
            page_ins_max=self.chance.choice([1, 2]),
            stages_max=self.chance.choice([1, 4]),
            fetches_max=self.chance.choice([1, 8]),
            running_max=4,
            pacing=pacing,
        )
        # Host memory holds fewer adapters than wait, and the device fewer than are hot.
        self.desk = Desk(self.limits, slots_max=3, pages=36, host_bytes=2700, disk_bytes=100_000)
        self.desk.checking = False
        self.tenants = [f"t{index}" for index in range(tenants)]
        self.hot: list[AdapterKey | None] = [None] * 5
        self.hot += [self.desk.publish(f"hot{index}", HOT_BYTES) for index in range(5)]
        self.colds = 0
        # When each came, its tenant's requests before it, and how many had been first until then.
        self.arrived: dict[int, tuple[float, int, int]] = {}
        # How long each waited, and how many were first meanwhile.
        self.waits: dict[int, tuple[float, int]] = {}
        self.firsts = 0
        self.first: tuple[int, float] = (-1, 0.0)
        self.longest_first_s = 0.0
        self.took: dict[type, float] = {}
        self._sent: deque[tuple[type, float]] = deque()
        self._sent_plans: deque[float] = deque()
        self._plans = self._commands = 0

    def send(self, tenant: str, key: AdapterKey | None) -> None:
        known = self.desk.core.tenants.get(tenant)
        before = known.live if known else 0
        prompt = self.chance.randint(PROMPT_MIN, PROMPT_MAX)
        number = self.desk.arrive(key, prompt, NEW, tenant=tenant)
        self.arrived[number] = (self.desk.now, before, self.firsts)

    def cold(self) -> AdapterKey:
        self.colds += 1
        return self.desk.publish(f"cold{self.colds}", self.chance.choice([900, COLD_BYTES]))

    def play(self, turns: int) -> None:
        chance, desk = self.chance, self.desk
        for turn in range(turns):
            desk.now += TURN_S
            # The first tenant has hot requests waiting at all times.
            while len(desk.core.tiers.ready) < 4:
                self.send(self.tenants[0], chance.choice(self.hot[:5]))
            if turn % 10 == 0:
                self.send(self.tenants[0], chance.choice(self.hot[5:]))
            if turn % 50 == 0:
                self.send(chance.choice(self.tenants), self.cold())
            self._note_sent()
            if desk.worker.commands and chance.random() < 0.6:
                desk.answer()
                kind, sent_at = self._sent.popleft()
                self._note(kind, sent_at)
            self._note_sent()
            if desk.worker.plans:
                desk.step()
                self._note(Life, self._sent_plans.popleft())
            self._note_sent()
            self._look()
        assert not desk.errors

    def _note(self, kind: type, sent_at: float) -> None:
        self.took[kind] = max(self.took.get(kind, 0.0), self.desk.now - sent_at)

    def _note_sent(self) -> None:
        desk = self.desk
        commands: list[AdapterCommand] = desk.commands[self._commands :]
        self._sent += [(type(command), desk.now) for command in commands]
        self._sent_plans += [desk.now] * (len(desk.plans) - self._plans)
        self._commands, self._plans = len(desk.commands), len(desk.plans)

    def _look(self) -> None:
        now, core = self.desk.now, self.desk.core
        for number in [n for n in self.arrived if n not in self.waits]:
            sequence = core.sequences.get(number)
            if sequence is None or sequence.began:
                at, _, firsts = self.arrived[number]
                self.waits[number] = (now - at, self.firsts - firsts)
        waiting = [s for s in core.sequences.values() if s.stage in WAITING]
        first = min(waiting, key=rank).number if waiting else -1
        if first != self.first[0]:
            self.firsts += 1
            self.first = (first, now)
        self.longest_first_s = max(self.longest_first_s, now - self.first[1])

    def slowest(self) -> Slowest:
        took = self.took
        # Chance leaves the longest quiet to itself; as long as a step is not less.
        return Slowest(
            took[Life], took[Fetch], took[Stage], took[PageIn], took.get(Evict, 0.0), took[Life]
        )


@pytest.mark.parametrize("tenants", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_no_wait_is_longer_than_the_bound_under_a_flood_and_a_storm_of_cold_adapters(
    seed: int, tenants: int
) -> None:
    # A step takes the fake worker a millisecond: every second storm leaves prompts the least.
    storm = Storm(seed, tenants, Pacing(0.0005) if seed % 2 else PACING)
    storm.play(3000)
    info, slowest = storm.desk.core.info, storm.slowest()
    remainder = remainder_s(
        info, storm.limits, slowest.step_s, length_max=PROMPT_MAX + NEW, new_tokens_max=NEW
    )
    first_s = first_wait_s(storm.limits, slowest, remainder)
    assert storm.longest_first_s <= first_s
    positions = COLD_BYTES // info.page_bytes * info.block_tokens
    largest = charge_max(PROMPT_MAX, NEW, positions)
    charged, lag = len(storm.arrived) * largest, lag_max(largest, at_once=4)
    again = storm.desk.core.statistics().preemptions
    for number, (at, before, firsts) in storm.arrived.items():
        wait, ahead = storm.waits.get(number, (storm.desk.now - at, storm.firsts - firsts))
        assert wait <= longest_wait_s(storm.limits, slowest, first_s, ahead), number
        # The first one itself is counted as it comes to be first.
        others = firsts_ahead(before + again, others=tenants - 1, charged=charged, lag=lag)
        assert ahead <= others + 1, number
    # A world in which nobody is kept waiting for room would prove nothing.
    assert storm.colds >= 50
    assert storm.longest_first_s >= storm.limits.turn_s
