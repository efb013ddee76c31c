"""What Prometheus reads: its own parser accepts it, and no label names an adapter or a tenant."""

from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

from adex_proto.adapter import Tier
from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.statistics import CoreStatistics
from adex_scheduler.metrics import SchedulerMetrics

INFO = WorkerInfo(
    "m", "Llama", "float32", "cpu", 2, 320, 256, 16, 1024, 64, 63, 1, 1, 64, 256, 16, (0,)
)
COUNTS = {
    name: 0
    for name, kind in CoreStatistics.__annotations__.items()
    if name not in ("connected", "adapters_by_tier", "refused", "failed", "finished")
}


def statistics() -> CoreStatistics:
    return CoreStatistics(
        **{
            **COUNTS,
            "pages_adapters": 3,
            "pages_free": 40,
            "pages_kv": 20,
            "pages_prefix": 1,
            "steps": 17,
            "host_bytes": 512,
        },
        connected=True,
        adapters_by_tier=MappingProxyType({Tier.DEVICE: 2, Tier.DISK: 5}),
        refused=MappingProxyType({"adapter_not_found": 4}),
        failed=MappingProxyType({}),
        finished=MappingProxyType({"length": 9}),
    )


def samples(metrics: SchedulerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def test_the_cores_picture_is_told_by_owner_and_tier() -> None:
    told = samples(SchedulerMetrics(statistics, lambda: INFO))
    assert told["adex_pool_pages", (("owner", "adapters"),)] == 3
    assert told["adex_pool_pages", (("owner", "free"),)] == 40
    assert told["adex_adapters", (("tier", "device"),)] == 2
    assert told["adex_adapters", (("tier", "host"),)] == 0
    assert told["adex_adapter_bytes", (("tier", "device"),)] == 3 * 1024
    assert told["adex_adapter_bytes", (("tier", "host"),)] == 512
    assert told["adex_steps_total", ()] == 17
    assert told["adex_finished_sequences_total", (("reason", "length"),)] == 9
    assert told["adex_refused_sequences_total", (("code", "adapter_not_found"),)] == 4
    assert told["adex_worker_connected", ()] == 1


def test_what_callers_saw_is_counted() -> None:
    metrics = SchedulerMetrics(lambda: None, lambda: None)
    metrics.request_answered("/generate", "ok", 0.3)
    metrics.first_token(0.02)
    metrics.next_token(0.004)
    metrics.tokens(12, 5)
    told = samples(metrics)
    labels = (("code", "ok"), ("endpoint", "/generate"))
    assert told["adex_requests_total", labels] == 1
    assert told["adex_time_to_first_token_seconds_count", ()] == 1
    assert told["adex_inter_token_seconds_sum", ()] == 0.004
    assert told["adex_prompt_tokens_total", ()] == 12
    assert told["adex_generated_tokens_total", ()] == 5
    assert told["adex_worker_connected", ()] == 0


def test_no_label_could_name_an_adapter_or_a_tenant() -> None:
    metrics = SchedulerMetrics(statistics, lambda: INFO)
    metrics.request_answered("/generate", "ok", 0.3)
    names = {label for _, labels in samples(metrics) for label, _ in labels}
    assert names <= {"owner", "tier", "reason", "code", "endpoint", "le"}
