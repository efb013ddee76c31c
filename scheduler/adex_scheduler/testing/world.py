"""Many requests, one scheduler, one fake worker and every kind of mishap, all from one seed.

Each turn picks one of the things that could happen next: a request arrives or is cancelled, a plan
or a command is carried out, an answer is delivered, the worker dies, an adapter changes. The core's
books are checked after every event. Each request must end exactly once, with what it would have
yielded alone, and each thing an operator asks must be answered exactly once.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdapterMalformed, AdexError
from adex_proto.outcome import AdapterEvent, Evicted, Fetched, Moved, StepOutcome, WorkerInfo
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.events import (
    Arrived,
    Cancelled,
    Control,
    Event,
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
from adex_scheduler.core.instructions import (
    Brought,
    Disconnect,
    Emit,
    Fail,
    Instruction,
    Send,
    SendPlan,
)
from adex_scheduler.core.invariants import check
from adex_scheduler.core.limits import PACING, Limits, Pacing
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.testing.fake_worker import EOS, FakeWorker, oracle, worker_info

# Far more than any request has been seen to need; a world that takes more stands still.
TURNS_PER_REQUEST_MAX = 500


@dataclass(frozen=True, slots=True)
class Mishaps:
    """How often each mishap is chosen, relative to 1 for the ordinary things."""

    cancel: float = 0.02
    stop: float = 0.02
    worker_loss: float = 0.002
    adapter_change: float = 0.02
    command_failure: float = 0.03
    step_failure: float = 0.005
    duplicate: float = 0.02
    control: float = 0.05
    """No mishap, but as unforeseen: an operator asks something about an adapter."""
    deadline: float = 0.1
    """The share of requests that name a deadline."""


CALM = Mishaps(0, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(slots=True)
class Request:
    """One request, what came of it, and every version its adapter's name has meant meanwhile."""

    tenant: str
    key: AdapterKey | None
    prompt: tuple[int, ...]
    sampling: SamplingParams
    meanings: list[str]
    arrived_turn: int = 0
    first_turn: int | None = None
    tokens: list[int] = field(default_factory=list[int])
    finish: FinishReason | None = None
    error: AdexError | None = None
    cancelled: bool = False
    stopped: bool = False

    @property
    def over(self) -> bool:
        return self.cancelled or self.stopped or self.finish is not None or self.error is not None


class World:
    """Everything one seed makes. `run` plays it to the end and raises on whatever is wrong."""

    def __init__(
        self,
        seed: int,
        *,
        requests: int = 40,
        adapters: int = 6,
        mishaps: Mishaps | None = None,
        limits: Limits | None = None,
        worker_of: Callable[[WorkerInfo], FakeWorker] = FakeWorker,
        **info_changes: int,
    ) -> None:
        self.chance = Random(seed)  # noqa: S311 - a seed must repeat the world
        self.mishaps = mishaps or Mishaps()
        info = worker_info(**(self._random_info() | info_changes))
        self.worker = worker_of(info)
        self.limits = limits or self._random_limits(seed)
        self.core = SchedulerCore(info, self.limits)
        self.up: deque[StepOutcome | AdapterEvent] = deque()
        self.requests: dict[int, Request] = {}
        # What operators asked and were not answered yet.
        self.asked: dict[int, Control] = {}
        self.answered = self.turns = 0
        self.now = 0.0
        self.connected = False
        self.calm = False
        self.events: list[Event] = []
        self._to_come, self._numbers, self._versions = requests, 0, 0
        self._turns_max = 1000 + TURNS_PER_REQUEST_MAX * requests
        self._meanings: dict[AdapterKey, list[str]] = {}
        self.keys = [AdapterKey("", "local", f"adapter-{i}") for i in range(adapters)]
        for key in self.keys:
            self._publish(key)

    def _random_info(self) -> dict[str, int]:
        pick = self.chance.choice
        step_tokens = pick([4, 16, 64])
        return {
            "pages": pick([12, 24, 48, 200]),
            "slots_max": pick([1, 2, 4, 32]),
            "host_bytes": pick([1000, 2000, 10_000]),
            "disk_bytes": pick([2000, 5000, 100_000]),
            "step_tokens_max": step_tokens,
            "step_sequences_max": pick([2, 4, step_tokens]),
        }

    def _random_limits(self, seed: int) -> Limits:
        pick = self.chance.choice
        return Limits(
            waiting_max=pick([8, 1000]),
            plans_in_flight_max=pick([1, 2, 2, 2, 3]),
            fetches_max=pick([1, 8]),
            stages_max=pick([1, 4]),
            page_ins_max=pick([1, 2]),
            alias_ttl_s=pick([0.5, 5.0]),
            aliases_max=pick([3, 1000]),
            turn_admissions=pick([2, 16]),
            watermark_fraction=pick([0.0, 0.01, 0.1]),
            prefix_cache=pick([True, True, False]),
            wait_s_max=10_000.0,
            # A step takes the fake worker a millisecond: the last leaves prompts the least.
            pacing=(PACING, None, Pacing(0.0005))[seed % 3],
        )

    # Playing.

    def run(self) -> None:
        """Play until every request has ended and nothing is under way."""
        self._connect()
        while not self._is_over():
            self.turns += 1
            assert self.turns < self._turns_max, self._stuck()
            if self._to_come == 0 and not self.calm and self.chance.random() < 0.01:
                self.calm = True
            self.now += self.chance.expovariate(100.0)
            self._turn()
            if self.chance.random() < 0.8:  # else more facts come first
                self.tell(MovesDue())
        self._settle_accounts()

    def tell(self, event: Event) -> list[Instruction]:
        """One event to the core, its instructions carried out, the books checked."""
        self.events.append(event)
        instructions = self.core.handle(event, self.now)
        check(self.core)
        for instruction in instructions:
            self._carry_out(instruction)
        return instructions

    def _is_over(self) -> bool:
        if self._to_come or self.up or not self.connected:
            return False
        return not (self.core.sequences or self.worker.plans or self.worker.commands or self.asked)

    def _turn(self) -> None:
        m, worker = self.mishaps, self.worker
        wild = not self.calm
        choices = [
            (self._arrive, 0.5 if self._to_come else 0.0),
            (self._deliver, 1.0 if self.up else 0.0),
            (self._step, 1.0 if worker.plans else 0.0),
            (self._command, 0.7 if worker.commands else 0.0),
            (self._connect, 0.0 if self.connected else 0.2),
            (self._tick, 0.02),
            (self._cancel, m.cancel if wild else 0.0),
            (self._stop, m.stop if wild else 0.0),
            (self._lose_worker, m.worker_loss if wild and self.connected else 0.0),
            (self._change_adapter, m.adapter_change if wild else 0.0),
            (self._control, m.control if wild else 0.0),
        ]
        deeds, weights = zip(*choices, strict=True)
        self.chance.choices(deeds, weights)[0]()

    def _arrive(self) -> None:
        self._to_come -= 1
        pick = self.chance
        key = pick.choice([None, *self.keys, *self.keys])
        # Few different beginnings, so that prefixes are shared.
        start = pick.choice([(1,) * 9, (2, 3) * 6, ()])
        prompt = start + tuple(pick.randrange(101) for _ in range(pick.randrange(1, 20)))
        new = pick.randrange(1, 24)
        sampling = SamplingParams(
            max_new_tokens=new,
            min_new_tokens=pick.randrange(new + 1) if pick.random() < 0.2 else 0,
            stop_token_ids=(7,) if pick.random() < 0.2 else (),
            ignore_eos=pick.random() < 0.2,
        )
        tenant = pick.choice(["", "", "a", "b"])
        meanings = [""] if key is None else list(self._meanings[key])
        number = self._next_number()
        self.requests[number] = Request(tenant, key, prompt, sampling, meanings, self.turns)
        deadline_s = pick.uniform(0, 2) if pick.random() < self.mishaps.deadline else None
        self.tell(Arrived(number, tenant, key, prompt, sampling, deadline_s))

    def _next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def _control(self) -> None:
        """An operator asks something, or leaves before the answer."""
        pick = self.chance
        if self.asked and pick.random() < 0.1:
            number = pick.choice(sorted(self.asked))
            if isinstance(self.asked[number], Preload | Reload | Pin):
                del self.asked[number]
                self.tell(Cancelled(number))
            return
        number, key = self._next_number(), pick.choice(self.keys)
        tenant, tier = pick.choice(["", "a"]), pick.choice([Tier.HOST, Tier.DEVICE])
        choices: list[Control] = [
            Preload(number, tenant, key, tier),
            Preload(number, tenant, key, tier, hint=True),
            Pin(number, tenant, key, tier),
            Unpin(number, key),
            Reload(number, tenant, key),
            Unload(number, key, disk=pick.random() < 0.5),
        ]
        asked = self.asked[number] = pick.choice(choices)
        self.tell(asked)

    def _deliver(self) -> None:
        event = self.up.popleft()
        self.tell(event)
        if isinstance(event, Fetched | Moved | Evicted) and self._happens(self.mishaps.duplicate):
            self.tell(event)

    def _step(self) -> None:
        numbers = self.worker.plans[0].sequences
        fail = [number for number in numbers if self._happens(self.mishaps.step_failure)]
        self.up.append(self.worker.run_plan(fail=fail))

    def _command(self) -> None:
        index = self.chance.randrange(len(self.worker.commands))
        fail = self._happens(self.mishaps.command_failure)
        self.up.append(self.worker.run_command(index, fail=fail))

    def _tick(self) -> None:
        self.now += 1.0
        self.tell(Ticked())

    def _cancel(self) -> None:
        number = self._any_living()
        if number is not None:
            self.requests[number].cancelled = True
            self.tell(Cancelled(number))

    def _stop(self) -> None:
        number = self._any_living()
        if number is not None and self.requests[number].tokens:
            self.requests[number].stopped = True
            self.tell(StopFound(number))

    def _connect(self) -> None:
        self.connected = True
        self.tell(WorkerReady(self.worker.hello()))

    def _lose_worker(self) -> None:
        self.connected = False
        self.up.clear()
        self.worker.forget_device()
        self.worker.host &= set(self.worker.disk)
        if self.chance.random() < 0.3:
            self.worker.host.clear()
        self.tell(WorkerGone("it died"))

    def _change_adapter(self) -> None:
        key = self.chance.choice(self.keys)
        if self.chance.random() < 0.2:
            self.worker.published[key] = AdapterMalformed("no weights")
        else:
            self._publish(key)

    # What comes of it.

    def _carry_out(self, instruction: Instruction) -> None:
        match instruction:
            case SendPlan():
                self.worker.receive(instruction.plan)
            case Send():
                self.worker.receive(instruction.command)
            case Emit():
                for token in instruction.tokens:
                    request = self.requests[token.sequence]
                    assert not request.over, f"{token.sequence} got a token after its end"
                    if request.first_turn is None:
                        request.first_turn = self.turns
                    request.tokens.append(token.token_id)
                for number, reason in instruction.finished:
                    assert not self.requests[number].over, f"{number} ended twice"
                    self.requests[number].finish = reason
            case Brought():
                if instruction.done and instruction.number in self.asked:
                    del self.asked[instruction.number]
                    self.answered += 1
            case Fail() if instruction.number not in self.requests:
                self.answered += self.asked.pop(instruction.number, None) is not None
            case Fail():
                request = self.requests[instruction.number]
                assert not request.over, f"{instruction.number} ended twice"
                request.error = instruction.error
            case Disconnect():
                raise AssertionError(f"the core blames the worker: {instruction.reason}")

    def _settle_accounts(self) -> None:
        for number, request in self.requests.items():
            assert request.over, f"request {number} never ended"
            expected = [
                oracle(digest, request.prompt, request.sampling, self.worker.info.vocabulary)
                for digest in request.meanings
            ]
            got = tuple(request.tokens)
            if request.finish is None:
                assert any(tokens[: len(got)] == got for tokens in expected), f"request {number}"
                continue
            assert got in expected, f"request {number}: {got} is none of {expected}"
            assert request.finish is self._due_reason(request), f"request {number}"
        for key, pinned in self.core.control.pins.items():
            assert pinned.error or self._is_kept(key, pinned.tier), f"the pin of {key} was lost"
        statistics = self.core.statistics()
        assert statistics.pages_kv == 0
        assert statistics.sequences == statistics.waiting == statistics.running == 0

    def _is_kept(self, key: AdapterKey, tier: Tier) -> bool:
        alias = self.core.residency.names.get(key)
        return alias is not None and any(
            adapter.digest == alias.digest and adapter.at_hand >= tier
            for adapter in self.core.tiers.adapters.values()
        )

    def _due_reason(self, request: Request) -> FinishReason:
        last = request.tokens[-1]
        if last == EOS and not request.sampling.ignore_eos:
            return FinishReason.EOS
        if last in request.sampling.stop_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH

    # Chance.

    def _happens(self, probability: float) -> bool:
        return not self.calm and self.chance.random() < probability

    def _any_living(self) -> int | None:
        living = [number for number, request in self.requests.items() if not request.over]
        return self.chance.choice(living) if living else None

    def _publish(self, key: AdapterKey) -> None:
        version = self.new_version(key)
        self.worker.published[key] = version
        digest = version.digest
        # A name may be understood as it was a while ago; in what follows any version will do.
        self._meanings.setdefault(key, []).append(digest)
        for request in self.requests.values():
            if request.key == key and not request.over:
                request.meanings.append(digest)

    def new_version(self, key: AdapterKey) -> AdapterVersion:
        """What the name comes to mean next."""
        self._versions += 1
        size = self.chance.choice([100, 100, 300, 700, 1500])
        return AdapterVersion(f"{self._versions:04x}", size, 8, 4)

    def _stuck(self) -> str:
        living = [n for n, request in self.requests.items() if not request.over]
        return f"after {self.turns} turns {living} have not ended: {self.core.statistics()}"
