"""What a scheduler tells Prometheus: what callers saw, and the core's picture when asked.

No label names an adapter or a tenant: there may be thousands, and some are private.
"""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adex_proto.adapter import Tier
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.statistics import CoreStatistics

# From a token of a small model to a generation of minutes.
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_NEXT_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)

_EVENTS = (
    ("steps", "Steps the worker answered", "steps"),
    ("preemptions", "Sequences set aside for want of pages", "preemptions"),
    ("dropped_tokens", "Tokens computed after their sequence had ended", "dropped_tokens"),
    ("prefix_hit_blocks", "KV blocks reused instead of computed", "prefix_hits"),
    ("adapter_fetches", "Adapters resolved and brought to disk", "fetches"),
    ("adapter_fetch_failures", "Adapters that could not be fetched", "fetch_failures"),
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
    ("adapter_names", "Adapter names remembered", "names"),
)


class _CoreCollector(Collector):
    """Reads a snapshot of the core for each scrape."""

    def __init__(
        self,
        statistics: Callable[[], CoreStatistics | None],
        info: Callable[[], WorkerInfo | None],
    ) -> None:
        self._statistics = statistics
        self._info = info

    def collect(self) -> Iterable[Metric]:
        """The metrics of one scrape; none of the core's until a worker has said hello."""
        core, worker = self._statistics(), self._info()
        if core is None or worker is None:
            yield GaugeMetricFamily("adex_worker_connected", _GAUGES[0][1], value=0)
            return
        for name, text, field in _EVENTS:
            yield CounterMetricFamily(f"adex_{name}", text, value=getattr(core, field))
        for name, text, field in _GAUGES:
            yield GaugeMetricFamily(f"adex_{name}", text, value=float(getattr(core, field)))
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
        yield from _ends(core)


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


class SchedulerMetrics:
    """The meters that the fronts report to, and the exposition of everything."""

    def __init__(
        self,
        statistics: Callable[[], CoreStatistics | None],
        info: Callable[[], WorkerInfo | None],
    ) -> None:
        # When a counter was born doubles the number of series and tells nobody anything.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(_CoreCollector(statistics, info))
        self._requests = Counter(
            "adex_requests",
            "Requests answered, by route and stable code",
            ["endpoint", "code"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "adex_request_duration_seconds",
            "From a request's arrival to the end of its answer",
            ["endpoint"],
            buckets=_REQUEST_SECONDS,
            registry=self._registry,
        )
        self._first = self._histogram(
            "adex_time_to_first_token_seconds",
            "From a request's arrival to its first token",
            _FIRST_TOKEN_SECONDS,
        )
        self._next = self._histogram(
            "adex_inter_token_seconds", "Between two tokens of a sequence", _NEXT_TOKEN_SECONDS
        )
        self._prompt_tokens = Counter(
            "adex_prompt_tokens", "Prompt tokens of ended sequences", registry=self._registry
        )
        self._new_tokens = Counter(
            "adex_generated_tokens", "Tokens given to callers", registry=self._registry
        )

    def request_answered(self, endpoint: str, code: str, seconds: float) -> None:
        """One request is over; `code` is "ok" or an error's stable code."""
        self._requests.labels(endpoint, code).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """A sequence's first token came this long after its request."""
        self._first.observe(seconds)

    def next_token(self, seconds: float) -> None:
        """A sequence's next token came this long after the one before."""
        self._next.observe(seconds)

    def tokens(self, prompt: int, generated: int) -> None:
        """A sequence ended, with so many tokens read and written."""
        self._prompt_tokens.inc(prompt)
        self._new_tokens.inc(generated)

    def exposition(self) -> bytes:
        """Everything measured, in Prometheus' text format."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)
