"""The closed set of deeds the core can ask of its shell."""

from dataclasses import dataclass, field

from adex_proto.adapter import Tier
from adex_proto.errors import AdexError
from adex_proto.outcome import PromptScores, SampledTokens
from adex_proto.plan import AdapterCommand, StepPlan
from adex_proto.sampling import FinishReason


@dataclass(frozen=True, slots=True)
class SendPlan:
    """Send this step to the worker, after all those sent before."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Send:
    """Send this adapter command to the worker."""

    command: AdapterCommand


@dataclass(frozen=True, slots=True)
class Emit:
    """Hand one step's scores and tokens to their callers, then end the `finished` sequences.

    One instruction for the whole step: a value per sequence would cost more than the decision.
    """

    tokens: SampledTokens
    finished: tuple[tuple[int, FinishReason], ...]
    scores: tuple[PromptScores, ...] = ()


@dataclass(frozen=True, slots=True)
class Fail:
    """End the sequence with this error."""

    number: int
    error: AdexError


@dataclass(frozen=True, slots=True)
class Brought:
    """What an operator asked about an adapter has come as far as `tier`; `done` ends it.

    `digest` is the version meant, "" while none is known.
    """

    number: int
    digest: str
    tier: Tier
    done: bool


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The worker broke the contract: close its stream, which makes a WorkerGone."""

    reason: str


Instruction = SendPlan | Send | Emit | Fail | Brought | Disconnect


@dataclass(slots=True)
class Outbox:
    """Instructions in the making. Plans leave first: the worker must not wait for text."""

    plans: list[SendPlan] = field(default_factory=list[SendPlan])
    commands: list[Send] = field(default_factory=list[Send])
    answers: list[Emit | Fail | Brought | Disconnect] = field(
        default_factory=list[Emit | Fail | Brought | Disconnect]
    )

    def take(self) -> list[Instruction]:
        """All instructions since the last call."""
        taken: list[Instruction] = [*self.plans, *self.commands, *self.answers]
        self.plans.clear()
        self.commands.clear()
        self.answers.clear()
        return taken
