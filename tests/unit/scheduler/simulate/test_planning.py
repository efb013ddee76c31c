"""The command's questions: what it asks, what it refuses, and what it answers."""

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web

from adex_scheduler.simulate.__main__ import main
from adex_scheduler.simulate.planning import faster, respread
from adex_scheduler.simulate.replay import replay_against
from adex_scheduler.simulate.trace import TracedRequest, ranks_of, read_trace
from adex_scheduler.simulate.workloads import Load, sessions, zipf

SMALL = ["--duration", "6", "--rate", "10", "--warm-up", "0"]


def test_a_row_for_each_system_memory_and_number_of_adapters(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    plot = tmp_path / "plan.png"
    arguments = ["--adapters", "5", "50", "--device-memory", "12GB", "24GB", "--plot", str(plot)]
    assert main([*SMALL, *arguments]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "system"
    assert [row.split()[:3] for row in rows] == [
        [system, adapters, memory]
        for adapters in ("5", "50")
        for memory in ("12.0", "24.0")
        for system in ("adex", "ideal")
    ]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_written_trace_is_what_the_same_flags_simulate(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trace = tmp_path / "trace.jsonl"
    assert main([*SMALL, "--adapters", "20", "--write-trace", str(trace)]) == 0
    assert len(read_trace(trace)) == 60
    main([*SMALL, "--adapters", "20", "--systems", "adex", "--json"])
    generated = json.loads(capsys.readouterr().out)
    main(["--warm-up", "0", "--trace", str(trace), "--systems", "adex", "--json"])
    replayed = json.loads(capsys.readouterr().out)
    assert {**generated, "adapters": 0} == {**replayed, "adapters": 0}
    assert generated["finished"] == 60
    assert generated["peak_kv_bytes"] > 0


def test_the_least_memory_that_is_enough_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--device-memory", "40GB", "20GB"]
    main([*SMALL, "--adapters", "20", *sizes, "--ttft-p99-ms", "5000"])
    assert "20.0 GB of device memory is enough" in capsys.readouterr().out
    main([*SMALL, "--adapters", "20", *sizes, "--ttft-p99-ms", "1"])
    assert "none is enough" in capsys.readouterr().out


def test_requests_that_fail_are_told_of_and_no_memory_is_enough_for_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    longer_than_the_model_reads = ["--workload", "instructed:shared=1000000"]
    main([*SMALL, *longer_than_the_model_reads, "--adapters", "20", "--ttft-p99-ms", "1e9"])
    told = capsys.readouterr().out
    assert "adex, 20 adapters, 94.6 GB: 60 of 60 requests failed" in told
    assert "none is enough" in told


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--workload", "zipff"], "--workload"),
        (["--workload", "zipf:beta=1"], "--workload"),
        (["--workload", "zipf:alpha=x"], "--workload"),
        (["--workload", "sessions:turns=0"], "turns must be from 1 "),
        (["--workload", "drift:share=nan"], "share must be from 0 to 1"),
        (["--workload", "instructed:shared=-600"], "shared must be from 0 "),
        (["--workload", "instructed:shared=0.5"], "shared must be a whole number"),
        (["--adapters", "0"], "--adapters"),
        (["--systems", "adex", "oracle"], "--systems"),
        (["--ranks", "8,x"], "--ranks"),
        (["--device-memory", "much"], "--device-memory"),
        (["--step-target-ms", "soon"], "--step-target-ms"),
        (["--rate", "0"], "--rate"),
        (["--hardware", "nowhere.toml"], "nowhere.toml"),
        (["--trace", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("command", ["simulate", "calibrate"])
def test_the_command_leads_here(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "adex", command, "--adapters", "nowhere", "--workload", "zipff"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert f"adex {command}: " in done.stderr


def test_a_trace_spread_over_more_adapters_keeps_ranks_and_sessions() -> None:
    trace = sessions(Load(40, 20.0, 60.0, seed=2, ranks=(8, 16, 64)))
    spread = respread(trace, 400, seed=0)
    assert [(one.time_s, one.rank) for one in spread] == [(one.time_s, one.rank) for one in trace]
    assert 40 < len(ranks_of(spread)) <= 400
    by_session: dict[int | None, set[str | None]] = {}
    for one in spread:
        by_session.setdefault(one.session, set()).add(one.adapter)
    assert all(len(adapters) == 1 for adapters in by_session.values())


def test_a_trace_folded_onto_fewer_adapters_names_no_more_of_them() -> None:
    trace = zipf(Load(40, 20.0, 60.0, seed=2, ranks=(8, 16, 64)))
    folded = respread(trace, 7, seed=0)
    assert len(ranks_of(folded)) == 7
    assert respread(trace, len(ranks_of(trace)), seed=0) == trace


def test_twice_as_fast_is_half_the_time() -> None:
    (one,) = faster([TracedRequest(8.0, "", None, 1, 1, 8)], 2.0)
    assert one.time_s == 4.0


async def test_the_same_trace_drives_a_server() -> None:
    asked: Counter[str] = Counter()

    async def stream(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        asked[body["parameters"].get("adapter_id", "")] += len(body["inputs"].split())
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(body["parameters"]["max_new_tokens"]):
            await response.write(b'data:{"token":{"text":"x"}}\n\n')
        await response.write_eof()
        return response

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/generate_stream", stream), web.get("/health", health)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    trace = [
        TracedRequest(0.0, "", "a", 3, 2, 8),
        TracedRequest(0.01, "", None, 5, 4, 8),
    ]
    replayed = await asyncio.to_thread(
        replay_against,
        f"http://127.0.0.1:{port}",
        trace,
        adapter_template="/adapters/{adapter}",
        word="w",
    )
    await runner.cleanup()
    assert asked == {"/adapters/a": 3, "": 5}
    assert (replayed.finished, replayed.output_tokens, replayed.failures) == (2, 6, [])
