"""What the scheduler asks of a worker: steps, and moves of adapters between tiers.

A plan carries differences only. The worker keeps each sequence's tokens, block table and sampling
from the plan that first named it until the plan that lists it as finished.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.sampling import SamplingParams

# Every scored position has logits of its own, as wide as the vocabulary: a step has no more of
# these than it may well have sequences.
STEP_SCORED_MAX = 128


@dataclass(frozen=True, slots=True)
class NewSequence:
    """A sequence the worker meets for the first time, or again after preemption.

    `token_ids` are all tokens known so far; those from `output_start` on were generated before.
    `slot` is its adapter's slot (0: the base model).
    """

    sequence: int
    token_ids: tuple[int, ...]
    output_start: int
    slot: int
    sampling: SamplingParams


class Span(NamedTuple):
    """One sequence's share of a step: positions [start, start + count) are computed.

    `new_blocks` extend its block table. `samples` says that the last position yields a token, which
    the worker keeps as the sequence's next one, so that the next plan need not carry it.
    """

    sequence: int
    start: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody asks of a span
    samples: bool
    new_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Decodes:
    """Sequences that go on by one token: each computes its last token and samples the next.

    The worker knows where each of them stands. Those whose blocks are full are in `growing` too,
    and `new_blocks` has a page for each of these. So a sequence that the two sides place
    differently is found when it grows too early, or has no room, within one block's tokens.
    """

    sequences: tuple[int, ...] = ()
    growing: tuple[int, ...] = ()
    new_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step: forget `finished`, meet `arrived`, then compute the rest in one forward pass.

    No sequence has more than one part in it: a span, or a place among the `decodes`.
    """

    step: int
    arrived: tuple[NewSequence, ...]
    spans: tuple[Span, ...]
    finished: tuple[int, ...] = ()
    decodes: Decodes = Decodes()

    @property
    def sequences(self) -> tuple[int, ...]:
        """All that have a part in the step."""
        return (*[span.sequence for span in self.spans], *self.decodes.sequences)

    @property
    def tokens(self) -> int:
        """Positions that the step computes."""
        return sum([span.count for span in self.spans]) + len(self.decodes.sequences)


@dataclass(frozen=True, slots=True)
class Fetch:
    """Resolve `key`, check it, convert it, and keep its bundle on disk. Answer: Fetched.

    `credential` is what a name of a credentialed tenant is resolved with. Decisions never look at
    it: it joins the command where that is sent.
    """

    key: AdapterKey
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Stage:
    """Read a bundle from disk into host memory. Answer: Moved to HOST."""

    digest: str


@dataclass(frozen=True, slots=True)
class PageIn:
    """Copy a bundle from host memory to pages [first_page, first_page + pages) as `slot`.

    Answer: Moved to DEVICE. No step in flight uses these pages.
    """

    digest: str
    slot: int
    first_page: int
    pages: int


@dataclass(frozen=True, slots=True)
class Evict:
    """Forget a bundle's copy in `tier`; no step in flight uses it. Answer: Evicted."""

    digest: str
    tier: Tier


AdapterCommand = Fetch | Stage | PageIn | Evict
