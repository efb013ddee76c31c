"""A core and a fake worker side by side, moved by hand: for tests that say what happens when."""

from collections.abc import Callable
from collections.abc import Sequence as Items

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError
from adex_proto.plan import AdapterCommand, StepPlan
from adex_proto.sampling import FinishReason, SamplingParams
from adex_scheduler.core.events import (
    Arrived,
    Control,
    Event,
    MovesDue,
    Pin,
    Preload,
    Reload,
    Unload,
    Unpin,
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
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.testing.fake_worker import FakeWorker, oracle, worker_info


def key(name: str, tenant: str = "") -> AdapterKey:
    """A local adapter's name."""
    return AdapterKey(tenant, "local", name)


class Desk:
    """Nothing moves by itself: `step` and `answer` move one thing, `settle` everything."""

    def __init__(self, limits: Limits | None = None, **info_changes: int) -> None:
        self.worker = FakeWorker(worker_info(**info_changes))
        self.core = SchedulerCore(self.worker.info, limits or Limits())
        self.now = 0.0
        self.checking = True
        """Whether the books are checked after every event; a large desk may go without."""
        self.plans: list[StepPlan] = []
        self.commands: list[AdapterCommand] = []
        self.tokens: dict[int, list[int]] = {}
        self.finish: dict[int, FinishReason] = {}
        self.errors: dict[int, AdexError] = {}
        self.scores: dict[int, list[float]] = {}
        self.brought: dict[int, list[tuple[str, Tier]]] = {}
        self.done: dict[int, tuple[str, Tier]] = {}
        self.blamed: list[str] = []
        self._number = 0
        self._inputs: dict[int, tuple[tuple[int, ...], SamplingParams]] = {}
        self.tell(WorkerReady(self.worker.hello()))

    def publish(self, name: str, size: int = 100, digest: str = "", tenant: str = "") -> AdapterKey:
        """Let the source have an adapter of `size` bytes under this name."""
        named = key(name, tenant)
        self.worker.published[named] = AdapterVersion(digest or f"digest-{name}", size, 8, 4)
        return named

    def arrive(
        self,
        adapter: AdapterKey | None = None,
        prompt: Items[int] | int = 3,
        new: int = 4,
        *,
        tenant: str = "",
        sampling: SamplingParams | None = None,
        deadline_s: float | None = None,
    ) -> int:
        """A request; `prompt` may be its length. Returns: its number."""
        self._number += 1
        tokens = tuple(prompt) if not isinstance(prompt, int) else (self._number % 50,) * prompt
        params = sampling or SamplingParams(max_new_tokens=new, ignore_eos=True)
        self.tokens[self._number] = []
        self._inputs[self._number] = (tokens, params)
        self.tell(Arrived(self._number, tenant, adapter, tokens, params, deadline_s))
        return self._number

    def ask(self, asked: Callable[[int], Control]) -> int:
        """What an operator asks, under the next number. Returns: that number."""
        self._number += 1
        self.tell(asked(self._number))
        return self._number

    def preload(self, name: AdapterKey, tier: Tier = Tier.DEVICE, *, hint: bool = False) -> int:
        """Ask for an adapter without a request. Returns: the number, as the next ones do."""
        return self.ask(lambda number: Preload(number, "", name, tier, hint))

    def pin(self, name: AdapterKey, tier: Tier = Tier.DEVICE) -> int:
        return self.ask(lambda number: Pin(number, "", name, tier))

    def unpin(self, name: AdapterKey) -> int:
        return self.ask(lambda number: Unpin(number, name))

    def reload(self, name: AdapterKey) -> int:
        return self.ask(lambda number: Reload(number, "", name))

    def unload(self, name: AdapterKey, *, disk: bool = False) -> int:
        return self.ask(lambda number: Unload(number, name, disk))

    def tier_of(self, name: AdapterKey) -> Tier:
        """Where the version is that the name means now."""
        alias = self.core.residency.names.get(name)
        adapter = self.core.tiers.adapters.get(alias.digest or "") if alias else None
        return adapter.tier if adapter else Tier.ABSENT

    def expected(self, number: int, digest: str = "") -> list[int]:
        """What the request yields when it is computed alone."""
        return list(oracle(digest, *self._inputs[number], self.worker.info.vocabulary))

    def tell(self, event: Event) -> list[Instruction]:
        """One event to the core, and that moves are due after it. Returns: all instructions."""
        return [*self.decide(event), *self.decide(MovesDue())]

    def decide(self, event: Event) -> list[Instruction]:
        """One event to the core; its instructions reach the worker; the books are checked."""
        instructions = self.core.handle(event, self.now)
        if self.checking:
            check(self.core)
        for instruction in instructions:
            match instruction:
                case SendPlan():
                    self.plans.append(instruction.plan)
                    self.worker.receive(instruction.plan)
                case Send():
                    self.commands.append(instruction.command)
                    self.worker.receive(instruction.command)
                case Emit():
                    for scores in instruction.scores:
                        known = self.scores.setdefault(scores.sequence, [])
                        assert scores.start <= len(known) + 1, "scores leave a gap"
                        known[scores.start - 1 :] = [token.logprob for token in scores.tokens]
                    for token in instruction.tokens:
                        self.tokens[token.sequence].append(token.token_id)
                    self.finish.update(instruction.finished)
                case Fail():
                    self.errors[instruction.number] = instruction.error
                case Brought():
                    told = (instruction.digest, instruction.tier)
                    assert instruction.number not in self.done
                    self.brought.setdefault(instruction.number, []).append(told)
                    if instruction.done:
                        self.done[instruction.number] = told
                case Disconnect():
                    self.blamed.append(instruction.reason)
        return instructions

    def step(self, *, fail: Items[int] = ()) -> None:
        """The worker carries out its oldest plan and answers."""
        self.tell(self.worker.run_plan(fail=fail))

    def answer(self, index: int = 0, *, fail: bool = False) -> None:
        """The worker carries out one command and answers."""
        self.tell(self.worker.run_command(index, fail=fail))

    def settle_commands(self) -> None:
        """Every adapter command that follows from the present is answered; no step is."""
        while self.worker.commands:
            self.answer()

    def settle(self, turns_max: int = 10_000) -> None:
        """Everything is answered until nothing is under way."""
        for _ in range(turns_max):
            if self.worker.commands:
                self.answer()
            elif self.worker.plans:
                self.step()
            else:
                return
        raise AssertionError(f"still busy after {turns_max} turns")

    def sent(self, kind: type[AdapterCommand]) -> list[AdapterCommand]:
        """The commands of one kind so far."""
        return [command for command in self.commands if isinstance(command, kind)]

    def reconnect(self) -> None:
        """The worker opens a new stream."""
        self.tell(WorkerReady(self.worker.hello()))
