"""SchedulerCore.handle(event, now) -> instructions: the only way anything here changes.

One core drives one worker. It knows no clock, no chance and no I/O: equal events at equal times
give equal instructions. Each event first changes the books, then the steps that have become
possible are planned. Moves of adapters are decided at an event of their own, after the others have
been carried out: the worker has its next step by then, and several facts lead to one decision.
"""

from adex_proto.adapter import Tier
from adex_proto.errors import AdexError, ShuttingDown, WorkerLost
from adex_proto.outcome import Hello, StepOutcome, WorkerInfo
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.admission import Pace, deadline_refusal, length_refusal, queue_refusal
from adex_scheduler.core.batch import Batch
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.control import Control
from adex_scheduler.core.deadlines import Deadlines
from adex_scheduler.core.endings import Endings
from adex_scheduler.core.errands import Errands
from adex_scheduler.core.events import (
    Arrived,
    Cancelled,
    Drained,
    Event,
    Fact,
    MovesDue,
    Pin,
    Preload,
    Reload,
    StopFound,
    Ticked,
    Unload,
    Unpin,
    WorkerGone,
    WorkerReady,
)
from adex_scheduler.core.events import Control as ControlEvent
from adex_scheduler.core.eviction import Eviction, LeastValued
from adex_scheduler.core.fairness import Tenants
from adex_scheduler.core.forecast import Forecast
from adex_scheduler.core.instructions import Disconnect, Emit, Fail, Instruction, Outbox, SendPlan
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.links import Links
from adex_scheduler.core.outcomes import apply_outcome
from adex_scheduler.core.paging import Paging
from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.reuse import ReuseRates
from adex_scheduler.core.sequence import Sequence, Stage
from adex_scheduler.core.statistics import CoreStatistics, Counters, statistics_of
from adex_scheduler.core.step_time import StepTime
from adex_scheduler.core.tiers import Tiers
from adex_scheduler.core.turns import Turns


class SchedulerCore:
    """All decisions for one worker. The shell calls `handle` and reads; nobody else changes it."""

    def __init__(self, info: WorkerInfo, limits: Limits, eviction: Eviction | None = None) -> None:
        self.limits = limits
        self.tenants = Tenants(limits.tenants_max, limits.tenant_weights)
        self.counters = Counters()
        self.sequences: dict[int, Sequence] = {}
        self.connected = False
        self._out = Outbox()
        self.links = Links()
        eviction = eviction or LeastValued(ReuseRates(limits.aliases_max), self.links)
        self.tiers = Tiers(self.tenants, eviction, self._out)
        self.residency = Residency(limits, self.tiers, self._out)
        self.control = Control(limits, self.residency, self.tiers, self._out)
        self.errands = Errands(limits, self.sequences, self.tenants, self.control)
        self._deadlines = Deadlines(limits.wait_s_max)
        self._last_number = -1
        self._draining = False
        self._gone_at = self._now = 0.0
        self._pace = Pace()
        self.step_time = StepTime()
        self.forecast = Forecast(self.links, self._pace, self.step_time)
        self._open(info, first_step=0)

    def _open(self, info: WorkerInfo, first_step: int) -> None:
        """Begin anew with a worker that holds nothing."""
        self.info = info
        self._eos = frozenset(info.eos_token_ids)
        self.pool = PagePool(info.pages)
        self.blocks = Blocks(self.pool, info.block_tokens, share=self.limits.prefix_cache)
        self.tiers.open(info, self.pool, self.blocks)
        self.turns = Turns(self.limits, self.tiers)
        self.paging = Paging(self.limits, self.residency, self.tiers, self.turns)
        self.batch = Batch(
            info,
            self.limits,
            blocks=self.blocks,
            tiers=self.tiers,
            residency=self.residency,
            paging=self.paging,
            turns=self.turns,
            tenants=self.tenants,
            step_time=self.step_time,
            first_step=first_step,
        )
        self.endings = Endings(
            self.limits,
            self.sequences,
            tenants=self.tenants,
            residency=self.residency,
            errands=self.errands,
            turns=self.turns,
            batch=self.batch,
            blocks=self.blocks,
            counters=self.counters,
            pace=self._pace,
            out=self._out,
        )

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one fact and say what to do about it. `now` never goes back.

        What a caller did wrong becomes a Fail, what the worker did wrong a Disconnect.
        """
        if isinstance(event, MovesDue):
            self._move_adapters(now)
        else:
            self._take_in(event, now)
            self._plan_steps(now)
        for sent in self._out.commands:
            self.links.note_sent(sent.command, self.tiers.adapters, now)
        self._now = now
        return self._out.take()

    def statistics(self) -> CoreStatistics:
        """An immutable picture of the present. Visits every adapter."""
        return statistics_of(
            self.counters,
            sequences=len(self.sequences) - self.errands.living,
            waiting=self.tenants.waiting,
            connected=self.connected,
            batch=self.batch,
            tiers=self.tiers,
            residency=self.residency,
            links=self.links.statistics(self._now),
        )

    def digest_of(self, number: int) -> str | None:
        """The version a living sequence is bound to, "" for none yet or the base model."""
        sequence = self.sequences.get(number)
        return sequence.digest if sequence else None

    def nearest_tier(self, number: int) -> Tier:
        """Where a living sequence's adapter is at hand; ABSENT while its name means nothing."""
        adapter = self.tiers.adapters.get(self.digest_of(number) or "")
        return adapter.at_hand if adapter else Tier.ABSENT

    def _plan_steps(self, now: float) -> None:
        """Go on with what the event has left possible."""
        if self.residency.failed:
            self.endings.refuse_failed()
        if not self.connected:
            return
        self._mind_errands(now)
        while len(self.batch.flights) < self.limits.plans_in_flight_max:
            plan = self.batch.form(now)
            if plan is None:
                break
            self._out.plans.append(SendPlan(plan))

    def _mind_errands(self, now: float) -> None:
        """Begin the core's own errands, and end those whose adapter is where it shall be."""
        while self.errands.due:
            self.errands.begin_own(now)
            for sequence, error in self.errands.over():
                self.endings.end_errand(sequence, error)
            self.endings.refuse_failed()

    def _move_adapters(self, now: float) -> None:
        """Begin the moves that have become possible."""
        if self.connected:
            self.control.advance()
            self.paging.keep_pages = self.batch.keep_pages
            self.paging.advance(now)

    def _take_in(self, event: Fact, now: float) -> None:
        match event:
            case Arrived():
                self._on_arrived(event, now)
            case Preload() | Pin() | Unpin() | Reload() | Unload():
                self._on_control(event, now)
            case Cancelled():
                self.counters.cancelled += self.endings.end_early(event.number)
            case StopFound():
                if self.endings.end_early(event.number):
                    self.endings.note_finish(FinishReason.STOP, now)
            case Ticked():
                self._on_tick(now)
            case WorkerReady():
                self._on_worker_ready(event.hello, now)
            case WorkerGone():
                self._on_worker_gone(now)
            case Drained():
                self._draining = True
            case _ if not self.connected:
                # An answer that was under way when the stream broke.
                self.counters.strays += 1
            case StepOutcome():
                self._on_outcome(event, now)
            case _:
                self.links.note_answer(event, self.tiers.adapters, now)
                self.residency.on_answer(event, now)

    # Requests.

    def _on_arrived(self, event: Arrived, now: float) -> None:
        self._note_number(event.number)
        self.counters.arrived += 1
        sampling = event.sampling
        error = self._too_long(event.token_ids, sampling) or queue_refusal(
            limits=self.limits,
            waiting=self.tenants.waiting,
            waiting_tenant=self.tenants.waiting_of(event.tenant),
            draining=self._draining,
            seconds_per_finish=self._pace.seconds_per_finish,
        )
        begin_by = None
        if error is None and event.deadline_s is not None:
            error, begin_by = self._by_deadline(event, event.deadline_s, now)
        if error is not None:
            self.counters.refused[error.code] += 1
            self._out.answers.append(Fail(event.number, error))
            return
        if not self.sequences:
            self._pace.begin(now)
        tenant = self.tenants.enter(event.tenant)
        sequence = Sequence.of_tokens(
            event.number, tenant, event.key, event.token_ids, sampling, eos=self._eos, now=now
        )
        sequence.begin_by = begin_by
        self.sequences[event.number] = sequence
        self.tenants.begin_waiting(tenant)
        self._deadlines.begin(sequence, now)
        if self.connected:
            self._want(sequence, now)

    def _by_deadline(
        self, event: Arrived, deadline_s: float, now: float
    ) -> tuple[AdexError | None, float]:
        """Why the request's deadline cannot be met, or None; and when it must have begun."""
        forecast, tokens = self.forecast, len(event.token_ids)
        expected_s = forecast.first_token_s(
            event.key,
            tokens,
            payer=self.tenants.get(event.tenant),
            residency=self.residency,
            tiers=self.tiers,
            batch=self.batch,
        )
        begin_by = now + deadline_s - forecast.prompt_s(tokens, self.batch)
        return deadline_refusal(expected_s, deadline_s), begin_by

    def _on_control(self, event: ControlEvent, now: float) -> None:
        self._note_number(event.number)
        if self._draining:
            error = ShuttingDown("The server is finishing its work and takes no new requests")
            self._out.answers.append(Fail(event.number, error))
        elif self.errands.ask(event, now, connected=self.connected):
            self._deadlines.begin(self.sequences[event.number], now)

    def _note_number(self, number: int) -> None:
        assert number > self._last_number, f"{number} after {self._last_number}"
        self._last_number = number

    def _too_long(self, prompt: tuple[int, ...], sampling: SamplingParams) -> AdexError | None:
        new = sampling.max_new_tokens
        return length_refusal(prompt, new, info=self.info, limits=self.limits)

    def _want(self, sequence: Sequence, now: float) -> None:
        error = self.residency.want(sequence, now)
        if error is not None:
            self.endings.refuse(sequence, error)

    # Steps.

    def _on_outcome(self, outcome: StepOutcome, now: float) -> None:
        flights = self.batch.flights
        if not flights or flights[0].step != outcome.step:
            awaited = flights[0].step if flights else "none"
            complaint = f"outcome of step {outcome.step} came, of step {awaited} was awaited"
            self._out.answers.append(Disconnect(complaint))
            return
        flight = flights.popleft()
        self.counters.steps += 1
        # A step that failed took less than what it was to compute, or hung.
        if not outcome.failures and (flight.decodes or flight.prompt_tokens):
            self.step_time.observe(flight.decodes, flight.prompt_tokens, outcome.seconds)
        result = apply_outcome(
            flight,
            outcome,
            self.sequences,
            ended=self.batch.ended_in_flight(),
            ends=self.batch.ends.keys(),
            blocks=self.blocks,
            eos=self._eos,
        )
        self.counters.output_tokens += len(result.tokens)
        self.counters.dropped_tokens += len(outcome.tokens) - len(result.tokens)
        for sequence, error in result.failed:
            self.endings.leave_steps(sequence)
            self.endings.fail(sequence, error)
        for sequence, reason in result.finished:
            self.endings.leave_steps(sequence)
            self.endings.note_finish(reason, now)
        for sequence in flight.finished:
            self.endings.release(sequence, now)
        if result.tokens.sequences or outcome.scores:
            finished = tuple([(sequence.number, reason) for sequence, reason in result.finished])
            self._out.answers.append(Emit(result.tokens, finished, outcome.scores))

    # Time, and the worker's coming and going.

    def _on_tick(self, now: float) -> None:
        for sequence in self._deadlines.passed(self.sequences, now):
            self.endings.expire(sequence, now)
        self.control.expire(now)
        if not self.connected:
            limit = self.limits.worker_wait_s_max
            for number in sorted(self.sequences):
                sequence = self.sequences[number]
                if max(sequence.arrived_at, self._gone_at) + limit <= now:
                    self.endings.refuse(sequence, WorkerLost(f"No worker came within {limit:g} s"))

    def _on_worker_gone(self, now: float) -> None:
        """Fail the sequences that have shown tokens; the others wait for a worker to come."""
        if not self.connected:
            return
        self.connected = self.endings.connected = False
        self._gone_at = now
        self.links.clear(now)
        for number in sorted(self.sequences):
            sequence = self.sequences[number]
            if sequence.stage is Stage.ENDING:
                self.endings.forget(sequence)
                continue
            waits = sequence.stage in (Stage.WAITING, Stage.WAITING_ADAPTER)
            if not waits:
                self.tenants.begin_waiting(sequence.payer)
            if sequence.outputs:
                # Why it went is for the operator's log: it may name addresses.
                lost = WorkerLost("The worker went away in mid-text", remedy="Send it again")
                self.endings.refuse(sequence, lost)
                continue
            if sequence.stage is not Stage.WAITING_ADAPTER:
                sequence.move(Stage.WAITING_ADAPTER)
            if sequence.began:
                self._deadlines.begin(sequence, now)
            sequence.start_over()
        self.counters.preemptions += self.batch.preemptions
        self.counters.prefix_hits += self.blocks.hits
        self._open(self.info, self.batch.next_step)

    def _on_worker_ready(self, hello: Hello, now: float) -> None:
        """Take over the worker's inventory and let every sequence wait for what it needs."""
        self._on_worker_gone(now)
        self._open(hello.info, self.batch.next_step)
        self.residency.take_over(hello.held)
        self.connected = self.endings.connected = True
        self.control.on_worker_ready()
        for number in sorted(self.sequences):
            sequence = self.sequences[number]
            is_errand = sequence.errand is not None
            error = None if is_errand else self._too_long(sequence.prompt, sequence.sampling)
            if error is not None:
                self.endings.refuse(sequence, error)
            else:
                self._want(sequence, now)
