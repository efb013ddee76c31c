"""What one step computes: every running decode, then prefill chunks, then new admissions.

A sequence's part is planned from counts alone, so a step can be planned before the outcome of the
one before it is known. Blocks are taken as positions are planned. When they run out, idle prefixes
go first, then idle adapters, then the newest running sequences, which are computed again later; the
oldest running sequence is never preempted, so it always comes to its end.
"""

from collections import Counter, deque
from dataclasses import dataclass, field

from adex_proto.outcome import WorkerInfo
from adex_proto.plan import STEP_SCORED_MAX, Decodes, NewSequence, Span, StepPlan
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.decoding import Decoding
from adex_scheduler.core.fairness import PROMPT_TOKEN_WEIGHT, Tenants, output_charge
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.paging import Paging
from adex_scheduler.core.prefixes import NO_MATCH
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.sequence import Sequence, Stage
from adex_scheduler.core.step_time import STEPS_BESIDE_MAX, StepTime, prompt_tokens_min
from adex_scheduler.core.tiers import Tiers
from adex_scheduler.core.turns import Turns

# A prefix lookup costs as much as the prompt is long, so the head of the queue gets one only in
# every so many looks; a prefix that is computed meanwhile is found a little later.
LOOKS_PER_MATCH = 32


@dataclass(slots=True)
class Flight:
    """A plan that was sent and not answered.

    It computes so many `decodes` and `prompt_tokens`. It owes one token to each sequence in `owed`,
    who adds it to the list in `gaining`, in the same order, and these are the last ones of those in
    `last`. `computed` has those who read their prompts, with the positions computed then;
    `finished` are let go when it retires.
    """

    step: int
    decodes: int = 0
    prompt_tokens: int = 0
    owed: tuple[int, ...] = ()
    gaining: list[list[int]] = field(default_factory=list[list[int]])
    last: list[Sequence] = field(default_factory=list[Sequence])
    computed: list[tuple[Sequence, int]] = field(default_factory=list[tuple[Sequence, int]])
    finished: list[Sequence] = field(default_factory=list[Sequence])


@dataclass(slots=True)
class Draft:
    """A plan in the making."""

    flight: Flight
    tokens_left: int = 0
    """Prompt tokens it has room for."""
    scored_left: int = STEP_SCORED_MAX
    arrived: list[NewSequence] = field(default_factory=list[NewSequence])
    spans: list[Span] = field(default_factory=list[Span])
    decodes: Decodes = field(default_factory=Decodes)
    pages_short: int = 0


class Batch:
    """The running sequences of one worker and the steps in flight."""

    def __init__(
        self,
        info: WorkerInfo,
        limits: Limits,
        *,
        blocks: Blocks,
        tiers: Tiers,
        residency: Residency,
        paging: Paging,
        turns: Turns,
        tenants: Tenants,
        step_time: StepTime,
        first_step: int,
    ) -> None:
        self.step_tokens_max = min(info.step_tokens_max, limits.step_tokens_max or 2**31)
        self.running_max = min(
            info.step_sequences_max, limits.running_max or 2**31, self.step_tokens_max
        )
        self._prompt_tokens_min = prompt_tokens_min(self.step_tokens_max)
        self._watermark = int(info.pages * limits.watermark_fraction)
        self._limits = limits
        self._blocks = blocks
        self._tiers = tiers
        self._residency = residency
        self._paging = paging
        self._turns = turns
        self._tenants = tenants
        self._step_time = step_time
        self.sequences: dict[int, Sequence] = {}
        self.prefilling: dict[int, Sequence] = {}
        self.decoding = Decoding(info.block_tokens)
        self.resting: dict[int, Sequence] = {}
        # The tokens that end any sequence a step may have, and how many of them each ends.
        self.ends: Counter[int] = Counter()
        self.leaving: list[Sequence] = []
        self.flights: deque[Flight] = deque()
        self.next_step = first_step
        self.promised = 0
        self.preemptions = 0
        self._short = 0
        # Steps planned in a row that had prompts beside decodes.
        self._steps_beside = 0
        # The sequence that waits for pages at the head of the queue, the pages it wants, how many
        # of them are kept for it, and how often it was looked at.
        self._head = -1
        self._head_pages = 0
        self._awaited = 0
        self._looks = 0

    @property
    def running(self) -> int:
        """Sequences that have a part in the steps."""
        return len(self.sequences)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of those who have begun that are yet to be planned before their next one."""
        return sum(len(s.tokens) - s.planned for s in self.prefilling.values())

    @property
    def keep_pages(self) -> int:
        """Pages that page-ins must leave: promised, short of, awaited, and kept for growth."""
        watermark = self._watermark if self.running else 0
        return self.promised + self._short + self._awaited + watermark

    @property
    def prompts(self) -> int:
        """Sequences that have yet to come to their next token, or could begin."""
        return len(self.prefilling) + min(len(self._tiers.ready), self.running_max - self.running)

    def prompt_room(self, decodes: int, prompts: int, *, in_strides: bool = True) -> int:
        """Prompt tokens that a step may have beside so many decodes, where so many have some."""
        room, pacing = self.step_tokens_max - decodes, self._limits.pacing
        if pacing is None or not decodes:
            return room
        in_time = self._step_time.prompt_room(decodes, prompts, pacing, in_strides=in_strides)
        return min(room, max(in_time, self._prompt_tokens_min))

    def form(self, now: float) -> StepPlan | None:
        """Plan the next step and count it as in flight; None where there is nothing to do."""
        draft = Draft(Flight(self.next_step))
        self._decode(draft)
        decodes = draft.decodes
        room = draft.tokens_left = self._room(len(decodes.sequences))
        if self.prefilling:
            self._prefill(draft)
        if draft.pages_short:
            self._make_pages(draft, now)
        else:
            self._admit(draft, now)
        flight = draft.flight
        self._short = draft.pages_short
        flight.finished, self.leaving = self._split_leaving(draft)
        if not draft.spans and not decodes.sequences and not flight.finished:
            return None
        for sequence in flight.finished:
            sequence.on_worker = False
        flight.decodes, flight.prompt_tokens = len(decodes.sequences), room - draft.tokens_left
        if flight.decodes:
            self._steps_beside = self._steps_beside + 1 if flight.prompt_tokens else 0
        sampled = [span.sequence for span in draft.spans if span.samples]
        flight.owed = (*decodes.sequences, *sampled)
        self.next_step += 1
        self.flights.append(flight)
        finished = tuple([sequence.number for sequence in flight.finished])
        return StepPlan(flight.step, tuple(draft.arrived), tuple(draft.spans), finished, decodes)

    def ended_in_flight(self) -> set[int]:
        """Sequences that nobody wants more tokens of, and that steps in flight may owe some."""
        ending = Stage.ENDING
        return {s.number for s in self._on_their_way() if s.stage is ending}

    def leave(self, sequence: Sequence) -> None:
        """A running sequence has no part in later steps; the next plan lists it as finished."""
        del self.sequences[sequence.number]
        self.prefilling.pop(sequence.number, None)
        self.resting.pop(sequence.number, None)
        self.decoding.leave(sequence)
        if sequence.computed >= sequence.known_first:
            sequence.computed = len(sequence.tokens) - 1
        self.promised -= sequence.promised
        sequence.promised = 0
        self.leaving.append(sequence)

    def release(self, sequence: Sequence) -> None:
        """No step in flight knows the sequence any more."""
        for token_id in sequence.ends:
            self.ends[token_id] -= 1
            if not self.ends[token_id]:
                del self.ends[token_id]

    # Parts of a plan.

    def _room(self, decodes: int) -> int:
        """Prompt tokens the step may have: none now and then, to see what decodes take alone."""
        prompts, is_due = self.prompts, self._steps_beside >= STEPS_BESIDE_MAX
        goes_alone = is_due and decodes and self._limits.pacing is not None
        return self.prompt_room(decodes, prompts) if prompts and not goes_alone else 0

    def _decode(self, draft: Draft) -> None:
        """One token for every sequence whose known tokens are all planned."""
        decoding, flight = self.decoding, draft.flight
        for sequence in self.resting.values():
            decoding.join(sequence)
        self.resting.clear()
        if not decoding:
            return
        growing = decoding.full
        pages: list[int] = []
        if growing:
            growing, pages = self._grow(draft, growing)
        numbers = decoding.numbers
        grown = tuple([sequence.number for sequence in growing])
        draft.decodes = Decodes(numbers, grown, tuple(pages))
        flight.gaining = decoding.tokens
        flight.last = decoding.advance()

    def _grow(self, draft: Draft, growing: list[Sequence]) -> tuple[list[Sequence], list[int]]:
        """A page for each whose blocks are full. Returns: who got one, and which."""
        available = self._blocks.available
        if len(growing) > available:
            # The oldest go on; the others miss this step.
            growing.sort(key=lambda sequence: sequence.number)
            draft.pages_short += len(growing) - available
            for sequence in growing[available:]:
                self.decoding.leave(sequence)
                self.resting[sequence.number] = sequence
            del growing[available:]
        pages = self._blocks.take(len(growing))
        assert pages is not None
        for sequence, page in zip(growing, pages, strict=True):
            sequence.blocks.append(page)
        return growing, pages

    def _prefill(self, draft: Draft) -> None:
        """The next chunk of every prompt under way, in the order of their admission."""
        for sequence in list(self.prefilling.values()):
            if draft.tokens_left == 0:
                return
            self._plan_chunk(draft, sequence, ())

    def _plan_chunk(self, draft: Draft, sequence: Sequence, adopted: tuple[int, ...]) -> None:
        """As many of the sequence's known tokens as the step and the pages have room for."""
        start = sequence.planned
        known = len(sequence.tokens)
        count = min(known - start, draft.tokens_left)
        if sequence.is_scored:
            count = min(count, draft.scored_left)
            if not count:
                return
            draft.scored_left -= count
        wanted = self._blocks.blocks_for(start + count) - len(sequence.blocks)
        granted = min(wanted, self._blocks.available)
        if granted < wanted:
            draft.pages_short += wanted - granted
            room = (len(sequence.blocks) + granted) * self._blocks.block_tokens
            count = min(count, room - start)
            if count <= 0:
                return
        pages = self._blocks.take(granted)
        assert pages is not None
        sequence.blocks.extend(pages)
        self.promised -= min(granted, sequence.promised)
        sequence.promised = max(sequence.promised - granted, 0)
        samples = start + count == known
        new_blocks = (*adopted, *pages)
        draft.spans.append(Span(sequence.number, start, count, samples, new_blocks))
        draft.tokens_left -= count
        sequence.planned = start + count
        draft.flight.computed.append((sequence, start + count))
        if samples:
            draft.flight.gaining.append(sequence.tokens)
            sequence.payer.served += sequence.output_charge
            del self.prefilling[sequence.number]
            if sequence.planned < sequence.positions_max:
                self.decoding.join(sequence)
            else:
                draft.flight.last.append(sequence)

    def _admit(self, draft: Draft, now: float) -> None:
        """Let ready sequences begin, in fair order, until the step or the device is full."""
        ready = self._tiers.ready
        # In a step that has no room for anybody, what is kept for the head stays kept.
        self._awaited = self._awaited if ready and not draft.tokens_left else 0
        while draft.tokens_left and self.running < self.running_max and ready:
            held_for = self._turns.held_for
            sequence = ready.first() if held_for is None else held_for
            if sequence is None or sequence not in ready:
                return
            looked_up = sequence.number == self._head and self._looks % LOOKS_PER_MATCH
            if looked_up and self._falls_short(sequence, self._head_pages, now):
                return
            if sequence.is_scored and not draft.scored_left:
                return
            # What is not computed has no scores: a scored prompt shares nothing.
            root = sequence.tenant, sequence.digest
            matched = NO_MATCH if sequence.is_scored else self._blocks.match(root, sequence.tokens)
            need = self._blocks.blocks_for(len(sequence.tokens)) - len(matched.pages)
            if self._falls_short(sequence, need + matched.idle, now):
                return
            self._begin(draft, sequence, now)
            self._blocks.adopt(sequence, matched)
            sequence.promised = need
            self.promised += need
            self._plan_chunk(draft, sequence, tuple(sequence.blocks))
            assert sequence.planned > len(matched.pages) * self._blocks.block_tokens

    def _falls_short(self, sequence: Sequence, pages: int, now: float) -> bool:
        """Whether the head of the queue must wait for some of the `pages` it wants.

        If so, they are kept for it, and adapters nobody uses give theirs up.
        """
        watermark = self._watermark if self.running else 0
        short = pages + watermark + self.promised - self._blocks.available
        if short <= 0:
            return False
        self._looks = self._looks + 1 if sequence.number == self._head else 1
        self._head, self._head_pages = sequence.number, pages
        self._awaited = pages
        # With nothing running, nothing else would ever give pages back.
        nothing_runs = self.running == 0 and not self.flights
        own = self._paging.adapter_of(sequence)
        self._paging.relinquish(short, now, wanted=nothing_runs, kept=nothing_runs, spare=own)
        return True

    def _begin(self, draft: Draft, sequence: Sequence, now: float) -> None:
        tenant = sequence.payer
        self._turns.note_admission(sequence)
        self._tenants.end_waiting(tenant)
        # A preempted sequence is computed again at our expense, not its tenant's.
        charge = 0.0 if sequence.began else PROMPT_TOKEN_WEIGHT * len(sequence.prompt)
        self._tenants.serve(tenant, charge + sequence.owed)
        sequence.owed = 0.0
        self._residency.pin(sequence, now)
        adapter = self._paging.adapter_of(sequence)
        positions = adapter.pages * self._blocks.block_tokens if adapter else 0
        users = adapter.pins if adapter else 1
        sequence.output_charge = output_charge(positions, users) / tenant.weight
        sequence.move(Stage.RUNNING)
        known = sequence.prompt if sequence.outputs == 0 else tuple(sequence.tokens)
        sequence.known_first = len(known)
        sequence.began = sequence.on_worker = True
        for token_id in sequence.ends:
            self.ends[token_id] += 1
        self.sequences[sequence.number] = self.prefilling[sequence.number] = sequence
        draft.arrived.append(
            NewSequence(
                sequence.number, known, len(sequence.prompt), sequence.slot, sequence.sampling
            )
        )

    # When pages run out.

    def _make_pages(self, draft: Draft, now: float) -> None:
        """Have pages come back for the sequences that missed this step.

        In order: adapters nobody wants, adapters someone waits for, the newest running sequences,
        and at last the adapter of the sequence that holds admissions back.
        """
        short = draft.pages_short - sum(len(sequence.blocks) for sequence in self._on_their_way())
        if short <= 0:
            return
        held = self._paging.adapter_of(self._turns.held_for)
        self._paging.relinquish(short, now, wanted=True, spare=held)
        short -= self._tiers.pages_leaving
        while short > 0 and self.running > 1:
            sequence = self.sequences[max(self.sequences)]
            short -= len(sequence.blocks)
            self._preempt(sequence)
        if short > 0:
            short += self._tiers.pages_leaving
            self._paging.relinquish(short, now, wanted=True, kept=True)

    def _split_leaving(self, draft: Draft) -> tuple[list[Sequence], list[Sequence]]:
        """Those this plan may list as finished, and those preempted after it had planned for them.

        A plan finishes sequences before it computes, so the latter are left to the next one.
        """
        if not draft.pages_short:
            return self.leaving, []
        planned = {span.sequence for span in draft.spans}.union(draft.decodes.sequences)
        now = [sequence for sequence in self.leaving if sequence.number not in planned]
        return now, [sequence for sequence in self.leaving if sequence.number in planned]

    def _on_their_way(self) -> list[Sequence]:
        """Sequences whose blocks come back when steps that are planned already retire."""
        return self.leaving + [s for flight in self.flights for s in flight.finished]

    def _preempt(self, sequence: Sequence) -> None:
        sequence.move(Stage.PREEMPTED)
        sequence.preemptions += 1
        self.preemptions += 1
        self.leave(sequence)
