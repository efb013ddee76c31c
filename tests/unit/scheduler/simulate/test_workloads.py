"""Workloads: the published one draw for draw, the others by what they promise."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex_proto.errors import ValidationError
from adex_scheduler.simulate.trace import (
    TracedRequest,
    adapter_name,
    ranks_of,
    read_trace,
    write_trace,
)
from adex_scheduler.simulate.workloads import WORKLOADS, Load, cold_storm, geometric, slora
from adex_scheduler.simulate.workloads import sessions as make_sessions

LOAD = Load(adapters=50, rate=20.0, duration_s=60.0, seed=3, ranks=(8, 16, 64))


def test_s_loras_workload_is_the_published_one_draw_for_draw() -> None:
    # The released generator, in numpy's global state, as its authors wrote it.
    np.random.seed(42)
    count = 200
    chosen = (np.random.power(0.6, count) * 20).astype(int)
    prompts = np.random.randint(8, 512, count)
    outputs = np.random.randint(8, 512, count)
    gaps = np.random.gamma(1 / 16, 16 / 2, count)
    now, expected = 0.0, []
    for i in range(count):
        now += gaps[i]
        expected.append((now, adapter_name(chosen[i]), prompts[i], outputs[i]))
    ours = slora(Load(20, 2.0, 100.0, seed=42), alpha=0.6, cv=4.0)
    told = [(one.time_s, one.adapter, one.prompt_tokens, one.output_tokens) for one in ours]
    assert told == expected


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_seed_is_a_trace_in_order_of_time(name: str) -> None:
    once, again = WORKLOADS[name](LOAD), WORKLOADS[name](LOAD)
    assert once == again
    assert [one.time_s for one in once] == sorted(one.time_s for one in once)
    assert once != WORKLOADS[name](Load(50, 20.0, 60.0, seed=4, ranks=(8, 16, 64)))


@pytest.mark.parametrize("name", set(WORKLOADS) - {"tenant-flood", "cold-storm", "functions"})
def test_a_load_comes_at_its_rate(name: str) -> None:
    trace = WORKLOADS[name](Load(50, 20.0, 600.0, seed=1))
    assert len(trace) == pytest.approx(12_000, rel=0.1)


def test_punicas_popularity_grows_by_its_ratio() -> None:
    counts = sorted(Counter(one.adapter for one in geometric(LOAD)).values())
    assert counts[:8] == [1, 1, 2, 3, 5, 7, 11, 17]
    assert sum(counts) == 1200


def test_a_storm_asks_once_for_each_adapter_it_brings() -> None:
    fresh = [one for one in cold_storm(LOAD, per_minute=30) if one.adapter >= adapter_name(50)]
    assert len(fresh) == len({one.adapter for one in fresh}) > 10


def test_a_session_keeps_its_adapter_and_its_context_grows() -> None:
    by_session: dict[int, list[TracedRequest]] = {}
    for one in make_sessions(LOAD):
        by_session.setdefault(one.session, []).append(one)
    assert max(map(len, by_session.values())) > 3
    for turns in by_session.values():
        assert len({one.adapter for one in turns}) == 1
        prompts = [one.prompt_tokens for one in turns]
        assert prompts == sorted(set(prompts))


requests = st.builds(
    TracedRequest,
    time_s=st.floats(0, 1e6),
    tenant=st.text(max_size=8),
    adapter=st.none(),
    prompt_tokens=st.integers(1, 9999),
    output_tokens=st.integers(1, 9999),
    rank=st.integers(1, 256),
    session=st.none() | st.integers(0, 2**31),
    shared_tokens=st.integers(0, 9999),
)


@given(trace=st.lists(requests, min_size=1, max_size=20))
def test_a_trace_is_read_as_it_was_written(
    trace: list[TracedRequest], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    ordered = sorted(trace, key=lambda one: one.time_s)
    write_trace(path, ordered)
    assert read_trace(path) == ordered


def test_the_ranks_of_a_trace_are_each_adapters_own() -> None:
    ranks = ranks_of(WORKLOADS["zipf"](LOAD))
    assert ranks[adapter_name(0)] == 8
    assert ranks[adapter_name(5)] == 64


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("[]", "line"),
        ("{", "line"),
        ('{"time_s": -1, "adapter": "a", "prompt_tokens": 1, "output_tokens": 1}', "time_s"),
        ('{"time_s": 0, "adapter": "", "prompt_tokens": 1, "output_tokens": 1}', "adapter"),
        ('{"time_s": 0, "adapter": "a", "prompt_tokens": 0, "output_tokens": 1}', "prompt_tokens"),
        ('{"time_s": 0, "adapter": "a", "prompt_tokens": 1}', "output_tokens"),
        ('{"time_s": 0, "adaptor": "a"}', "adaptor"),
        (
            '{"time_s": 0, "adapter": "a", "prompt_tokens": 1, "output_tokens": 1, "rank": 8}\n'
            '{"time_s": 0, "adapter": "a", "prompt_tokens": 1, "output_tokens": 1, "rank": 16}',
            "rank",
        ),
        ("", "trace"),
    ],
)
def test_what_is_no_trace_is_refused_by_line_and_field(
    line: str, field: str, tmp_path: Path
) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(line)
    with pytest.raises(ValidationError) as refused:
        read_trace(path)
    assert refused.value.field == field
