"""Output tokens per second, TTFT and inter-token time, beside transformers + PEFT in the same run.

    python benchmarks/serve.py [--dtype bfloat16] [--rounds 3] [--streams 1 8] [--adapters 0 1 8]

Our server runs as users run it, `adex serve` over loopback; PEFT runs its mixed batch in a process
of its own. The two take turns, round by round, on the same prompts (64 tokens in, 64 out), and
neither works while the other is measured. Prints the table, writes it with a plot under
benchmarks/results/.
"""

import argparse
import asyncio
import json
import os
import platform
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fixture import VOCABULARY, adapter_name, prepare
from load import Load, Timings, run_round
from report import Cell, Key, plot, table

HERE = Path(__file__).resolve().parent
PROMPT_TOKENS = 64
NEW_TOKENS = 64
WARM_UP_TOKENS = 4
REQUESTS_MIN = 8
START_S_MAX = 300.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 8, 32])
    parser.add_argument("--no-peft", action="store_true", help="measure our server alone")
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    return parser.parse_args()


def add_server_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what is served, and where the model and adapters are kept."""
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--device-memory", default="2GiB")
    default_root = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "adex" / "benchmark"
    parser.add_argument("--work", type=Path, default=default_root.expanduser())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    model: Path,
    adapters: Path,
    options: argparse.Namespace,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """`adex serve` over the model and the adapters' root; its address once it is healthy.

    `flags` come last and so outweigh what `options` say.
    """
    port, grpc_port = _free_port(), _free_port()
    command = [sys.executable, "-m", "adex", "serve", "--model-id", str(model)]
    command += ["--local-adapter-root", str(adapters), "--port", str(port)]
    command += ["--grpc-port", str(grpc_port), "--dtype", options.dtype]
    command += ["--device-memory", options.device_memory, "--max-sequences", "64", *flags]
    log_path = options.work / f"server-{port}.log"
    # Beside the adapters, not under /tmp: that may be memory, and too small for a thousand bundles.
    with tempfile.TemporaryDirectory(dir=options.work) as cache, log_path.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--cache-dir", cache],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | (environment or {}),
        )
        try:
            _wait_healthy(f"http://127.0.0.1:{port}", process, log_path)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"the server was not ready within {START_S_MAX:.0f} s; see {log}")


class _Peft:
    """The other side, one line out and one line in per round."""

    def __init__(self, model: Path, adapters: Path, names: list[str], dtype: str) -> None:
        command = [sys.executable, str(HERE / "peft_side.py"), str(model), str(adapters), dtype]
        self._process = subprocess.Popen(
            [*command, *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the PEFT process ended early; its message is above")
        return dict(json.loads(line))

    def round(self, load: Load, prompts: list[list[int]]) -> Timings:
        streams, adapters = load.streams, load.adapters
        names = [adapters[i % len(adapters)] if adapters else "" for i in range(streams)]
        job = {"adapters": names, "prompts": prompts[:streams], "new_tokens": load.new_tokens}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return Timings(answer["wall_s"], answer["tokens"], answer["first_s"], answer["gaps_s"])

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)


def _prompts(count: int, seed: int) -> list[list[int]]:
    words = random.Random(seed)
    return [[words.randrange(2, VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(count)]


def _load(streams: int, adapters: int, prompts: list[list[int]], turn: int) -> Load:
    """With more adapters than streams, each turn begins where the one before it ended.

    Turn 0 warms both sides up, with few tokens, and is not counted.
    """
    texts = tuple(" ".join(f"w{t}" for t in prompt) for prompt in prompts)
    names = tuple(adapter_name((i + turn * streams) % adapters) for i in range(adapters))
    new_tokens = NEW_TOKENS if turn else WARM_UP_TOKENS
    # One stream asks as often in every row: the median of one request is too few numbers.
    return Load(streams, max(streams, REQUESTS_MIN), texts, names, new_tokens)


def _measure(
    url: str, peft: _Peft | None, keys: list[Key], rounds: int
) -> tuple[dict[Key, Cell], dict[Key, Cell]]:
    ours, theirs = {k: Cell() for k in keys}, {k: Cell() for k in keys}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("rounds", total=len(keys) * (rounds + 1))
        for number in range(rounds + 1):
            for streams, adapters in keys:
                progress.update(task, description=f"{streams} streams / {adapters} adapters")
                # New prompts in every round keep a prefix cache from answering for the model.
                prompts = _prompts(
                    max(streams, REQUESTS_MIN), seed=number * 1000 + streams * 50 + adapters
                )
                load = _load(streams, adapters, prompts, number)
                timings = asyncio.run(run_round(url, load))
                if number:
                    ours[streams, adapters].rounds.append(timings)
                if peft is not None:
                    other = peft.round(load, prompts)
                    if number:
                        theirs[streams, adapters].rounds.append(other)
                progress.advance(task)
    return ours, theirs


def _write(text: str, ours: dict[Key, Cell], theirs: dict[Key, Cell], dtype: str) -> Path:
    path = result_path("serve", dtype)
    plot(ours, theirs, path.with_suffix(".png"))
    path.write_text(text + f"\n\n![tokens per second]({path.with_suffix('.png').name})\n")
    return path


def result_path(name: str, dtype: str) -> Path:
    """Where a benchmark's table is written: by its name, the day, the machine and the type."""
    machine = f"{os.cpu_count()}-core-{platform.machine()}"
    path = HERE / "results" / f"{name}-{datetime.now(UTC):%Y-%m-%d}-{machine}-{dtype}.md"
    path.parent.mkdir(exist_ok=True)
    return path


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def where_and_when(dtype: str) -> str:
    """The machine, the version of what computes, and the commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=HERE,
        check=False,
    ).stdout.strip()
    return (
        f"{_cpu_name()}, {os.cpu_count()} cores, torch {version('torch')}, {dtype}; "
        f"commit {commit}."
    )


def _heading(options: argparse.Namespace) -> str:
    return (
        f"# Serving beside transformers + PEFT, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"{where_and_when(options.dtype)} "
        f"88 M parameters, ranks 8/16/32 on all linears, {PROMPT_TOKENS} tokens "
        f"in, {NEW_TOKENS} out, greedy; medians of {options.rounds} interleaved rounds.\n\n"
        f"    python benchmarks/serve.py --dtype {options.dtype} --rounds {options.rounds}\n"
    )


def main() -> None:
    """Prepare, measure, print, write."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    count = max(options.adapters)
    model, adapters = prepare(options.work, count, options.dtype)
    names = [adapter_name(i) for i in range(count)]
    keys = [(s, a) for s in options.streams for a in options.adapters]
    peft = None if options.no_peft else _Peft(model, adapters, names, options.dtype)
    try:
        with serving(model, adapters, options) as url:
            ours, theirs = _measure(url, peft, keys, options.rounds)
    finally:
        if peft is not None:
            peft.close()
    text = _heading(options) + "\n" + table(ours, theirs)
    print(text)
    failures = [f for cell in ours.values() for f in cell.failures()]
    if failures:
        raise SystemExit(f"{len(failures)} requests failed, first: {failures[0]}")
    if not options.no_write:
        print(f"written to {_write(text, ours, theirs, options.dtype)}")


if __name__ == "__main__":
    main()
