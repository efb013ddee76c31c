"""Sequence: one generation's tokens, blocks and lifecycle as a transition table."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Self

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.prefixes import Prefix


class Stage(Enum):
    """Where a sequence is in its life.

    WAITING_ADAPTER: its adapter is not on the device. WAITING: nothing but room keeps it from
    running. RUNNING: has blocks and a part in the steps. PREEMPTED: gave its place up, and waits
    for the steps that still touch its blocks. ENDING: answered, and waits likewise. ENDED: gone.
    """

    WAITING_ADAPTER = "waiting_adapter"
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    ENDING = "ending"
    ENDED = "ended"

    # Each is one object, and looked up at every turn.
    __hash__ = object.__hash__


TRANSITIONS: dict[Stage, frozenset[Stage]] = {
    Stage.WAITING_ADAPTER: frozenset({Stage.WAITING, Stage.ENDED}),
    Stage.WAITING: frozenset({Stage.RUNNING, Stage.WAITING_ADAPTER, Stage.ENDED}),
    # Only the loss of the worker takes a sequence from RUNNING straight back to waiting, or out.
    Stage.RUNNING: frozenset({Stage.PREEMPTED, Stage.ENDING, Stage.WAITING_ADAPTER, Stage.ENDED}),
    Stage.PREEMPTED: frozenset({Stage.WAITING, Stage.WAITING_ADAPTER, Stage.ENDING, Stage.ENDED}),
    Stage.ENDING: frozenset({Stage.ENDED}),
    Stage.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Tenant:
    """One payer: how much service it has had, and how many of its sequences live and wait."""

    name: str
    order: int
    served: float = 0.0
    """What it has been charged, over its weight."""
    live: int = 0
    waiting: int = 0
    weight: float = 1.0
    """Its share beside others: one of weight 2 gets twice as much as one of weight 1."""

    def charge(self, tokens: float) -> None:
        """Count what it was given, in prompt tokens; see `fairness` for what counts how much."""
        self.served += tokens / self.weight


@dataclass(slots=True)
class Errand:
    """What a sequence without tokens is for: to bring its adapter as near as `tier`, and no more.

    It waits in the same lines as requests do, by the same fairness, and ends when the adapter has
    come. `keeps`: a pin, which holds the adapter there. `anew`: the name is resolved once more,
    whatever it means already.
    """

    tier: Tier
    keeps: bool = False
    anew: bool = False
    asked: bool = False
    """The resolution it waits for has begun."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The tokens of one generation and how far the worker has come with them.

    Positions [0, computed) are in the KV cache for certain; [0, planned) once the steps in flight
    have retired. While it decodes, `Decoding` counts what is planned, and `computed` follows when
    it leaves the steps. `blocks` are pages in order, of which the first `offered` are shared: those
    of the prefix at whose end it stands.
    """

    number: int
    payer: Tenant
    key: AdapterKey | None
    sampling: SamplingParams
    prompt: tuple[int, ...]
    arrived_at: float
    ends: frozenset[int]
    """Tokens that end the sequence."""
    tokens: list[int]
    length_max: int
    """Tokens at which it ends, its prompt's included."""
    stage: Stage = Stage.WAITING_ADAPTER
    digest: str = ""
    slot: int = 0
    planned: int = 0
    lead: int = 0
    """Where it is among those that decode; see `Decoding`."""
    computed: int = 0
    promised: int = 0
    """Blocks that admission counted on for the tokens known, and that are not taken yet."""
    blocks: list[int] = field(default_factory=list[int])
    offered: int = 0
    stand: Prefix | None = None
    known_first: int = 0
    """Tokens known when it began to run: once these are computed, so is all but the last known."""
    on_worker: bool = False
    """The worker knows this sequence: some plan named it and none has listed it as finished."""
    began: bool = False
    errand: Errand | None = None
    """None: a request for tokens."""
    begin_by: float | None = None
    """When it must have begun for its first token to come by its deadline, if it has one."""
    give_up_at: float = 0.0
    """When it has waited too long, if it has not begun by then."""
    blocked_at: float | None = None
    blocked_after: int = 0
    """When its adapter first found no room: the time, and the admissions before."""
    preemptions: int = 0
    output_charge: float = 0.0
    """What each token planned for it adds to its payer's `served`; set when it begins."""
    owed: float = 0.0
    brought: Tier = Tier.ABSENT
    """What the loads it caused cost, charged when it begins or ends, and how near they came."""

    @classmethod
    def of_tokens(
        cls,
        number: int,
        payer: Tenant,
        key: AdapterKey | None,
        prompt: tuple[int, ...],
        sampling: SamplingParams,
        *,
        eos: frozenset[int],
        now: float,
    ) -> Self:
        """A request's sequence, as it arrives."""
        # Most share one set, which every step looks at for all of them.
        own = frozenset(sampling.stop_token_ids)
        ends = own if sampling.ignore_eos else eos | own if own else eos
        return cls(
            number=number,
            payer=payer,
            key=key,
            sampling=sampling,
            prompt=prompt,
            arrived_at=now,
            ends=ends,
            tokens=list(prompt),
            length_max=len(prompt) + sampling.max_new_tokens,
        )

    @property
    def tenant(self) -> str:
        return self.payer.name

    @property
    def is_scored(self) -> bool:
        """Whether its prompt's tokens are to be scored."""
        return self.sampling.prompt_logprobs is not None

    @property
    def outputs(self) -> int:
        """Tokens generated and known."""
        return len(self.tokens) - len(self.prompt)

    @property
    def positions_max(self) -> int:
        """Positions it computes at most: the last token's own is never needed."""
        return self.length_max - 1

    def move(self, to: Stage) -> None:
        """Go on to another stage; only what TRANSITIONS allows."""
        assert to in TRANSITIONS[self.stage], f"{self.number}: {self.stage} -> {to}"
        self.stage = to

    def reason_to_end(self, eos: frozenset[int]) -> FinishReason:
        """Why the last known token ends the sequence.

        An end token at the last allowed position counts as the end token, not as the length.
        """
        last = self.tokens[-1]
        if last in self.ends:
            is_eos = last in eos and not self.sampling.ignore_eos
            return FinishReason.EOS if is_eos else FinishReason.STOP
        assert len(self.tokens) == self.length_max, f"{self.number} has not come to its end"
        return FinishReason.LENGTH

    def start_over(self) -> None:
        """The worker that knew the sequence is gone: it waits as if it had just arrived."""
        self.forget_blocks()
        self.rewind()
        self.digest = ""
        self.began = False
        if self.errand is not None:
            self.errand.asked = False

    def rewind(self) -> None:
        """Forget what the worker computed: all known tokens are to be computed again."""
        assert not self.blocks
        self.planned = self.computed = self.promised = 0
        self.blocked_at = None
        self.slot = 0
        self.on_worker = False

    def forget_blocks(self) -> None:
        """It has none any more."""
        self.blocks.clear()
        self.offered = 0
        self.stand = None
