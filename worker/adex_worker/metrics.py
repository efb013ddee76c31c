"""What a worker tells Prometheus: read from snapshots when it is asked, so a step pays nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from adex_proto.errors import ValidationError
from adex_proto.outcome import WorkerInfo
from adex_worker.run.runner import RunnerStatistics


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from; both functions may be called on any thread."""

    info: WorkerInfo
    runner: Callable[[], RunnerStatistics]
    adapter_pages: Callable[[], int]


class _WorkerCollector(Collector):
    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def collect(self) -> Iterable[Metric]:
        info, run = self._sources.info, self._sources.runner()
        about = InfoMetricFamily("adex_worker", "What this worker serves, and on what")
        labels = {
            "model_id": info.model_id,
            "architecture": info.architecture,
            "dtype": info.dtype,
            "device": info.device,
        }
        about.add_metric((), labels)
        yield about
        for name, text, count in (
            ("steps", "Steps computed", run.steps),
            ("step_rows", "Positions computed", run.rows),
            ("tokens", "Tokens sampled", run.tokens),
            ("sequence_failures", "Sequences a step could not serve", run.failures),
            ("step_seconds", "Seconds spent in steps", run.seconds),
        ):
            yield CounterMetricFamily(f"adex_worker_{name}", text, value=count)
        for name, text, value in (
            ("sequences", "Sequences known", run.sequences),
            ("pool_pages", "Pages of the device pool", info.pages),
            ("pool_adapter_pages", "Pages that hold adapters", self._sources.adapter_pages()),
            ("pool_page_bytes", "Bytes of one page", info.page_bytes),
        ):
            yield GaugeMetricFamily(f"adex_worker_{name}", text, value=value)


def serve_metrics(sources: Sources, port: int) -> None:
    """Answer Prometheus on `port`, on a thread of its own.

    Raises ValidationError when it cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(_WorkerCollector(sources))
    try:
        start_http_server(port, registry=registry)
    except (OSError, OverflowError) as error:
        raise ValidationError(
            f"--metrics-port {port} cannot be listened on: {error}",
            field="metrics_port",
            remedy="Give a free port, or 0 for none",
        ) from error
