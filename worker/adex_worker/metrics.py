"""What a worker tells Prometheus: read from snapshots when it is asked, so a step pays nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from adex_proto.errors import ValidationError
from adex_proto.outcome import WorkerInfo
from adex_worker.run.runner import RunnerStatistics
from adex_worker.service.commands import CommandStatistics


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the numbers come from; both functions may be called on any thread."""

    info: WorkerInfo
    runner: Callable[[], RunnerStatistics]
    adapter_pages: Callable[[], int]
    commands: Callable[[], tuple[CommandStatistics, ...]]


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
        yield from _command_metrics(self._sources.commands())


def _command_metrics(commands: tuple[CommandStatistics, ...]) -> Iterable[Metric]:
    ended = CounterMetricFamily(
        "adex_worker_commands", "Adapter commands that ended", labels=["command", "outcome"]
    )
    seconds = CounterMetricFamily(
        "adex_worker_command_seconds", "Seconds of work on adapter commands", labels=["command"]
    )
    under_way = GaugeMetricFamily(
        "adex_worker_commands_under_way", "Adapter commands on a thread", labels=["command"]
    )
    for one in commands:
        ended.add_metric([one.kind, "done"], one.done)
        ended.add_metric([one.kind, "failed"], one.failed)
        seconds.add_metric([one.kind], one.seconds)
        under_way.add_metric([one.kind], one.taken - one.done - one.failed)
    yield from (ended, seconds, under_way)


def serve_metrics(sources: Sources, port: int) -> None:
    """Answer Prometheus on `port`, on a thread of its own.

    Raises ValidationError when it cannot be listened on.
    """
    registry = CollectorRegistry()
    registry.register(_WorkerCollector(sources))
    ProcessCollector(registry=registry)
    try:
        start_http_server(port, registry=registry)
    except (OSError, OverflowError) as error:
        raise ValidationError(
            f"--metrics-port {port} cannot be listened on: {error}",
            field="metrics_port",
            remedy="Give a free port, or 0 for none",
        ) from error
