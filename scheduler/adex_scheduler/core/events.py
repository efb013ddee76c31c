"""The closed set of facts the core can be told."""

from dataclasses import dataclass
from enum import Enum

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import AdapterEvent, Hello, StepOutcome
from adex_proto.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Arrived:
    """A sequence asks to be generated; `number` is larger than every one before it.

    `key` None is the base model. `deadline_s`: how long its first token may take; where that cannot
    be met, the sequence fails at once or as soon as this is known, instead of being served late.
    """

    number: int
    tenant: str
    key: AdapterKey | None
    token_ids: tuple[int, ...]
    sampling: SamplingParams
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody wants this sequence any more. Ended and unknown ones are fine."""

    number: int


@dataclass(frozen=True, slots=True)
class StopFound:
    """The shell found a stop string in the sequence's text; later tokens are not wanted."""

    number: int


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker has opened its stream: no sequence, slot or device copy survives from before."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class WorkerGone:
    """The stream to the worker broke; nothing in flight will be answered.

    `reason` is for those who read a recorded history; no caller is told.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: deadlines are looked at."""


@dataclass(frozen=True, slots=True)
class MovesDue:
    """Every fact at hand is told: adapters may move. Steps are planned without waiting for this."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Take nothing new; finish what there is."""


# What an operator asks about an adapter. Each is answered once, by Brought or Fail under its
# number, which comes from the same series as the numbers of sequences; Cancelled says that nobody
# waits for the answer any more.


@dataclass(frozen=True, slots=True)
class Preload:
    """Bring the adapter as near as `tier`, as a request for it would.

    `hint`: only while nothing else is wanted on the way; answered at once.
    """

    number: int
    tenant: str
    key: AdapterKey
    tier: Tier
    hint: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Bring the adapter to HOST or DEVICE and keep whatever the name means there until Unpin."""

    number: int
    tenant: str
    key: AdapterKey
    tier: Tier


@dataclass(frozen=True, slots=True)
class Unpin:
    """Keep the adapter nowhere any more. A name that is not pinned is fine."""

    number: int
    key: AdapterKey


@dataclass(frozen=True, slots=True)
class Reload:
    """Resolve the name again now, whatever is known of it, failures included.

    Sequences that are bound to a version finish with it.
    """

    number: int
    tenant: str
    key: AdapterKey


@dataclass(frozen=True, slots=True)
class Unload:
    """Forget the name, and send its version away: from the device once those who use it have
    ended, from host memory, and with `disk` from the disk. Bytes that other names mean stay.
    """

    number: int
    key: AdapterKey
    disk: bool = False


class Action(Enum):
    """What can be done with an adapter, as callers name it; PREFETCH is a Preload that hints."""

    PRELOAD = "preload"
    PREFETCH = "prefetch"
    PIN = "pin"
    UNPIN = "unpin"
    RELOAD = "reload"
    UNLOAD = "unload"


Control = Preload | Pin | Unpin | Reload | Unload

Fact = (
    Arrived
    | Control
    | Cancelled
    | StopFound
    | StepOutcome
    | AdapterEvent
    | WorkerReady
    | WorkerGone
    | Ticked
    | Drained
)

Event = Fact | MovesDue
