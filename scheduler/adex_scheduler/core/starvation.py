"""How long a request may wait at most, from the limits and from how slow the worker is.

A request is first when it is before all others that wait, in fair order. Whoever is first begins
within `first_wait_s`, for nothing can keep it longer than this, one after the other:

- Another that holds admissions back already. It holds them until it begins: for the remainder of
  those that run and for its own way.
- Its name's resolution: one place among those under way, then its own.
- Host memory and the device, if they are full of what others use or want. Having found no room for
  so many turns it holds admissions back itself, and the turns count once, for both. Those that run
  then come to their end within the remainder; nobody new begins, so whatever else is in its way is
  idle or wanted by those behind it, and is sent away.
- Its way: a place on each link, what is sent away, its own moves, and each of them anew as often as
  a failed move is tried.
- Places in the steps, or pages for its prompt: since nobody begins before it, the remainder again.

The remainder is the steps in which all that run end though nobody new begins. As long as a prompt
is not computed each step computes at least what the decodes leave of it, or where steps are paced
the least that prompts get then, but for one in so many that has none; when all are, the longest
output remains; each preemption, of which there is at most one for each that runs, costs the steps
in flight and one.

This holds while a worker is there, and while the disk has room for what is in use: over its budget
it takes no more until something there falls idle. What operators ask for stands in the same lines,
and counts among those ahead.

Who is not first waits for those who are. Each time, the first begins, or its tenant is charged and
another is before it. Within one tenant those are the requests that came before it. Every other
tenant is before it until it has been charged as much as this one's, and as far as it was behind.
"""

from dataclasses import dataclass
from math import ceil

from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.step_time import STEPS_BESIDE_MAX, prompt_tokens_min
from adex_scheduler.core.turns import HOLD_TURNS


@dataclass(frozen=True, slots=True)
class Slowest:
    """The longest from sending each to its answer, in seconds, and the longest without an event.

    What it waits for behind others that were sent before it counts.
    """

    step_s: float
    fetch_s: float
    stage_s: float
    page_in_s: float
    evict_s: float
    quiet_s: float


def remainder_s(
    info: WorkerInfo, limits: Limits, step_s: float, *, length_max: int, new_tokens_max: int
) -> float:
    """Until all that run have ended, if nobody new begins.

    `length_max`: tokens of one sequence, its prompt's included.
    """
    step_tokens = min(info.step_tokens_max, limits.step_tokens_max or info.step_tokens_max)
    running = min(info.step_sequences_max, limits.running_max or step_tokens, step_tokens)
    chunk = step_tokens - running + 1
    if limits.pacing is not None:
        chunk = min(chunk, prompt_tokens_min(step_tokens))
    prefill = ceil(running * length_max / chunk)
    if limits.pacing is not None:
        prefill += prefill // STEPS_BESIDE_MAX + 1
    flights = limits.plans_in_flight_max
    return (prefill + new_tokens_max + running * (flights + 1) + flights) * step_s


def first_wait_s(limits: Limits, slowest: Slowest, remainder: float) -> float:
    """Until the first in fair order begins, as long as it stays the first."""
    tries = 1 + limits.move_retries_max
    moves = slowest.stage_s + slowest.page_in_s + 2 * slowest.evict_s
    # A place on either link, then its own moves; each is begun at the event after the last.
    way = slowest.stage_s + slowest.page_in_s + tries * (moves + 4 * slowest.quiet_s)
    another = remainder + 2 * slowest.fetch_s + way
    blocked = HOLD_TURNS * limits.turn_s + slowest.quiet_s
    return another + 2 * slowest.fetch_s + blocked + way + 2 * remainder


def firsts_ahead(
    own: int, *, others: int = 0, charged: float = 0.0, lag: float = 0.0, least: float = 1.0
) -> int:
    """How often another may be first before a request is.

    `own`: requests of its tenant that came before it. `others`: tenants that have requests waiting
    meanwhile. `charged`: what its own tenant is charged meanwhile, later requests included; `lag`:
    how far another is behind it at most; `least`: what one charge is at least, over the weight.
    """
    return own + others * ceil((charged + lag) / least)


def longest_wait_s(limits: Limits, slowest: Slowest, first_s: float, ahead: int) -> float:
    """Until a request begins or is given up, `ahead` of whom others are first."""
    return min((ahead + 1) * first_s, limits.wait_s_max + slowest.quiet_s)
