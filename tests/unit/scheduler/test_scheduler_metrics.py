"""What Prometheus reads: its own parser accepts it, and no label names an adapter or a tenant."""

import time
from types import MappingProxyType

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import StepOutcome, WorkerInfo
from adex_proto.plan import Span, StepPlan
from adex_scheduler.core.statistics import CoreStatistics
from adex_scheduler.engine import Journey, Move, MoveKind, Start
from adex_scheduler.metrics import DIALECTS, SchedulerMetrics, Sources

INFO = WorkerInfo(
    "m", "Llama", "float32", "cpu", 2, 320, 256, 16, 1024, 64, 63, 1, 1, 64, 256, 16, (0,)
)
PARTS = ("validation", "queue", "prefill", "decode", "inference", "end_to_end")
COUNTS = {
    name: 0
    for name, kind in CoreStatistics.__annotations__.items()
    if name
    not in ("connected", "adapters_by_tier", "on_device", "links", "refused", "failed", "finished")
}


def statistics() -> CoreStatistics:
    return CoreStatistics(
        **{
            **COUNTS,
            "pages_adapters": 3,
            "pages_free": 40,
            "pages_kv": 20,
            "pages_prefix": 1,
            "pages": 64,
            "pages_held": 16,
            "prefix_hits": 3,
            "paged_in_bytes": 4096,
            "steps": 17,
            "host_bytes": 512,
        },
        connected=True,
        adapters_by_tier=MappingProxyType({Tier.DEVICE: 2, Tier.DISK: 5}),
        on_device=(AdapterKey("", "local", "tone"),),
        links=MappingProxyType({}),
        refused=MappingProxyType({"adapter_not_found": 4}),
        failed=MappingProxyType({"worker_lost": 2}),
        finished=MappingProxyType({"length": 9, "eos_token": 4, "stop_sequence": 1}),
    )


SOURCES = Sources(statistics, lambda: INFO, lambda: 1.5, lambda: (["tone", "a,b"], ["cold"]))


def samples(metrics: SchedulerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.exposition().decode())
        for sample in family.samples
    }


def test_the_cores_picture_is_told_by_owner_and_tier() -> None:
    told = samples(SchedulerMetrics(SOURCES))
    assert told["adex_pool_pages", (("owner", "adapters"),)] == 3
    assert told["adex_pool_pages", (("owner", "free"),)] == 40
    assert told["adex_adapters", (("tier", "device"),)] == 2
    assert told["adex_adapters", (("tier", "host"),)] == 0
    assert told["adex_adapter_bytes", (("tier", "device"),)] == 3 * 1024
    assert told["adex_adapter_bytes", (("tier", "host"),)] == 512
    assert told["adex_steps_total", ()] == 17
    assert told["adex_kv_cache_usage_ratio", ()] == 0.25
    assert told["adex_longest_wait_seconds", ()] == 1.5
    assert told["adex_prefix_hit_tokens_total", ()] == 48
    assert told["adex_adapter_moved_bytes_total", (("link", "host_to_device"),)] == 4096
    assert told["adex_finished_sequences_total", (("reason", "length"),)] == 9
    assert told["adex_refused_sequences_total", (("code", "adapter_not_found"),)] == 4
    assert told["adex_worker_connected", ()] == 1


# A sequence whose adapter came from the hub: 2 s of fetching, 1 s for the rest, 4 tokens.
JOURNEY = Journey(
    submitted_s=10.0,
    start=Start.REMOTE,
    moves=(
        Move(MoveKind.FETCH, 10.0, 12.0, "hub"),
        Move(MoveKind.STAGE, 12.0, 12.5),
        Move(MoveKind.PAGE_IN, 12.5, 13.0),
    ),
    admitted_s=13.5,
    admissions=1,
    first_s=13.75,
    ended_s=16.75,
    prompt_tokens=12,
    generated=4,
    end="length",
)


def reported(*dialects: str) -> SchedulerMetrics:
    metrics = SchedulerMetrics(SOURCES, dialects=dialects, model_name="base")
    metrics.request_answered("/generate", "ok", 7.0)
    metrics.submitted(JOURNEY)
    for move in JOURNEY.moves:
        metrics.moved(move)
    metrics.planned(StepPlan(1, (), (Span(1, 0, 12, True), Span(2, 5, 1, True))))
    metrics.computed(StepOutcome(1, seconds=0.02))
    metrics.first_token(4.0, JOURNEY)
    for _ in range(3):
        metrics.next_token(1.0)
    metrics.sequence_ended(7.0, JOURNEY, 4)
    return metrics


def test_what_callers_saw_is_counted() -> None:
    told = samples(reported())
    labels = (("code", "ok"), ("endpoint", "/generate"))
    assert told["adex_requests_total", labels] == 1
    remote = (("start", "remote"),)
    assert told["adex_sequence_starts_total", remote] == 1
    assert told["adex_sequence_starts_total", (("start", "device"),)] == 0
    assert told["adex_time_to_first_token_seconds_sum", remote] == 4.0
    assert told["adex_adapter_wait_seconds_sum", remote] == 3.0
    assert told["adex_inter_token_seconds_count", ()] == 3
    assert told["adex_prompt_tokens_total", ()] == 12
    assert told["adex_generated_tokens_total", ()] == 4


def test_the_parts_of_a_sequences_time_add_up() -> None:
    told = samples(reported())
    parts = {part: told[f"adex_{part}_seconds_sum", ()] for part in PARTS}
    assert parts == {
        "validation": 0.25,
        "queue": 3.5,
        "prefill": 0.25,
        "decode": 3.0,
        "inference": 3.25,
        "end_to_end": 7.0,
    }
    assert sum(parts[part] for part in PARTS[:4]) == parts["end_to_end"]
    assert told["adex_time_per_output_token_seconds_sum", ()] == 1.0


def test_loads_are_told_by_source_and_steps_by_what_they_hold() -> None:
    metrics = reported()
    metrics.moved(Move(MoveKind.FETCH, 1.0, 2.0, "hub", "adapter_not_found"))
    metrics.moved(Move(MoveKind.FETCH, 1.0, 2.0, "something a caller wrote"))
    told = samples(metrics)
    assert told["adex_adapter_fetch_seconds_sum", (("source", "hub"),)] == 3.0
    assert told["adex_adapter_fetch_seconds_count", (("source", "other"),)] == 1
    failed = (("code", "adapter_not_found"), ("source", "hub"))
    assert told["adex_adapter_fetch_failures_total", failed] == 1
    assert told["adex_adapter_page_in_seconds_sum", ()] == 0.5
    assert told["adex_step_tokens_sum", ()] == 13
    assert told["adex_step_sequences_sum", ()] == 2
    assert told["adex_step_seconds_sum", ()] == 0.02


def test_no_label_could_name_an_adapter_or_a_tenant() -> None:
    names = {label for _, labels in samples(reported()) for label, _ in labels}
    known = {"owner", "tier", "reason", "code", "endpoint", "le", "start", "source", "link", "move"}
    assert names <= known


def test_a_gateway_for_vllm_reads_what_it_knows() -> None:
    told = samples(reported("vllm"))
    model = (("engine", "0"), ("model_name", "base"))
    assert told["vllm:num_requests_running", model] == 0
    assert told["vllm:kv_cache_usage_perc", model] == 0.25
    assert told["vllm:gpu_cache_usage_perc", model] == 0.25
    assert told["vllm:time_to_first_token_seconds_count", model] == 1
    assert told["vllm:time_to_first_token_seconds_bucket", (model[0], ("le", "4.0"), model[1])] == 1
    assert told["vllm:time_to_first_token_seconds_bucket", (model[0], ("le", "2.0"), model[1])] == 0
    assert told["vllm:prompt_tokens_total", model] == 12
    assert (
        told["vllm:request_success_total", (model[0], ("finished_reason", "stop"), model[1])] == 5
    )
    config = (("block_size", "16"), ("num_gpu_blocks", "64"))
    assert told["vllm:cache_config_info", config] == 1


def test_which_adapters_are_resident_is_one_series_whose_value_is_the_time() -> None:
    found = {
        labels: value
        for (name, labels), value in samples(reported("vllm")).items()
        if name == "vllm:lora_requests_info"
    }
    # A name that the list's own commas would break is left out.
    labels = (
        ("max_lora", "63"),
        ("running_lora_adapters", "tone"),
        ("waiting_lora_adapters", "cold"),
    )
    assert list(found) == [labels]
    assert abs(found[labels] - time.time()) < 60


@pytest.mark.parametrize(("prefix", "queue"), [("tgi", "queue_size"), ("lorax", "queue_length")])
def test_dashboards_for_tgi_and_lorax_read_what_they_know(prefix: str, queue: str) -> None:
    told = samples(reported(prefix))
    assert told[f"{prefix}_request_count", ()] == 1
    assert told[f"{prefix}_request_success", ()] == 14
    assert told[f"{prefix}_request_failure", (("err", "adapter_not_found"),)] == 4
    assert told[f"{prefix}_request_failure", (("err", "worker_lost"),)] == 2
    assert told[f"{prefix}_{queue}", ()] == 0
    assert told[f"{prefix}_request_queue_duration_sum", ()] == 3.5


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_alias_stands_for_a_metric_there_is(dialect: str) -> None:
    told = {name for name, _ in samples(reported(dialect))}
    ends = ("", "_total", "_sum")
    missing = [
        alias.name
        for alias in DIALECTS[dialect].aliases
        if not any(alias.name + end in told for end in ends)
    ]
    assert not missing


def test_without_a_flag_nothing_is_told_twice() -> None:
    told = {name for name, _ in samples(reported())}
    assert not [name for name in told if not name.startswith(("adex_", "process_"))]
