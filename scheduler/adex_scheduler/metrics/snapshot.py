"""The core's picture as metrics: read when Prometheus asks, so that a step pays nothing."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adex_proto.adapter import Tier
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.statistics import CoreStatistics

_EVENTS = (
    ("steps", "Steps the worker answered", "steps"),
    ("preemptions", "Sequences set aside for want of pages", "preemptions"),
    ("dropped_tokens", "Tokens computed after their sequence had ended", "dropped_tokens"),
    ("prefix_hit_blocks", "KV blocks reused instead of computed", "prefix_hits"),
    ("adapter_stages", "Adapters read into host memory", "stages"),
    ("adapter_page_ins", "Adapters copied to the device", "page_ins"),
    ("adapter_move_failures", "Moves that did not arrive", "move_failures"),
)
_GAUGES = (
    ("worker_connected", "Whether a worker is connected", "connected"),
    ("sequences", "Sequences known", "sequences"),
    ("running_sequences", "Sequences in steps", "running"),
    ("waiting_sequences", "Sequences waiting to begin", "waiting"),
    ("waiting_for_adapter_sequences", "Of those, waiting for an adapter", "waiting_for_adapter"),
    ("steps_in_flight", "Steps sent and not answered", "steps_in_flight"),
    ("slots_used", "Adapters that steps may address", "slots_used"),
    ("pool_largest_free_run_pages", "The longest run of free pages", "largest_run"),
    ("running_adapters", "Adapters that sequences in steps use", "adapters_running"),
    ("adapter_names", "Adapter names remembered", "names"),
)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers of a scrape come from; each is called on the event loop.

    `names` are the public names of the adapters on the device, and of those that sequences wait
    for: only aliases for other servers' dashboards show them.
    """

    statistics: Callable[[], CoreStatistics | None]
    info: Callable[[], WorkerInfo | None]
    longest_wait_s: Callable[[], float] = lambda: 0.0
    names: Callable[[], tuple[Sequence[str], Sequence[str]]] = lambda: ((), ())


class CoreCollector(Collector):
    """Reads a snapshot of the core for each scrape."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        """The metrics of one scrape; none of the core's until a worker has said hello."""
        core, worker = self._sources.statistics(), self._sources.info()
        if core is None or worker is None:
            yield GaugeMetricFamily("adex_worker_connected", _GAUGES[0][1], value=0)
            return
        for name, text, field in _EVENTS:
            yield CounterMetricFamily(f"adex_{name}", text, value=getattr(core, field))
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(f"adex_{name}", text, value=float(getattr(core, field)))
        longest_s = self._sources.longest_wait_s()
        yield GaugeMetricFamily(
            "adex_longest_wait_seconds", "Of the sequences waiting to begin", value=longest_s
        )
        yield GaugeMetricFamily(
            "adex_kv_cache_usage_ratio",
            "Share of the pool that running sequences and adapters in use hold",
            value=core.pages_held / max(core.pages, 1),
        )
        yield _labelled(
            GaugeMetricFamily("adex_pool_pages", "Pages of the device pool", labels=["owner"]),
            {
                "adapters": core.pages_adapters,
                "free": core.pages_free,
                "kv": core.pages_kv,
                "prefix": core.pages_prefix,
            },
        )
        yield _labelled(
            GaugeMetricFamily("adex_adapters", "Adapters by their nearest tier", labels=["tier"]),
            {tier.name.lower(): core.adapters_by_tier.get(tier, 0) for tier in Tier},
        )
        yield _labelled(
            GaugeMetricFamily("adex_adapter_bytes", "Bytes of adapters", labels=["tier"]),
            {
                "device": core.pages_adapters * worker.page_bytes,
                "host": core.host_bytes,
                "disk": core.disk_bytes,
            },
        )
        yield from _moves(core)
        yield CounterMetricFamily(
            "adex_prefix_hit_tokens",
            "Prompt tokens whose KV blocks were reused",
            value=core.prefix_hits * worker.block_tokens,
        )
        yield from _ends(core)


def _moves(core: CoreStatistics) -> Iterable[Metric]:
    yield _labelled(
        GaugeMetricFamily("adex_adapter_moves_in_flight", "Moves under way", labels=["move"]),
        {
            "fetch": core.fetches_in_flight,
            "stage": core.stages_in_flight,
            "page_in": core.page_ins_in_flight,
        },
    )
    yield _labelled(
        CounterMetricFamily(
            "adex_adapter_moved_bytes", "Bytes of adapters copied over a link", labels=["link"]
        ),
        {"disk_to_host": core.staged_bytes, "host_to_device": core.paged_in_bytes},
    )


def _ends(core: CoreStatistics) -> Iterable[Metric]:
    yield _labelled(
        CounterMetricFamily(
            "adex_adapter_evictions", "Adapters sent away from a tier", labels=["tier"]
        ),
        {
            "device": core.device_evictions,
            "host": core.host_evictions,
            "disk": core.disk_evictions,
        },
    )
    for name, text, label, counts in (
        ("finished_sequences", "Sequences that ended of themselves", "reason", core.finished),
        ("refused_sequences", "Sequences refused before any token", "code", core.refused),
        ("failed_sequences", "Sequences that failed after a token", "code", core.failed),
    ):
        yield _labelled(CounterMetricFamily(f"adex_{name}", text, labels=[label]), counts)
    cancelled = "Sequences whose caller went away"
    yield CounterMetricFamily("adex_cancelled_sequences", cancelled, value=core.cancelled)


def _labelled(
    family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]
) -> Metric:
    for label in sorted(values):
        family.add_metric([label], values[label])
    return family
