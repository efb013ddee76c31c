"""The closed set of facts the core can be told."""

from dataclasses import dataclass

from adex_proto.adapter import AdapterKey
from adex_proto.outcome import AdapterEvent, Hello, StepOutcome
from adex_proto.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Arrived:
    """A sequence asks to be generated; `number` is larger than every one before it.

    `key` None is the base model.
    """

    number: int
    tenant: str
    key: AdapterKey | None
    token_ids: tuple[int, ...]
    sampling: SamplingParams


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
    """The stream to the worker broke; nothing in flight will be answered."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed: deadlines are looked at."""


@dataclass(frozen=True, slots=True)
class Drained:
    """Take nothing new; finish what there is."""


Event = (
    Arrived
    | Cancelled
    | StopFound
    | StepOutcome
    | AdapterEvent
    | WorkerReady
    | WorkerGone
    | Ticked
    | Drained
)
