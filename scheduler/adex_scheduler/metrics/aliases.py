"""The same numbers under other servers' names, for their gateways, autoscalers and dashboards.

An alias is a metric of ours renamed: its labels are mapped or summed away. Nothing is measured
twice, and the histograms keep our buckets.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from adex_scheduler.metrics.snapshot import Sources

# Names of one info series; a device holds fewer adapters than anyone would list.
_NAMES_MAX = 512


@dataclass(frozen=True, slots=True)
class Alias:
    """`name` is told as the sum of our metrics `of`.

    `labels` maps the labels that are kept to their new names, and `values` what they said.
    """

    name: str
    of: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    values: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Dialect:
    """All that one server tells which we can tell as well.

    `counter_suffix` ends the names of its counters. `lora` says whether it tells which adapters
    are resident.
    """

    aliases: tuple[Alias, ...]
    counter_suffix: str
    lora: bool


def _one(name: str, of: str) -> Alias:
    return Alias(name, (of,))


_VLLM = Dialect(
    aliases=(
        _one("vllm:num_requests_running", "adex_running_sequences"),
        _one("vllm:num_requests_waiting", "adex_waiting_sequences"),
        _one("vllm:kv_cache_usage_perc", "adex_kv_cache_usage_ratio"),
        _one("vllm:gpu_cache_usage_perc", "adex_kv_cache_usage_ratio"),
        _one("vllm:num_preemptions", "adex_preemptions"),
        _one("vllm:prompt_tokens", "adex_prompt_tokens"),
        _one("vllm:generation_tokens", "adex_generated_tokens"),
        _one("vllm:prefix_cache_queries", "adex_prompt_tokens"),
        _one("vllm:prefix_cache_hits", "adex_prefix_hit_tokens"),
        Alias(
            "vllm:request_success",
            ("adex_finished_sequences",),
            {"reason": "finished_reason"},
            {"eos_token": "stop", "stop_sequence": "stop"},
        ),
        _one("vllm:iteration_tokens_total", "adex_step_tokens"),
        _one("vllm:time_to_first_token_seconds", "adex_time_to_first_token_seconds"),
        _one("vllm:inter_token_latency_seconds", "adex_inter_token_seconds"),
        _one("vllm:time_per_output_token_seconds", "adex_inter_token_seconds"),
        _one("vllm:request_time_per_output_token_seconds", "adex_time_per_output_token_seconds"),
        _one("vllm:e2e_request_latency_seconds", "adex_end_to_end_seconds"),
        _one("vllm:request_queue_time_seconds", "adex_queue_seconds"),
        _one("vllm:request_prefill_time_seconds", "adex_prefill_seconds"),
        _one("vllm:request_decode_time_seconds", "adex_decode_seconds"),
        _one("vllm:request_inference_time_seconds", "adex_inference_seconds"),
        _one("vllm:request_prompt_tokens", "adex_sequence_prompt_tokens"),
        _one("vllm:request_generation_tokens", "adex_sequence_generated_tokens"),
    ),
    counter_suffix="_total",
    lora=True,
)


def _tgi(prefix: str, queue: str) -> Dialect:
    """TGI's names, which LoRAX kept but for its own prefix and the queue's."""
    return Dialect(
        aliases=(
            _one(f"{prefix}_request_count", "adex_sequence_starts"),
            _one(f"{prefix}_request_success", "adex_finished_sequences"),
            Alias(
                f"{prefix}_request_failure",
                ("adex_refused_sequences", "adex_failed_sequences"),
                {"code": "err"},
            ),
            _one(f"{prefix}_{queue}", "adex_waiting_sequences"),
            _one(f"{prefix}_batch_current_size", "adex_running_sequences"),
            _one(f"{prefix}_batch_inference_count", "adex_steps"),
            _one(f"{prefix}_batch_inference_duration", "adex_step_seconds"),
            _one(f"{prefix}_batch_next_size", "adex_step_sequences"),
            _one(f"{prefix}_request_duration", "adex_end_to_end_seconds"),
            _one(f"{prefix}_request_validation_duration", "adex_validation_seconds"),
            _one(f"{prefix}_request_queue_duration", "adex_queue_seconds"),
            _one(f"{prefix}_request_inference_duration", "adex_inference_seconds"),
            _one(
                f"{prefix}_request_mean_time_per_token_duration",
                "adex_time_per_output_token_seconds",
            ),
            _one(f"{prefix}_request_input_length", "adex_sequence_prompt_tokens"),
            _one(f"{prefix}_request_generated_tokens", "adex_sequence_generated_tokens"),
        ),
        counter_suffix="",
        lora=False,
    )


DIALECTS: Mapping[str, Dialect] = {
    "vllm": _VLLM,
    "tgi": _tgi("tgi", "queue_size"),
    "lorax": _tgi("lorax", "queue_length"),
}


class AliasCollector(Collector):
    """Tells what a registry holds in another server's words."""

    def __init__(
        self,
        registry: CollectorRegistry,
        dialect: str,
        sources: Sources,
        model_name: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._dialect = DIALECTS[dialect]
        self._sources = sources
        self._fixed = {"model_name": model_name, "engine": "0"} if self._dialect.lora else {}
        self._clock = clock
        # A registry of its own: the other one would ask this collector about itself.
        self._own = CollectorRegistry(auto_describe=False)
        self._own.register(self)

    def exposition(self) -> bytes:
        """The aliases, in Prometheus' text format."""
        told: bytes = generate_latest(self._own)
        return told

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the other registry."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The metrics of one scrape."""
        families = {family.name: family for family in self._registry.collect()}
        for alias in self._dialect.aliases:
            found = [families[name] for name in alias.of if name in families]
            if found:
                yield self._renamed(alias, found)
        if self._dialect.lora:
            yield from self._lora_info()
            yield from self._cache_info()

    def _renamed(self, alias: Alias, families: Sequence[Metric]) -> Metric:
        kind: Any = families[0].type
        suffix = ""
        if kind == "counter":
            suffix = self._dialect.counter_suffix
            # The library insists on _total for counters; without it the type is left unsaid.
            kind = kind if suffix else "unknown"
        totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in families:
            for sample in family.samples:
                end = sample.name.removeprefix(family.name)
                labels = {
                    alias.labels.get(label, label): alias.values.get(value, value)
                    for label, value in sample.labels.items()
                    if label in alias.labels or label == "le"
                }
                place = (suffix if end == "_total" else end, tuple(labels.items()))
                totals[place] = totals.get(place, 0.0) + sample.value
        metric = Metric(alias.name, families[0].documentation, kind)
        for (end, labelled), value in totals.items():
            metric.add_sample(alias.name + end, {**self._fixed, **dict(labelled)}, value)
        return metric

    def _lora_info(self) -> Iterable[Metric]:
        """Exactly one series, whose value is the time: readers take the newest they find.

        Names that the list's commas would break are left out.
        """
        info = self._sources.info()
        resident, waiting = self._sources.names()
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters on the device, and adapters that sequences wait for",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        slots = str(info.slots_max if info else 0)
        family.add_metric([slots, _listed(resident), _listed(waiting)], self._clock())
        yield family

    def _cache_info(self) -> Iterable[Metric]:
        info = self._sources.info()
        if info is None:
            return
        family = GaugeMetricFamily(
            "vllm:cache_config_info",
            "The pool of KV blocks, which adapters share",
            labels=["block_size", "num_gpu_blocks"],
        )
        family.add_metric([str(info.block_tokens), str(info.pages)], 1.0)
        yield family


def _listed(names: Sequence[str]) -> str:
    sayable = [name for name in names if name and "," not in name and name == name.strip()]
    return ",".join(sorted(sayable[:_NAMES_MAX]))
