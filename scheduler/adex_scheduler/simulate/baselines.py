"""Other ways to schedule, behind the same door: models of policies, not of anybody's engine.

They know each output's length in advance and reserve its KV cache whole, so they never preempt. A
step's decodes come first, then prompts under way, then those let in.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adex_proto.outcome import Evicted, Fetched, Moved, StepOutcome
from adex_proto.plan import AdapterCommand, NewSequence, Span, StepPlan
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.events import Arrived, Event, MovesDue, Ticked, WorkerReady
from adex_scheduler.core.instructions import Emit, Instruction, Send, SendPlan
from adex_scheduler.simulate.baseline_tiers import (
    BaselineTiers,
    Copy,
    Record,
    Victim,
    least_recent,
)
from adex_scheduler.simulate.trace import TracedRequest

# Waiting requests looked at in one step.
LOOK_MAX = 512


@dataclass(frozen=True, slots=True)
class Rules:
    """Where one baseline departs from the next.

    `pool_bytes` None shares the device between KV cache and adapters; else adapters have so much
    and nothing more. `slots` bounds how many are there; with `padded` each takes as much as the
    largest. `blocking` lets a request in whose adapter is then loaded before the step.
    `head_of_line` lets nobody pass one who cannot go on. `keep_idle` False sends an adapter away
    with its last user. `cycle_s` serves a set of adapters by turns of that length, others waiting.
    """

    victim: Victim = least_recent
    pool_bytes: float | None = None
    slots: int | None = None
    padded: bool = False
    blocking: bool = False
    head_of_line: bool = False
    keep_idle: bool = True
    cycle_s: float | None = None
    foresight: bool = False


@dataclass(slots=True, eq=False)
class _Row:
    number: int
    prompt: int
    left: int
    kv_bytes: float
    record: Record | None
    sampling: SamplingParams
    token_ids: tuple[int, ...]
    position: int = 0


@dataclass(slots=True)
class _Draft:
    tokens_left: int
    commands: list[AdapterCommand] = field(default_factory=list[AdapterCommand])
    arrived: list[NewSequence] = field(default_factory=list[NewSequence])
    spans: list[Span] = field(default_factory=list[Span])


class Baseline:
    """A scheduler that follows `rules`."""

    def __init__(
        self,
        rules: Rules,
        sizes: Mapping[str, int],
        *,
        kv_token_bytes: float,
        trace: Sequence[TracedRequest],
    ) -> None:
        self._rules = rules
        largest = max(sizes.values(), default=0)
        self._sizes = dict.fromkeys(sizes, largest) if rules.padded else dict(sizes)
        self._kv_token_bytes = kv_token_bytes
        self._trace = trace
        self._waiting: dict[int, _Row] = {}
        self._running: dict[int, _Row] = {}
        self._finished: list[int] = []
        self._kv_bytes = 0.0
        self._in_flight = False
        self._step = 0
        self._active: dict[str, float] = {}
        self._pending: deque[Record] = deque()

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take in one fact and say what to do about it."""
        out: list[Instruction] = []
        match event:
            case WorkerReady(hello):
                self._info = hello.info
                self._tiers = BaselineTiers(self._sizes, self._rules.victim, hello.info)
                for held in hello.held:
                    self._tiers.hold(held)
                if self._rules.foresight:
                    for number, request in enumerate(self._trace):
                        if request.adapter is not None:
                            self._tiers.records[request.adapter].future.append(number)
            case Arrived():
                self._arrive(event, now)
            case StepOutcome():
                self._take_outcome(event, out)
            case MovesDue():
                # These rules move adapters and plan steps at once.
                return out
            case Ticked() | Evicted():
                pass
            case Fetched() | Moved():
                self._tiers.on_event(event)
            case _:
                raise AssertionError(f"no simulation tells {event}")
        self._go_on(now, out)
        return out

    def _arrive(self, event: Arrived, now: float) -> None:
        record = self._tiers.records[event.key.name] if event.key else None
        count = len(event.token_ids) + event.sampling.max_new_tokens
        self._waiting[event.number] = _Row(
            event.number,
            len(event.token_ids),
            event.sampling.max_new_tokens,
            count * self._kv_token_bytes,
            record,
            event.sampling,
            event.token_ids,
        )
        if record is not None:
            record.waiting += 1
            self._tiers.touch(record, now)
            if self._rules.cycle_s and record.name not in self._active and record.waiting == 1:
                self._pending.append(record)

    def _take_outcome(self, outcome: StepOutcome, out: list[Instruction]) -> None:
        self._in_flight = False
        finished: list[tuple[int, FinishReason]] = []
        for token in outcome.tokens:
            row = self._running[token.sequence]
            row.left -= 1
            if not row.left:
                finished.append((row.number, FinishReason.LENGTH))
                self._end(row)
        if outcome.tokens.sequences:
            out.append(Emit(outcome.tokens, tuple(finished)))

    def _end(self, row: _Row) -> None:
        del self._running[row.number]
        self._finished.append(row.number)
        self._kv_bytes -= row.kv_bytes
        record = row.record
        if record is not None:
            record.pins -= 1
            if not record.pins and not self._rules.keep_idle and record.device is Copy.HELD:
                self._tiers.drop(record)

    # One step.

    def _go_on(self, now: float, out: list[Instruction]) -> None:
        draft = _Draft(self._info.step_tokens_max)
        if not self._in_flight:
            self._extend(draft)
        if self._rules.cycle_s:
            self._turn(draft, now)
        if self._waiting:
            self._walk(draft, now)
        out += [Send(command) for command in (*self._tiers.gone, *draft.commands)]
        self._tiers.gone.clear()
        if draft.spans:
            finished, self._finished = tuple(self._finished), []
            plan = StepPlan(self._step, tuple(draft.arrived), tuple(draft.spans), finished)
            self._step += 1
            self._in_flight = True
            out.append(SendPlan(plan))

    def _extend(self, draft: _Draft) -> None:
        spans = draft.spans
        for number, row in self._running.items():
            if row.position >= row.prompt:
                spans.append(Span(number, row.position, 1, True))
                row.position += 1
        draft.tokens_left -= len(spans)
        for row in self._running.values():
            if row.position < row.prompt and draft.tokens_left:
                self._chunk(draft, row)

    def _chunk(self, draft: _Draft, row: _Row) -> None:
        count = min(row.prompt - row.position, draft.tokens_left)
        last = row.position + count == row.prompt
        draft.spans.append(Span(row.number, row.position, count, last))
        row.position += count
        draft.tokens_left -= count

    def _walk(self, draft: _Draft, now: float) -> None:
        """Look down the queue: let in who can go on, load for who cannot."""
        ahead: set[str] = set()
        closed = self._in_flight
        some = [row for _, row in zip(range(LOOK_MAX), self._waiting.values(), strict=False)]
        for row in some:
            full = not draft.tokens_left or len(self._running) >= self._info.step_sequences_max
            closed = closed or full
            if closed and (self._rules.blocking or not self._tiers.idle_links):
                return
            record = row.record
            ready = record is None or self._bring(record, draft, now, ahead, closed=closed)
            if record is not None:
                ahead.add(record.name)
            if closed:
                continue
            if ready and self._reserve(row, now, ahead):
                self._begin(draft, row)
            elif ready or self._rules.head_of_line:
                closed = True

    def _begin(self, draft: _Draft, row: _Row) -> None:
        del self._waiting[row.number]
        record = row.record
        if record is not None:
            record.waiting -= 1
            record.pins += 1
            if record.future:
                record.future.remove(row.number)
        self._running[row.number] = row
        slot = record.slot if record else 0
        draft.arrived.append(NewSequence(row.number, row.token_ids, row.prompt, slot, row.sampling))
        self._chunk(draft, row)

    def _reserve(self, row: _Row, now: float, ahead: set[str]) -> bool:
        """Take the row's KV cache; in a shared pool idle adapters leave for it."""
        short = row.kv_bytes - self._free_kv()
        if short > 0:
            elastic = self._rules.pool_bytes is None
            if not elastic or not self._tiers.make_room(short, now, ahead, None):
                return False
        self._kv_bytes += row.kv_bytes
        return True

    def _device_bytes(self) -> float:
        return float(self._info.pages) * self._info.page_bytes

    def _free_kv(self) -> float:
        pool = self._rules.pool_bytes
        adapters = self._tiers.device_bytes if pool is None else pool
        return self._device_bytes() - adapters - self._kv_bytes

    # Adapters.

    def _bring(
        self, record: Record, draft: _Draft, now: float, ahead: set[str], *, closed: bool
    ) -> bool:
        """Whether the adapter is on the device; if not, the next move towards it is begun."""
        if record.device is Copy.HELD:
            return self._rules.cycle_s is None or record.name in self._active
        if self._rules.cycle_s is not None or record.device is Copy.COMING:
            return False
        if self._rules.blocking:
            return not closed and self._load_at_once(record, draft, now)
        self._advance(record, draft, now, ahead)
        return False

    def _advance(self, record: Record, draft: _Draft, now: float, ahead: set[str]) -> None:
        tiers = self._tiers
        command: AdapterCommand | None = None
        if record.disk is not Copy.HELD:
            command = tiers.fetch(record, now, ahead)
        elif record.host is not Copy.HELD:
            command = tiers.stage(record, now, ahead)
        elif self._room_on_device(record, now, ahead):
            command = tiers.page_in(record)
        if command is not None:
            draft.commands.append(command)

    def _load_at_once(self, record: Record, draft: _Draft, now: float) -> bool:
        if not self._room_on_device(record, now, set()):
            return False
        tiers = self._tiers
        for command in (tiers.fetch(record, now, set()), tiers.stage(record, now, set())):
            if command is not None:
                draft.commands.append(command)
        record.disk = Copy.HELD
        page_in = tiers.page_in(record)
        if page_in is None:
            return False
        draft.commands.append(page_in)
        # The worker does all of it before the step that is sent next.
        tiers.resident[record.name] = record
        record.device = Copy.HELD
        return True

    def _room_on_device(self, record: Record, now: float, ahead: set[str]) -> bool:
        rules, tiers = self._rules, self._tiers
        if rules.pool_bytes is None:
            short = record.size - self._free_kv()
        else:
            short = record.size + tiers.device_bytes - rules.pool_bytes
        return tiers.make_room(max(short, 0.0), now, ahead, rules.slots)

    def _turn(self, draft: _Draft, now: float) -> None:
        """Let pending adapters into the active set, first come first: one not loaded stops all."""
        assert self._rules.cycle_s is not None
        tiers = self._tiers
        while self._pending:
            record = self._pending[0]
            if record.device is Copy.NONE and record.host is not Copy.HELD:
                self._advance(record, draft, now, set())
                return
            if record.device is Copy.NONE:
                busy = {name for name in self._active if tiers.records[name].waiting}
                if not self._room_on_device(record, now, busy):
                    self._retire_one(now)
                    return
                command = tiers.page_in(record)
                if command is None:
                    return
                draft.commands.append(command)
            self._pending.popleft()
            self._active[record.name] = now
            for name in [n for n in self._active if tiers.records[n].device is Copy.NONE]:
                del self._active[name]

    def _retire_one(self, now: float) -> None:
        """The longest active adapter whose turn is over makes way, and queues again if wanted."""
        assert self._rules.cycle_s is not None
        for name, since in self._active.items():
            if now - since < self._rules.cycle_s:
                return
            record = self._tiers.records[name]
            if record.device is Copy.HELD:
                del self._active[name]
                if record.waiting:
                    self._pending.append(record)
                return
