"""Whole runs in small: what must hold of any system, and who cannot beat whom."""

from dataclasses import replace

import pytest

from adex_proto.errors import ValidationError
from adex_scheduler.simulate.loop import Course
from adex_scheduler.simulate.machine import (
    Machine,
    Memory,
    StepCost,
    machine_text,
    read_machine,
    shipped_machines,
)
from adex_scheduler.simulate.result import RunResult, mix_distance
from adex_scheduler.simulate.systems import SYSTEMS, simulate
from adex_scheduler.simulate.trace import TracedRequest
from adex_scheduler.simulate.workloads import RANK_SETS, Load, zipf

H200 = read_machine("h200-llama-8b")
# Room for about a fifth of a hundred mixed adapters on the device, and for half of them beside it.
SMALL = replace(H200, memory=Memory(device_bytes=12e9, host_bytes=14e9, disk_bytes=4e12))
TRACE = zipf(Load(100, 25.0, 12.0, seed=5, ranks=RANK_SETS["mix"]))


@pytest.fixture(scope="module")
def runs() -> dict[str, RunResult]:
    return {name: simulate(name, SMALL, TRACE) for name in SYSTEMS}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_request_is_answered_once_and_in_full(name: str, runs: dict[str, RunResult]) -> None:
    records = runs[name].records
    assert [one.number for one in records] == list(range(len(TRACE)))
    assert all(one.finished_at is not None and not one.error for one in records)
    assert all(one.arrived_at < one.first_at <= one.finished_at for one in records)


def test_equal_inputs_give_equal_runs() -> None:
    assert simulate("adex", SMALL, TRACE).records == simulate("adex", SMALL, TRACE).records


def test_nobody_is_faster_than_having_everything_resident(runs: dict[str, RunResult]) -> None:
    ideal = runs["ideal"].figures()
    for name in set(SYSTEMS) - {"ideal"}:
        # The others plan one step ahead less, which gains them a step on the first token.
        assert runs[name].figures().ttft_p99_s > ideal.ttft_p99_s - 0.03, name


def test_loads_between_steps_cost_more_than_loads_beside_them(runs: dict[str, RunResult]) -> None:
    ours, blocking = runs["adex"].figures(), runs["sync-lru"].figures()
    assert ours.blocked_share == 0 < blocking.blocked_share
    assert ours.ttft_p99_s < blocking.ttft_p99_s / 3


def test_foresight_loads_less_than_recency(runs: dict[str, RunResult]) -> None:
    assert runs["clairvoyant"].figures().staged_bytes < runs["async-lru"].figures().staged_bytes


def test_a_closed_loop_keeps_its_streams_busy_and_serves_the_trace_in_order() -> None:
    result = simulate("adex", SMALL, TRACE, course=Course(streams=8, until_s=3.0))
    unfinished = [one for one in result.records if one.finished_at is None]
    assert len(unfinished) == 8
    assert [one.number for one in result.records] == list(range(len(result.records)))


def test_remote_adapters_are_fetched_once() -> None:
    figures = simulate("adex", SMALL, TRACE, remote=True).figures()
    assert figures.fetches == len({one.adapter for one in TRACE})


@pytest.mark.parametrize("name", ["adex", "async-lru"])
def test_what_left_a_small_disk_is_fetched_again(name: str) -> None:
    disk = replace(SMALL, memory=replace(SMALL.memory, host_bytes=8e9, disk_bytes=9e9))
    figures = simulate(name, disk, TRACE, remote=True).figures()
    assert figures.fetches > len({one.adapter for one in TRACE})


def test_a_lonely_request_takes_what_the_machine_says() -> None:
    cost = StepCost(0.01, 0.02, 0.001, 0.0, 0.0, 0.0, 0.0)
    machine = replace(H200, step=cost)
    (record,) = simulate("ideal", machine, [TracedRequest(0.0, "", None, 30, 3, 8)]).records
    assert record.first_at == pytest.approx(0.01 + 0.03)
    assert record.finished_at == pytest.approx(record.first_at + 2 * 0.03)


def test_a_machine_is_read_as_it_was_written(tmp_path: object) -> None:
    path = f"{tmp_path}/machine.toml"
    with open(path, "w") as file:
        file.write(machine_text(H200, ("a remark",)))
    assert read_machine(path) == H200


@pytest.mark.parametrize("name", shipped_machines())
def test_every_shipped_machine_can_be_read(name: str) -> None:
    assert isinstance(read_machine(name), Machine)


@pytest.mark.parametrize("text", ["", "[step]\nfixed_s = 1", "=", '[memory]\ndevice_bytes = "4"'])
def test_what_is_no_machine_is_refused(text: str, tmp_path: object) -> None:
    path = f"{tmp_path}/machine.toml"
    with open(path, "w") as file:
        file.write(text)
    with pytest.raises(ValidationError):
        read_machine(path)


def test_the_distance_of_mixes_is_between_nothing_and_one(runs: dict[str, RunResult]) -> None:
    ours, ideal = runs["adex"].served(), runs["ideal"].served()
    assert mix_distance(ours, ideal) == 0
    assert mix_distance(ours, type(ours)()) == pytest.approx(0.5)
