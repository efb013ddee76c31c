"""Nobody waits for ever, however many more adapters are hot than the device can hold."""

from collections import Counter

from adex_proto.adapter import AdapterKey
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

TENANTS = 40
SLOTS = 4


class Crowd:
    """Callers that each send their next request as soon as the last one ends."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.callers: dict[int, tuple[str, AdapterKey | None]] = {}
        self.sent_at: dict[int, int] = {}
        self.served: Counter[str] = Counter()
        self.waits: dict[str, int] = {}
        self.turn = 0

    def send(self, tenant: str, adapter: AdapterKey | None) -> None:
        number = self.desk.arrive(adapter, tenant=tenant, new=6)
        self.callers[number] = (tenant, adapter)
        self.sent_at[number] = self.turn

    def play(self, turns: int) -> None:
        desk = self.desk
        for _ in range(turns):
            self.turn += 1
            desk.now += 0.01
            # Moves take as long as steps here, so both are always under way.
            if desk.worker.commands:
                desk.answer()
            if desk.worker.plans:
                desk.step()
            for number in [n for n in self.callers if n in desk.finish]:
                tenant, adapter = self.callers.pop(number)
                wait = self.turn - self.sent_at.pop(number)
                self.waits[tenant] = max(self.waits.get(tenant, 0), wait)
                self.served[tenant] += 1
                self.send(tenant, adapter)
        assert not desk.errors

    def longest_wait(self) -> int:
        """Turns, of requests that are still waiting too."""
        waiting = [self.turn - at for at in self.sent_at.values()]
        return max([*self.waits.values(), *waiting])


def test_ten_times_more_hot_adapters_than_slots_are_served_evenly() -> None:
    desk = Desk(Limits(turn_admissions=8), slots_max=SLOTS, pages=100)
    desk.checking = False
    crowd = Crowd(desk)
    for index in range(TENANTS):
        crowd.send(f"t{index}", desk.publish(f"a{index}", 300))
    crowd.play(6000)
    counts = [crowd.served[f"t{index}"] for index in range(TENANTS)]
    assert min(counts) >= 0.7 * max(counts), counts
    assert crowd.longest_wait() < 600


def test_a_tenant_that_keeps_every_slot_busy_shuts_nobody_out() -> None:
    desk = Desk(Limits(turn_admissions=8), slots_max=SLOTS, pages=100)
    desk.checking = False
    crowd = Crowd(desk)
    hot = [desk.publish(f"hot{index}", 300) for index in range(SLOTS)]
    for index in range(40):
        crowd.send("heavy", hot[index % SLOTS])
    crowd.play(100)
    for index in range(5):
        crowd.send(f"light{index}", desk.publish(f"a{index}", 300))
    crowd.play(3000)
    # The heavy one is not shut out either, though the others are served before it.
    for index in range(5):
        assert crowd.served[f"light{index}"] > 0.2 * crowd.served["heavy"], crowd.served
        assert crowd.waits[f"light{index}"] < 200, crowd.waits
    assert crowd.longest_wait() < 1000, crowd.waits


def test_base_requests_never_wait_for_the_adapters_of_others() -> None:
    desk = Desk(Limits(turn_admissions=8), slots_max=SLOTS, pages=100)
    desk.checking = False
    crowd = Crowd(desk)
    for index in range(TENANTS):
        crowd.send(f"t{index}", desk.publish(f"a{index}", 300))
    crowd.send("base", None)
    crowd.play(3000)
    assert crowd.served["base"] >= max(crowd.served[f"t{index}"] for index in range(TENANTS))
