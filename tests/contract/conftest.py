"""What both kinds of process tell Prometheus, by name."""

import re

import pytest
from prometheus_client import CollectorRegistry

import adex_worker.metrics as worker_metrics
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.limits import Limits
from adex_scheduler.core.state import SchedulerCore
from adex_scheduler.metrics import DIALECTS, SchedulerMetrics, Sources
from adex_worker.run.runner import RunnerStatistics

INFO = WorkerInfo("m", "A", "float32", "cpu", *range(1, 13), ())


def _of_a_scheduler() -> set[str]:
    core = SchedulerCore(INFO, Limits())
    sources = Sources(core.statistics, lambda: INFO)
    told = SchedulerMetrics(sources, dialects=tuple(DIALECTS)).exposition().decode()
    return set(re.findall(r"^# HELP (\S+)", told, re.MULTILINE))


def _of_a_worker(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    registries: list[CollectorRegistry] = []
    monkeypatch.setattr(
        worker_metrics, "start_http_server", lambda _, registry: registries.append(registry)
    )
    statistics = RunnerStatistics(0, 0, 0, 0, 0, 0.0)
    worker_metrics.serve_metrics(
        worker_metrics.Sources(INFO, lambda: statistics, lambda: 0, tuple), 1
    )
    suffix = {"counter": "_total", "info": "_info"}
    return {m.name + suffix.get(m.type, "") for one in registries for m in one.collect()}


@pytest.fixture
def metric_names(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every metric there is, aliases included."""
    return _of_a_scheduler() | _of_a_worker(monkeypatch)
