"""What Prometheus reads of a worker is what its snapshots say, in Prometheus' own words."""

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from adex_proto.errors import ValidationError
from adex_proto.outcome import WorkerInfo
from adex_worker.metrics import Sources, serve_metrics
from adex_worker.run.runner import RunnerStatistics
from adex_worker.service.commands import CommandStatistics

INFO = WorkerInfo('a/"model"', "A", "float32", "cpu", *range(1, 13), ())
RUN = RunnerStatistics(sequences=3, steps=10, rows=400, tokens=70, failures=2, seconds=1.5)

COMMANDS = (CommandStatistics("fetch", 9, 5, 1, 2.5),)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_scrape_reads_the_snapshots() -> None:
    port = free_port()
    serve_metrics(Sources(INFO, lambda: RUN, lambda: 17, lambda: COMMANDS), port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
        families = text_string_to_metric_families(reply.read().decode())
    found = [sample for family in families for sample in family.samples]
    samples = {sample.name: sample for sample in found}
    assert samples["adex_worker_info"].labels["model_id"] == INFO.model_id
    values = {name: sample.value for name, sample in samples.items()}
    assert values["adex_worker_steps_total"] == 10
    assert values["adex_worker_tokens_total"] == 70
    assert values["adex_worker_sequence_failures_total"] == 2
    assert values["adex_worker_step_seconds_total"] == 1.5
    assert values["adex_worker_sequences"] == 3
    assert values["adex_worker_pool_adapter_pages"] == 17
    assert values["adex_worker_command_seconds_total"] == 2.5
    assert values["adex_worker_commands_under_way"] == 3
    ended = {s.labels["outcome"]: s.value for s in found if s.name == "adex_worker_commands_total"}
    assert ended == {"done": 5, "failed": 1}
    assert values["process_resident_memory_bytes"] > 0


def test_a_port_that_is_taken_is_the_operators_to_mend() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(ValidationError, match="cannot be listened on"):
            serve_metrics(
                Sources(INFO, lambda: RUN, lambda: 17, lambda: COMMANDS), taken.getsockname()[1]
            )
