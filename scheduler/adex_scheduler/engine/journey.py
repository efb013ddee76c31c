"""What happened to one sequence and when: for those who measure, never for decisions.

Seconds are of the engine's clock; 0.0 stands for what has not happened.
"""

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import AdapterEvent, Evicted, Fetched, FetchFailed, Moved, MoveFailed
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage

# Ended moves remembered of each kind: more than there are sequences that may have waited for one.
RECENT_MAX = 4096


class Start(Enum):
    """Where a sequence's adapter was when it arrived.

    REMOTE: its name had to be resolved at its source first, whatever is kept here.
    """

    BASE = "base"
    DEVICE = "device"
    HOST = "host"
    DISK = "disk"
    REMOTE = "remote"


START_OF_TIER = {
    Tier.DEVICE: Start.DEVICE,
    Tier.HOST: Start.HOST,
    Tier.DISK: Start.DISK,
    Tier.ABSENT: Start.REMOTE,
}


class MoveKind(Enum):
    """One link: source to disk, disk to host memory, host memory to the device."""

    FETCH = "fetch"
    STAGE = "stage"
    PAGE_IN = "page_in"


@dataclass(frozen=True, slots=True)
class Move:
    """One move of an adapter, from its command to the worker's answer.

    `source` is a fetch's; `error` the stable code of what kept the adapter from arriving.
    """

    kind: MoveKind
    began_s: float
    ended_s: float
    source: str = ""
    error: str = ""


@dataclass(slots=True)
class Journey:
    """One sequence, from its submission to its end.

    `admitted_s` is when a step first planned for it; `admissions` counts how often one did, which
    is more than once after a preemption. `cached_tokens` of the prompt were known from before.
    `end` is a finish reason, an error's code or "cancelled".
    """

    submitted_s: float = 0.0
    start: Start = Start.BASE
    digest: str = ""
    moves: tuple[Move, ...] = ()
    admitted_s: float = 0.0
    admissions: int = 0
    first_s: float = 0.0
    ended_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated: int = 0
    end: str = ""

    @property
    def queue_s(self) -> float:
        """How long it waited for its adapter and for room before its first step."""
        return max(self.admitted_s - self.submitted_s, 0.0)

    @property
    def adapter_wait_s(self) -> float:
        """How long its adapter was on its way; 0 where it was there."""
        arrived = max((move.ended_s for move in self.moves), default=self.submitted_s)
        return max(arrived - self.submitted_s, 0.0)


class Moves:
    """The moves under way, and the latest that ended of each adapter: bounded, so old ones go."""

    def __init__(self, recent_max: int = RECENT_MAX) -> None:
        self._recent_max = recent_max
        self._begun: dict[tuple[MoveKind, AdapterKey | str], float] = {}
        self._recent: dict[MoveKind, OrderedDict[AdapterKey | str, Move]] = {
            kind: OrderedDict() for kind in MoveKind
        }

    def sent(self, command: AdapterCommand, now_s: float) -> None:
        """A command went to the worker."""
        match command:
            case Fetch():
                self._begun[MoveKind.FETCH, command.key] = now_s
            case Stage():
                self._begun[MoveKind.STAGE, command.digest] = now_s
            case PageIn():
                self._begun[MoveKind.PAGE_IN, command.digest] = now_s
            case Evict():
                pass

    def answered(self, event: AdapterEvent, now_s: float) -> Move | None:
        """The move that the worker's answer ends; None for an answer to none."""
        match event:
            case Fetched():
                return self._end(MoveKind.FETCH, event.key, now_s, event.key.source)
            case FetchFailed():
                return self._end(
                    MoveKind.FETCH, event.key, now_s, event.key.source, event.error.code
                )
            case Moved():
                return self._end(_kind_to(event.tier), event.digest, now_s)
            case MoveFailed():
                return self._end(_kind_to(event.tier), event.digest, now_s, "", event.error.code)
            case Evicted():
                return None

    def lost(self) -> None:
        """The worker is gone: nothing under way will be answered."""
        self._begun.clear()

    def of(self, key: AdapterKey, digest: str, journey: Journey) -> tuple[Move, ...]:
        """The moves that the sequence of this journey waited for, in order.

        A name that meant something when it arrived may be resolved again beside it: such a fetch
        is not waited for.
        """
        named: list[tuple[MoveKind, AdapterKey | str]] = [
            (MoveKind.STAGE, digest),
            (MoveKind.PAGE_IN, digest),
        ]
        if journey.start is Start.REMOTE:
            named.insert(0, (MoveKind.FETCH, key))
        moves = [self._recent[kind].get(name) for kind, name in named]
        return tuple([m for m in moves if m is not None and m.ended_s >= journey.submitted_s])

    def _end(
        self,
        kind: MoveKind | None,
        name: AdapterKey | str,
        now_s: float,
        source: str = "",
        error: str = "",
    ) -> Move | None:
        began_s = None if kind is None else self._begun.pop((kind, name), None)
        if kind is None or began_s is None:
            return None
        move = Move(kind, began_s, now_s, source, error)
        recent = self._recent[kind]
        recent[name] = move
        recent.move_to_end(name)
        if len(recent) > self._recent_max:
            recent.popitem(last=False)
        return move


def _kind_to(tier: Tier) -> MoveKind | None:
    return {Tier.HOST: MoveKind.STAGE, Tier.DEVICE: MoveKind.PAGE_IN}.get(tier)
