"""What has happened lately, for those who watch: a bounded log, and rates by the second.

It is written as the engine hears of things: a few additions for each step, a line for each move of
an adapter. Names of a tenant's own never enter it.
"""

from collections import deque
from dataclasses import dataclass, replace
from enum import Enum

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import AdexError
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Moved,
    MoveFailed,
    StepOutcome,
)
from adex_proto.plan import StepPlan
from adex_scheduler.core.picture import public_name
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.engine.journey import Move

ENTRIES_MAX = 256
SECONDS_MAX = 120
_REASON_CHARACTERS_MAX = 300


class Happening(Enum):
    """What a line of the log is about."""

    FETCHED = "fetched"
    STAGED = "staged"
    PAGED_IN = "paged_in"
    EVICTED = "evicted"
    LOAD_FAILED = "load_failed"
    REQUEST_FAILED = "request_failed"
    WORKER_LOST = "worker_lost"
    WORKER_BACK = "worker_back"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. `number` grows with every change of the log, so that a reader knows what is new.

    `key` is a name that was asked for without a credential, or None. Without a `digest` it has
    meant nothing yet, and may be a private one all the same. `tier` is where an adapter came to, or
    left; `code` and `reason` say why something failed; `seconds` is how long a move took, 0 where
    that is not known; `times` how often the same happened in a row.
    """

    number: int
    at: float
    what: Happening
    key: AdapterKey | None = None
    digest: str = ""
    tier: Tier = Tier.ABSENT
    code: str = ""
    reason: str = ""
    seconds: float = 0.0
    times: int = 1


@dataclass(slots=True)
class Second:
    """What one second of the engine's clock saw; `first_s` sums the times to first tokens."""

    at: int
    tokens: int = 0
    steps: int = 0
    step_s: float = 0.0
    arrived: int = 0
    firsts: int = 0
    first_s: float = 0.0
    refused: int = 0


class Journal:
    """The log and the rates. Every call costs about the same, whatever there is."""

    def __init__(self) -> None:
        self.plan: StepPlan | None = None
        """The latest step sent."""
        self._entries: deque[Entry] = deque(maxlen=ENTRIES_MAX)
        self._seconds: deque[Second] = deque(maxlen=SECONDS_MAX)
        self._number = 0

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The log, the oldest line first."""
        return tuple(self._entries)

    @property
    def seconds(self) -> tuple[Second, ...]:
        """The seconds in which something happened, the oldest first."""
        return tuple([replace(second) for second in self._seconds])

    def arrived(self, now: float) -> None:
        """A request came."""
        self._second(now).arrived += 1

    def first_token(self, waited_s: float, now: float) -> None:
        """A request got its first token."""
        second = self._second(now)
        second.firsts += 1
        second.first_s += waited_s

    def failed(self, key: AdapterKey | None, digest: str, code: str, now: float) -> None:
        """A request for `key` ended with an error, before or after its first token.

        `digest` is the version it was bound to, "" for none.
        """
        self._second(now).refused += 1
        shown = None if key is None or key.tenant else key
        self._add(Entry(0, now, Happening.REQUEST_FAILED, shown, digest, code=code))

    def stepped(self, outcome: StepOutcome, now: float) -> None:
        """The worker answered a step."""
        second = self._second(now)
        second.tokens += len(outcome.tokens)
        second.steps += 1
        second.step_s += outcome.seconds

    def answered(
        self, event: AdapterEvent, move: Move | None, core: SchedulerCore, now: float
    ) -> None:
        """The worker answered a command, which ends `move`; the core is about to hear of it."""
        seconds = 0.0 if move is None else move.ended_s - move.began_s
        match event:
            case Fetched():
                known = event.version.digest in core.tiers.adapters
                # A name that is looked up again, and still means the same, is no news.
                if not event.key.tenant and not known:
                    what, digest = Happening.FETCHED, event.version.digest
                    self._add(Entry(0, now, what, event.key, digest, Tier.DISK, seconds=seconds))
            case FetchFailed():
                key = None if event.key.tenant else event.key
                alias = core.residency.names.get(event.key)
                digest = (alias.digest if alias else None) or ""
                self._add_failure(key, digest, Tier.DISK, event.error, seconds, now)
            case Moved():
                what = Happening.STAGED if event.tier is Tier.HOST else Happening.PAGED_IN
                key = _name_of(core, event.digest)
                self._add(Entry(0, now, what, key, event.digest, event.tier, seconds=seconds))
            case MoveFailed():
                key = _name_of(core, event.digest)
                self._add_failure(key, event.digest, event.tier, event.error, seconds, now)
            case Evicted():
                key = _name_of(core, event.digest)
                self._add(Entry(0, now, Happening.EVICTED, key, event.digest, event.tier))

    def lost(self, reason: str, now: float) -> None:
        """The worker is gone."""
        self.plan = None
        short = reason[:_REASON_CHARACTERS_MAX]
        self._add(Entry(0, now, Happening.WORKER_LOST, reason=short))

    def connected(self, now: float) -> None:
        """A worker has come, or come back."""
        self._add(Entry(0, now, Happening.WORKER_BACK))

    def draining(self, now: float) -> None:
        """Nothing new is taken any more."""
        self._add(Entry(0, now, Happening.DRAINING))

    def _add_failure(
        self,
        key: AdapterKey | None,
        digest: str,
        tier: Tier,
        error: AdexError,
        seconds: float,
        now: float,
    ) -> None:
        # What a source says of a private name may hold that name.
        reason = "" if key is None else error.message[:_REASON_CHARACTERS_MAX]
        what = Happening.LOAD_FAILED
        self._add(Entry(0, now, what, key, digest, tier, error.code, reason, seconds))

    def _add(self, entry: Entry) -> None:
        """Add a line, or count it with the one before: a storm of refusals is one line."""
        self._number += 1
        last = self._entries[-1] if self._entries else None
        if last is not None and _same(last, entry):
            self._entries.pop()
            entry = replace(entry, times=last.times + 1)
        self._entries.append(replace(entry, number=self._number))

    def _second(self, now: float) -> Second:
        at = int(now)
        if not self._seconds or self._seconds[-1].at != at:
            self._seconds.append(Second(at))
        return self._seconds[-1]


def _same(one: Entry, other: Entry) -> bool:
    return (one.what, one.key, one.digest, one.tier, one.code) == (
        other.what,
        other.key,
        other.digest,
        other.tier,
        other.code,
    )


def _name_of(core: SchedulerCore, digest: str) -> AdapterKey | None:
    adapter = core.tiers.adapters.get(digest)
    return public_name(adapter) if adapter else None
