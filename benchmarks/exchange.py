"""Adapters far beyond memory: throughput and waiting, beside a server that holds them all.

    python benchmarks/exchange.py [--adapters 1 8 32 128 1000] [--turns 4] [--seconds 6]

Two servers run the benchmark's model: one whose device holds about 32 adapters and whose host
memory about 128, and one that holds all of them on its device. The same traffic goes to the one and
then to the other, cell by cell: closed loop and Poisson arrivals, Zipf and uniform over 1 to 1000
adapters. Then a third server reads the same adapters from an S3 server 50 ms away, with a disk too
small for them all; and last, streams run on while a hundred cold adapters are asked for, ten
corrupt ones, and one whose download hangs. Prints the tables, writes them with plots under
benchmarks/results/.
"""

import argparse
import asyncio
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from rich.progress import Progress, track

from exchange_load import (
    NEW_TOKENS,
    PROMPT_TOKENS,
    Turns,
    Window,
    ask,
    closed_loop,
    open_loop,
    zipf_picker,
)
from exchange_report import (
    Run,
    link_table,
    plot_disturbance,
    plot_throughput,
    start_table,
    throughput_table,
)
from exchange_streams import COLD, HOLD, RESIDENT, Disturbance, disturb, publish
from fixture import adapter_name
from many_adapters import prepare_many
from serve import add_server_flags, result_path, serving, where_and_when
from slow_s3 import BUCKET, slow_s3

# A mean bundle of ranks 8, 16 and 32 takes 6.1 MB, and a stream's cache 0.8 MB.
CROWDED = ("--device-memory", "224MiB", "--host-memory", "780MiB")
SMALL_DISK = ("--disk-memory", "1600MiB")
# How servers are told to cut prompts beside streams: as they do by themselves, and to a time.
PACES = {"": (), "-paced": ("--step-target-ms", "16")}
STREAMS = 32
LOOPS = ("closed", "open")
MIXES = {"Zipf 1.0": 1.0, "uniform": 0.0}
OPEN_LOOP_SHARE = 0.7
LATENCY_S = 0.05
TOUCHERS = 8


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32, 128, 1000])
    parser.add_argument("--turns", type=int, default=4, help="a closed loop's, that count")
    parser.add_argument("--warm-turns", type=int, default=2, help="before those")
    parser.add_argument("--seconds", type=float, default=6.0, help="the window of arrivals")
    parser.add_argument("--warm-seconds", type=float, default=2.0, help="before each window")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure"
    )
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    return parser.parse_args()


PARTS = ("local", "s3", "streams")


def _counters(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    found = re.findall(r"^(adex_\w+(?:\{[^}]*\})?) ([0-9.e+-]+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@dataclass(frozen=True, slots=True)
class _Traffic:
    """One cell's requests: which loop, which mix, over which names."""

    loop: str
    mix: str
    names: list[str]
    per_s: float = 0.0

    def run(self, server: str, url: str, options: argparse.Namespace) -> Run:
        pick = zipf_picker(self.names, MIXES[self.mix], seed=len(self.names))
        began, before = time.perf_counter(), _counters(url)
        answers = asyncio.run(self._answers(url, pick, options))
        seconds, after = time.perf_counter() - began, _counters(url)
        counted = {name: value - before.get(name, 0.0) for name, value in after.items()}
        if failures := answers.failures():
            raise SystemExit(f"{len(failures)} requests failed, first: {failures[0]}")
        if not answers.counted():
            # A row of zeros would read like a measurement.
            raise SystemExit(f"no request was sent inside the window of {options.seconds:g} s")
        return Run(server, self.mix, self.loop, len(self.names), answers, counted, seconds)

    async def _answers(
        self, url: str, pick: Callable[[], str], options: argparse.Namespace
    ) -> Turns | Window:
        if self.loop == "closed":
            warm_turns, turns = options.warm_turns, options.turns
            return await closed_loop(url, pick, streams=STREAMS, warm_turns=warm_turns, turns=turns)
        warm_s, seconds = options.warm_seconds, options.seconds
        return await open_loop(url, pick, per_s=self.per_s, warm_s=warm_s, seconds=seconds, seed=1)


def _touch_all(url: str, names: list[str], title: str) -> None:
    """One token through each adapter, so that it has been fetched and converted once."""
    with Progress() as progress:
        task = progress.add_task(title, total=len(names))

        async def touch() -> None:
            waiting = iter(names)
            timeout = aiohttp.ClientTimeout(total=None)
            async with aiohttp.ClientSession(timeout=timeout) as session:

                async def caller() -> None:
                    for name in waiting:
                        request = await ask(session, url, name, [], new_tokens=1)
                        assert not request.error, request.error
                        progress.advance(task)

                await asyncio.gather(*(caller() for _ in range(TOUCHERS)))

        asyncio.run(touch())


def _compare(
    crowded: str, resident: str, names: list[str], options: argparse.Namespace
) -> list[Run]:
    """Every cell on both servers in turn; open-loop arrivals at a share of what N = 1 carries."""
    runs: list[Run] = []
    per_s = 0.0
    cells = [(loop, mix, n) for loop in LOOPS for mix in MIXES for n in options.adapters]
    with Progress() as progress:
        task = progress.add_task("cells", total=2 * len(cells))
        for loop, mix, count in cells:
            traffic = _Traffic(loop, mix, names[:count], per_s)
            for server, url in (("crowded", crowded), ("resident", resident)):
                progress.update(task, description=f"{server}: {loop}, {mix}, {count}")
                runs.append(traffic.run(server, url, options))
                progress.advance(task)
            per_s = per_s or OPEN_LOOP_SHARE * runs[0].answers.tokens_per_s() / NEW_TOKENS
    return runs


def _remote(url: str, names: list[str], options: argparse.Namespace) -> list[Run]:
    """The same, closed loop, where what is not on disk is 50 ms away."""
    runs: list[Run] = []
    with Progress() as progress:
        task = progress.add_task("S3", total=len(MIXES) * len(options.adapters))
        for mix in MIXES:
            for count in options.adapters:
                progress.update(task, description=f"S3: {mix}, {count}")
                runs.append(_Traffic("closed", mix, names[:count]).run("S3", url, options))
                progress.advance(task)
    return runs


def _local_part(model: Path, root: Path, options: argparse.Namespace) -> list[Run]:
    names = [adapter_name(index) for index in range(max(options.adapters))]
    room = f"{7 * len(names) + 256}MiB"
    roomy = ("--device-memory", room, "--host-memory", "256MiB")
    with (
        serving(model, root, options, *CROWDED) as crowded,
        serving(model, root, options, *roomy) as resident,
    ):
        _touch_all(crowded, names, "crowded: first touch")
        _touch_all(resident, names, "resident: first touch")
        return _compare(crowded, resident, names, options)


def _remote_parts(
    model: Path, root: Path, options: argparse.Namespace
) -> tuple[list[Run], dict[str, Disturbance]]:
    names = [adapter_name(index) for index in range(max(options.adapters))]
    runs: list[Run] = []
    disturbances: dict[str, Disturbance] = {}
    with slow_s3(LATENCY_S, options.work, HOLD) as store:
        flags = (*CROWDED, *SMALL_DISK, "--s3-adapter-root", f"s3://{BUCKET}")
        if "s3" in options.parts:
            for name in track(names, "uploading"):
                store.upload(name, root / name)
            with serving(model, root, options, *flags, environment=store.environment()) as url:
                runs = _remote(url, [f"s3://{BUCKET}/{name}" for name in names], options)
        if "streams" in options.parts:
            publish(store, root)
            for pace, more in PACES.items():
                environment = store.environment()
                with serving(model, root, options, *flags, *more, environment=environment) as url:
                    disturbances[pace] = asyncio.run(disturb(url, store, options.seconds))
    return runs, disturbances


def _heading(options: argparse.Namespace) -> str:
    return (
        f"# Adapters far beyond memory, {datetime.now(UTC):%Y-%m-%d}\n\n"
        f"{where_and_when(options.dtype)} 88 M parameters, ranks 8/16/32 on all linears, "
        f"{PROMPT_TOKENS} tokens in, {NEW_TOKENS} out; {STREAMS} streams, or arrivals at "
        f"{100 * OPEN_LOOP_SHARE:.0f} % of what they carried with one adapter; {options.turns} "
        f"requests of each stream, or windows of {options.seconds:g} s. "
        f"Crowded: {' '.join(CROWDED)}.\n\n"
        f"    make bench-exchange\n"
    )


def main() -> None:
    """Prepare, measure, print, write."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    count = max(*options.adapters, COLD + RESIDENT + 1)
    model, root = prepare_many(options.work, count, options.dtype)
    text, path = _heading(options), result_path("exchange", options.dtype)
    if "local" in options.parts:
        runs = _local_part(model, root, options)
        text += f"\n## Throughput and waiting\n\n{throughput_table(runs)}\n"
        text += f"\n## By the tier a request found its adapter in\n\n{start_table(runs)}\n"
        text += f"\n## Moves\n\n{link_table(runs)}\n"
        if not options.no_write:
            plot_throughput(runs, path.with_suffix(".png"))
            text += f"\n![throughput and TTFT]({path.with_suffix('.png').name})\n"
    runs, disturbances = _remote_parts(model, root, options)
    if runs:
        text += f"\n## From S3, {1000 * LATENCY_S:.0f} ms away, a disk for about 256\n\n"
        text += f"{start_table(runs)}\n\n{link_table(runs)}\n"
    for pace, disturbance in disturbances.items():
        told = " ".join(PACES[pace])
        text += f"\n## Streams that run on{told and f', `{told}`'}\n\n{disturbance.table()}\n"
        if not options.no_write:
            picture = path.with_name(f"{path.stem}-streams{pace}.png")
            plot_disturbance(disturbance.streams, disturbance.marks, picture)
            text += f"\n![inter-token times]({picture.name})\n"
    print(text)
    if not options.no_write:
        path.write_text(text)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
