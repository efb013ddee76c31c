"""An excerpt of the core for people who watch: bounded, whatever the number of adapters.

It shows the adapters used last, the sequences of the latest step, and who waits. What it costs
depends on the bounds below and on how much is on the device, never on how many adapters there are.
Names of a tenant's own are left out here, so that nobody further on can show them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.plan import StepPlan
from adex_scheduler.core.adapters import Adapter, Alias, HostCopy
from adex_scheduler.core.page_map import PageMap, page_map
from adex_scheduler.core.sequence import Sequence, Stage
from adex_scheduler.core.state import SchedulerCore

ADAPTERS_MAX = 200
RUNNING_MAX = 64
QUEUES_MAX = 32
CELLS_MAX = 512
# Names looked at for the adapters used last: several may mean one adapter.
_NAMES_MAX = 3 * ADAPTERS_MAX
# Names of one adapter looked at for one that anybody may see.
_OWN_NAMES_MAX = 8
# Sequences looked at for the queues.
_SEQUENCES_MAX = 4096


@dataclass(frozen=True, slots=True)
class AdapterView:
    """One adapter. `key` is a name anybody may see, or None; `digest` "" while it means nothing.

    `state` is a residence's value, or "fetching" or "failed" for a name without a version, the
    latter with the error's `code`. `in_host`: host memory has a copy, perhaps beside the device's.
    `first_page` is -1 without a run; `running` and `waiting` count sequences.
    """

    digest: str
    key: AdapterKey | None
    state: str
    tier: Tier
    code: str = ""
    in_host: bool = False
    bundle_bytes: int = 0
    rank: int = 0
    pages: int = 0
    first_page: int = -1
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class SegmentView:
    """The rows of one step that share an adapter (`digest` "" for the base model)."""

    digest: str
    decode_rows: int
    prefill_rows: int


@dataclass(frozen=True, slots=True)
class RunningView:
    """One sequence that runs: positions computed of its prompt, tokens written of how many."""

    digest: str
    prompt: int
    computed: int
    written: int
    written_max: int


@dataclass(frozen=True, slots=True)
class QueueView:
    """Sequences of one tenant that wait with one adapter, the oldest since `since`.

    `tenant` is a number that names nobody. `key` is the adapter's name where anybody may see it.
    `for_adapter` of them wait for the adapter to come, the others for room.
    """

    tenant: int
    digest: str
    key: AdapterKey | None
    base: bool
    waiting: int
    for_adapter: int
    since: float


@dataclass(frozen=True, slots=True)
class Picture:
    """The core at `at`. Counts are of everything, tuples hold what the bounds allow."""

    at: float
    connected: bool
    step: int
    running: int
    waiting: int
    waiting_for_adapter: int
    preemptions: int
    pages_adapters: int
    pages_kv: int
    pages_prefix: int
    pages_free: int
    on_device: int
    in_host: int
    on_disk: int
    names: int
    host_bytes: int
    disk_bytes: int
    map: PageMap
    adapters: tuple[AdapterView, ...]
    segments: tuple[SegmentView, ...]
    sequences: tuple[RunningView, ...]
    queues: tuple[QueueView, ...]


def picture_of(core: SchedulerCore, plan: StepPlan | None, now: float) -> Picture:
    """The core as it stands; `plan` is the latest step sent."""
    tiers, batch = core.tiers, core.batch
    runs = [(adapter.first_page, adapter.stop_page) for adapter in tiers.in_slots.values()]
    pages_adapters = min(sum(stop - start for start, stop in runs), core.pool.pages)
    idle = core.blocks.pages_idle
    waiting = core.tenants.waiting
    return Picture(
        at=now,
        connected=core.connected,
        step=batch.next_step - 1,
        running=batch.running,
        waiting=waiting,
        waiting_for_adapter=waiting - len(tiers.ready) if core.connected else waiting,
        preemptions=core.counters.preemptions + batch.preemptions,
        pages_adapters=pages_adapters,
        pages_kv=max(core.pool.pages - core.pool.pages_free - idle - pages_adapters, 0),
        pages_prefix=idle,
        pages_free=core.pool.pages_free,
        on_device=len(runs),
        in_host=len(tiers.in_host),
        on_disk=len(tiers.adapters),
        names=len(core.residency.names),
        host_bytes=tiers.host_bytes,
        disk_bytes=tiers.disk_bytes,
        map=page_map(core.pool, runs, CELLS_MAX),
        adapters=tuple(_latest_adapters(core, now)),
        segments=_segments(core, plan),
        sequences=tuple(_running(core)),
        queues=_queues(core),
    )


def public_name(adapter: Adapter) -> AdapterKey | None:
    """A name of the adapter that anybody may see, if one is found at once."""
    names = islice(adapter.names, _OWN_NAMES_MAX)
    return next((key for key in names if not key.tenant), None)


def _latest_adapters(core: SchedulerCore, now: float) -> list[AdapterView]:
    """The adapters whose names were used last, each once, the latest first."""
    seen: set[str] = set()
    views: list[AdapterView] = []
    for alias in core.residency.names.latest(_NAMES_MAX):
        adapter = core.tiers.adapters.get(alias.digest or "")
        view: AdapterView | None = None
        if adapter is None:
            view = _unresolved(alias, now)
        elif adapter.digest not in seen:
            seen.add(adapter.digest)
            view = _view(adapter)
        if view is not None:
            views.append(view)
        if len(views) == ADAPTERS_MAX:
            break
    return views


def _view(adapter: Adapter) -> AdapterView:
    return AdapterView(
        digest=adapter.digest,
        key=public_name(adapter),
        state=adapter.residence.value,
        tier=adapter.tier,
        in_host=adapter.host is not HostCopy.NONE,
        bundle_bytes=adapter.version.bundle_bytes,
        rank=adapter.version.rank_max,
        pages=adapter.pages,
        first_page=adapter.first_page,
        running=adapter.pins,
        waiting=len(adapter.waiting),
    )


def _unresolved(alias: Alias, now: float) -> AdapterView | None:
    """A public name without a version, while it is looked up or its failure is remembered."""
    if alias.key.tenant:
        return None
    if alias.fetching or alias.waiting:
        waiting = len(alias.waiting)
        return AdapterView("", alias.key, "fetching", Tier.ABSENT, waiting=waiting)
    if alias.error is not None and now < alias.failed_until:
        return AdapterView("", alias.key, "failed", Tier.ABSENT, alias.error.code)
    return None


def _segments(core: SchedulerCore, plan: StepPlan | None) -> tuple[SegmentView, ...]:
    """The latest step's rows by adapter, in the order of slots; empty between steps' bursts."""
    if plan is None or not core.batch.running:
        return ()
    rows: dict[tuple[int, str], list[int]] = {}
    parts = [(number, 0, 1) for number in plan.decodes.sequences]
    parts += [(span.sequence, 1, span.count) for span in plan.spans]
    for number, kind, count in parts:
        sequence = core.sequences.get(number)
        if sequence is not None:
            counts = rows.setdefault((sequence.slot, sequence.digest), [0, 0])
            counts[kind] += count
    return tuple(
        SegmentView(digest, decode, prefill)
        for (_, digest), (decode, prefill) in sorted(rows.items())
    )


def _running(core: SchedulerCore) -> Iterator[RunningView]:
    """The sequences that run, the oldest first."""
    batch = core.batch
    numbers = sorted(batch.sequences)
    for number in numbers[:RUNNING_MAX]:
        sequence = core.sequences[number]
        prompt = len(sequence.prompt)
        yield RunningView(
            sequence.digest,
            prompt,
            min(sequence.computed, prompt),
            sequence.outputs,
            sequence.length_max - prompt,
        )


def _queues(core: SchedulerCore) -> tuple[QueueView, ...]:
    """Who waits, by tenant and adapter, the longest queue first."""
    grouped: dict[tuple[int, str, AdapterKey | None], list[Sequence]] = {}
    for sequence in islice(core.sequences.values(), _SEQUENCES_MAX):
        waits = sequence.stage in (Stage.WAITING, Stage.WAITING_ADAPTER)
        if waits and sequence.errand is None:
            of = sequence.payer.order, sequence.digest, sequence.key
            grouped.setdefault(of, []).append(sequence)
    queues = [
        QueueView(
            tenant,
            digest,
            None if key is None or key.tenant else key,
            key is None,
            len(members),
            sum(s.stage is Stage.WAITING_ADAPTER for s in members),
            min(s.arrived_at for s in members),
        )
        for (tenant, digest, key), members in grouped.items()
    ]
    queues.sort(key=lambda queue: (-queue.waiting, queue.since, queue.tenant, queue.digest))
    return tuple(queues[:QUEUES_MAX])
