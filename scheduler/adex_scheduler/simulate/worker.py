"""A worker that computes nothing and takes as long as a machine would.

It answers every plan and command once, as the contract asks, and says when. It checks nothing: the
fake worker of the tests does that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adex_proto.adapter import AdapterVersion, Tier
from adex_proto.errors import AdapterNotFound
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Held,
    Hello,
    Moved,
    SampledTokens,
    StepOutcome,
    WorkerInfo,
)
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage, StepPlan
from adex_scheduler.simulate.machine import LinkCost, Machine

# Every sampled token; nothing looks at which it is.
TOKEN = 2
_NO_COST = LinkCost(0.0, float("inf"))


@dataclass(frozen=True, slots=True)
class WorkerKind:
    """How a worker departs from the machine as it is.

    `all_resident` holds every adapter on the device from the start, in memory of its own: the ideal
    that no policy can beat. `blocking` moves adapters between steps, which wait for it. `remote`
    has no adapter on disk at the start, so that each is fetched when it is first asked for; `warm`
    has every one in host memory.
    """

    all_resident: bool = False
    blocking: bool = False
    remote: bool = False
    warm: bool = False


@dataclass(slots=True)
class WorkerTimes:
    """What the worker did with its time, in seconds, and what moved."""

    steps: int = 0
    busy_s: float = 0.0
    blocked_s: float = 0.0
    """Steps that were wanted waited this long for moves of adapters."""
    fetches: int = 0
    stages: int = 0
    page_ins: int = 0
    fetched_bytes: float = 0.0
    staged_bytes: float = 0.0
    paged_in_bytes: float = 0.0
    longest_s: dict[str, float] = field(default_factory=dict[str, float])
    """The longest from asking to the answer, of `step` and of each link."""

    def note(self, what: str, seconds: float) -> None:
        """Something that was asked for is answered so much later."""
        self.longest_s[what] = max(self.longest_s.get(what, 0.0), seconds)


@dataclass(slots=True)
class _Link:
    """Transfers follow one another on the wire; their fixed parts overlap."""

    cost: LinkCost
    free_at: float = 0.0

    def send(self, size: float, now: float) -> float:
        """When a transfer that is asked for now has arrived."""
        self.free_at = max(self.free_at, now) + size / self.cost.bytes_per_s
        return self.free_at + self.cost.fixed_s


@dataclass(slots=True)
class _Row:
    """A sequence: its adapter's slot, and how many positions are computed."""

    slot: int
    positions: int = 0


@dataclass(slots=True)
class ModelledWorker:
    """`submit` and `carry_out` say what the answer is and when it comes."""

    machine: Machine
    ranks: Mapping[str, int]
    kind: WorkerKind = WorkerKind()
    times: WorkerTimes = field(default_factory=WorkerTimes)
    _free_at: float = 0.0
    _rows: dict[int, _Row] = field(default_factory=dict[int, _Row])
    _slot_bytes: dict[int, int] = field(default_factory=dict[int, int])
    _disk: set[str] = field(default_factory=set[str])
    _links: dict[str, _Link] = field(default_factory=dict[str, _Link])

    def __post_init__(self) -> None:
        machine = self.machine
        costs = (machine.resolve, machine.fetch, machine.stage, machine.page_in)
        for name, cost in zip(("resolve", "fetch", "stage", "page_in"), costs, strict=True):
            self._links[name] = _Link(_NO_COST if self.kind.all_resident else cost)
        if not self.kind.remote:
            self._disk.update(self.ranks)

    @property
    def now_free(self) -> float:
        """When all steps submitted so far are over."""
        return self._free_at

    def info(self) -> WorkerInfo:
        """What the worker says of itself; one that has all resident has room for them besides."""
        machine, count = self.machine, len(self.ranks)
        pages = int(machine.memory.device_bytes // machine.page_bytes)
        spare = count if self.kind.all_resident else 0
        return WorkerInfo(
            model_id=machine.name,
            architecture="modelled",
            dtype="none",
            device="modelled",
            layers=1,
            vocabulary=2**62,
            positions_max=machine.model.positions_max,
            block_tokens=machine.model.block_tokens,
            page_bytes=machine.page_bytes,
            pages=pages + spare,
            slots_max=max(count, 1),
            host_bytes=int(machine.memory.host_bytes) if not spare else 2**62,
            disk_bytes=int(machine.memory.disk_bytes),
            rank_max=max(self.ranks.values(), default=1),
            step_tokens_max=machine.limits.tokens_max,
            step_sequences_max=machine.limits.sequences_max,
            eos_token_ids=(0,),
        )

    def version(self, name: str) -> AdapterVersion:
        """The adapter as the scheduler's books have it."""
        rank = self.ranks[name]
        size = self.machine.page_bytes if self.kind.all_resident else self._bytes(name)
        return AdapterVersion(name, size, rank, 1)

    def _bytes(self, name: str) -> int:
        return self.machine.adapter_bytes(self.ranks[name])

    def hello(self) -> Hello:
        """The first word: with a disk that holds every adapter, unless they are remote."""
        tier = Tier.HOST if self.kind.all_resident or self.kind.warm else Tier.DISK
        return Hello(
            self.info(), tuple(Held(self.version(name), tier) for name in sorted(self._disk))
        )

    def submit(self, plan: StepPlan, now: float) -> tuple[float, StepOutcome]:
        """When the step will be over, and its outcome. Steps follow one another."""
        rows = self._rows
        for number in plan.finished:
            rows.pop(number, None)
        for new in plan.arrived:
            rows[new.sequence] = _Row(new.slot)
        kv_tokens = 0
        slots: set[int] = set()
        for span in plan.spans:
            row = rows[span.sequence]
            row.positions = span.start + span.count
            kv_tokens += row.positions
            slots.add(row.slot)
        for number in plan.decodes.sequences:
            row = rows[number]
            row.positions += 1
            kv_tokens += row.positions
            slots.add(row.slot)
        slots.discard(0)
        seconds, sequences = 0.0, len(plan.sequences)
        if sequences:
            seconds = self.machine.step.seconds(
                tokens=plan.tokens,
                sequences=sequences,
                kv_tokens=kv_tokens,
                adapters=len(slots),
                adapter_bytes=sum(map(self._slot_bytes.__getitem__, slots)),
            )
        self._free_at = max(self._free_at, now) + seconds
        self.times.steps += bool(sequences)
        self.times.busy_s += seconds
        self.times.note("step", self._free_at - now)
        prompts = [span.sequence for span in plan.spans if span.samples]
        sampled = (*plan.decodes.sequences, *prompts)
        tokens = SampledTokens(sampled, (TOKEN,) * len(sampled))
        return self._free_at, StepOutcome(plan.step, tokens, (), seconds)

    def carry_out(self, command: AdapterCommand, now: float) -> tuple[float, AdapterEvent]:
        """When the command will be done, and its answer."""
        times = self.times
        match command:
            case Fetch(key):
                if key.name not in self.ranks:
                    at = self._links["resolve"].send(0, now)
                    return at, FetchFailed(key, AdapterNotFound(f"no adapter {key.name}"))
                if key.name in self._disk:
                    return self._move("resolve", 0, now), Fetched(key, self.version(key.name))
                self._disk.add(key.name)
                times.fetches += 1
                times.fetched_bytes += self._bytes(key.name)
                at = self._move("fetch", self._bytes(key.name), now)
                return at, Fetched(key, self.version(key.name))
            case Stage(digest):
                times.stages += 1
                times.staged_bytes += self._bytes(digest)
                return self._move("stage", self._bytes(digest), now), Moved(digest, Tier.HOST)
            case PageIn(digest, slot):
                self._slot_bytes[slot] = self._bytes(digest)
                times.page_ins += 1
                times.paged_in_bytes += self._bytes(digest)
                return self._move("page_in", self._bytes(digest), now), Moved(digest, Tier.DEVICE)
            case Evict(digest, tier):
                if tier is Tier.DISK:
                    self._disk.discard(digest)
                return now, Evicted(digest, tier)

    def _move(self, name: str, size: float, now: float) -> float:
        at = self._arrival(name, size, now)
        self.times.note(name, at - now)
        return at

    def _arrival(self, name: str, size: float, now: float) -> float:
        link = self._links[name]
        if not self.kind.blocking or name == "resolve":
            return link.send(size, now)
        begins = max(self._free_at, now)
        self._free_at = begins + link.cost.seconds(size)
        self.times.blocked_s += self._free_at - begins
        return self._free_at
