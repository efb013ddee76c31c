"""An immutable picture of the core: for metrics and people, never for decisions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from adex_proto.adapter import AdapterKey, Tier
from adex_scheduler.core.batch import Batch
from adex_scheduler.core.links import LinkStatistics
from adex_scheduler.core.residency import Residency
from adex_scheduler.core.tiers import Tiers


@dataclass(slots=True)
class Counters:
    """What has happened to requests since the start."""

    arrived: int = 0
    cancelled: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    """By error code, before any token."""
    failed: Counter[str] = field(default_factory=Counter[str])
    """By error code, after the first token."""
    finished: Counter[str] = field(default_factory=Counter[str])
    """By finish reason."""
    output_tokens: int = 0
    dropped_tokens: int = 0
    """Computed after the sequence had ended: the price of planning ahead."""
    steps: int = 0
    preemptions: int = 0
    prefix_hits: int = 0
    """These two for the workers that are gone; the present one's are its batch's and blocks'."""
    strays: int = 0


@dataclass(frozen=True, slots=True)
class CoreStatistics:
    """Counts, pages and bytes at one moment; counters since the start."""

    connected: bool
    sequences: int
    running: int
    waiting: int
    waiting_for_adapter: int
    steps_in_flight: int
    pages: int
    pages_free: int
    pages_prefix: int
    pages_adapters: int
    pages_kv: int
    pages_held: int
    """Pages that nothing gives up: of running sequences, and of adapters someone uses."""
    largest_run: int
    slots_used: int
    host_bytes: int
    disk_bytes: int
    adapters_by_tier: Mapping[Tier, int]
    on_device: tuple[AdapterKey, ...]
    """The names of the versions on the device."""
    adapters_running: int
    """Versions that running sequences use."""
    names: int
    fetches_in_flight: int
    stages_in_flight: int
    page_ins_in_flight: int
    page_ins: int
    stages: int
    staged_bytes: int
    paged_in_bytes: int
    fetches: int
    fetch_failures: int
    move_failures: int
    device_evictions: int
    host_evictions: int
    disk_evictions: int
    prefix_hits: int
    """Blocks taken from the prefix cache instead of being computed."""
    links: Mapping[str, LinkStatistics]
    """What moves cost on each link, as measured, and how busy each is."""
    arrived: int
    cancelled: int
    output_tokens: int
    dropped_tokens: int
    steps: int
    preemptions: int
    strays: int
    refused: Mapping[str, int]
    failed: Mapping[str, int]
    finished: Mapping[str, int]


def statistics_of(
    counters: Counters,
    *,
    sequences: int,
    waiting: int,
    connected: bool,
    batch: Batch,
    tiers: Tiers,
    residency: Residency,
    links: Mapping[str, LinkStatistics],
) -> CoreStatistics:
    """Counts every adapter: call it for a scrape, not for a step."""
    pool, blocks = tiers.pool, tiers.blocks
    pages_adapters, pages_used, pages_kv = _pages(tiers)
    moves = tiers.counters
    return CoreStatistics(
        connected=connected,
        sequences=sequences,
        running=batch.running,
        waiting=waiting,
        waiting_for_adapter=waiting - len(tiers.ready) if connected else waiting,
        steps_in_flight=len(batch.flights),
        pages=pool.pages,
        pages_free=pool.pages_free,
        pages_prefix=blocks.pages_idle,
        pages_adapters=pages_adapters,
        pages_kv=pages_kv,
        pages_held=pages_kv + pages_used,
        largest_run=pool.largest_run,
        slots_used=tiers.info.slots_max - len(tiers.slots_free),
        host_bytes=tiers.host_bytes,
        disk_bytes=tiers.disk_bytes,
        adapters_by_tier=_by_tier(tiers),
        on_device=_names_on_device(tiers),
        adapters_running=len(tiers.device_pinned) + len(tiers.draining),
        names=len(residency.names),
        fetches_in_flight=residency.fetching,
        stages_in_flight=tiers.staging,
        page_ins_in_flight=tiers.paging_in,
        page_ins=moves.page_ins,
        stages=moves.stages,
        staged_bytes=moves.staged_bytes,
        paged_in_bytes=moves.paged_in_bytes,
        fetches=moves.fetches,
        fetch_failures=moves.fetch_failures,
        move_failures=moves.move_failures,
        device_evictions=moves.device_evictions,
        host_evictions=moves.host_evictions,
        disk_evictions=moves.disk_evictions,
        prefix_hits=counters.prefix_hits + blocks.hits,
        links=MappingProxyType(dict(links)),
        arrived=counters.arrived,
        cancelled=counters.cancelled,
        output_tokens=counters.output_tokens,
        dropped_tokens=counters.dropped_tokens,
        steps=counters.steps,
        preemptions=counters.preemptions + batch.preemptions,
        strays=counters.strays + moves.strays,
        refused=MappingProxyType(dict(counters.refused)),
        failed=MappingProxyType(dict(counters.failed)),
        finished=MappingProxyType(dict(counters.finished)),
    )


def _pages(tiers: Tiers) -> tuple[int, int, int]:
    """Pages of adapters, of those among them that somebody uses, and of running sequences."""
    held = [adapter for adapter in tiers.adapters.values() if adapter.first_page >= 0]
    adapters = sum(a.pages for a in held)
    loose = tiers.pool.pages_free + tiers.blocks.pages_idle
    return adapters, sum(a.pages for a in held if a.users), tiers.pool.pages - loose - adapters


def _by_tier(tiers: Tiers) -> Mapping[Tier, int]:
    counted = Counter(adapter.tier for adapter in tiers.adapters.values())
    return MappingProxyType({tier: counted[tier] for tier in Tier})


def _names_on_device(tiers: Tiers) -> tuple[AdapterKey, ...]:
    on_device = [adapter for adapter in tiers.adapters.values() if adapter.tier is Tier.DEVICE]
    return tuple(name for adapter in on_device for name in adapter.names)
