"""The bounds the core states, beside what a simulated run came to: waits, and tenants' service."""

from bisect import bisect_right, insort
from collections.abc import Iterable
from itertools import combinations
from typing import Any

from adex_scheduler.core.fairness import charge_max, lag_max
from adex_scheduler.core.starvation import Slowest, first_wait_s, longest_wait_s, remainder_s
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.simulate.loop import TICK_S
from adex_scheduler.simulate.machine import Machine
from adex_scheduler.simulate.result import RunResult
from adex_scheduler.simulate.systems import SIMULATED_LIMITS
from adex_scheduler.simulate.trace import ranks_of
from adex_scheduler.simulate.worker import ModelledWorker


def waits(result: RunResult, machine: Machine) -> dict[str, Any]:
    """Of one tenant's open loop: the longest wait for a first token, the bound of that request, and
    how many waited longer than theirs.

    Whoever came before and still waited is counted as first before it; preempted sequences, which
    would only widen the bound, are not.
    """
    requests = [one.request for one in result.records]
    info = ModelledWorker(machine, ranks_of(requests)).info()
    took = result.times.longest_s
    fetch_s = max(took.get("fetch", 0.0), took.get("resolve", 0.0))
    stage_s, page_in_s = took.get("stage", 0.0), took.get("page_in", 0.0)
    slowest = Slowest(took["step"], fetch_s, stage_s, page_in_s, 0.0, TICK_S)
    remainder = remainder_s(
        info,
        SIMULATED_LIMITS,
        slowest.step_s,
        length_max=max(one.prompt_tokens + one.output_tokens for one in requests),
        new_tokens_max=max(one.output_tokens for one in requests),
    )
    first_s = first_wait_s(SIMULATED_LIMITS, slowest, remainder)
    begun: list[float] = []
    longest, above = (0.0, 0.0), 0
    for one in result.records:
        ahead = len(begun) - bisect_right(begun, one.arrived_at)
        first_at = result.ended_at if one.first_at is None else one.first_at
        wait = first_at - one.arrived_at
        bound = longest_wait_s(SIMULATED_LIMITS, slowest, first_s, ahead)
        above += wait > bound
        longest = max(longest, (wait, bound))
        insort(begun, first_at)
    return {"wait_s": longest[0], "bound_s": longest[1], "waits_above": above}


class Lag:
    """How far two tenants' charges come apart while both always have some waiting.

    Looks at the core at each tick; what happens between two ticks is not seen.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.worst = 0.0
        self._names = sorted(names)
        self._between: dict[tuple[str, str], tuple[float, float]] = {}

    def look(self, core: SchedulerCore) -> None:
        """Take the present into account."""
        tenants = core.tenants
        waiting = [name for name in self._names if tenants.waiting_of(name)]
        between: dict[tuple[str, str], tuple[float, float]] = {}
        for pair in combinations(waiting, 2):
            gap = tenants[pair[0]].served - tenants[pair[1]].served
            low, high = self._between.get(pair, (gap, gap))
            between[pair] = low, high = min(gap, low), max(gap, high)
            self.worst = max(self.worst, high - low)
        self._between = between

    def figures(self, result: RunResult, machine: Machine) -> dict[str, float]:
        """The worst, and the bound for the largest of the run's requests, in prompt tokens."""
        requests = [one.request for one in result.records]
        token_bytes = machine.model.kv_token_bytes
        positions = max(machine.adapter_bytes(one.rank) for one in requests) / token_bytes
        prompt = max(one.prompt_tokens for one in requests)
        new = max(one.output_tokens for one in requests)
        largest = charge_max(prompt, new, int(positions) + machine.model.block_tokens)
        at_once = machine.limits.sequences_max
        return {"charged_apart": self.worst, "charged_bound": lag_max(largest, at_once)}
