"""What running streams feel of other people's prompts, and what these wait, by --step-target-ms.

    python benchmarks/prompts_beside.py [--targets off auto 25] [--lengths 64 512 1536]

A server for each target; the same traffic goes to one after the other, round by round: eight
streams of the base model, and beside them prompts of one length that come evenly and ask for one
token.
Prints the table and writes it under benchmarks/results/.
"""

import argparse
import asyncio
import itertools
import sys
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field

import aiohttp

from exchange_load import Request, ask
from fixture import prepare
from report import quantile_ms
from serve import add_server_flags, result_path, serving, where_and_when

STREAMS, STREAM_TOKENS = 8, 512
# Prompt tokens a second, beside which the streams still have most of the machine.
PROMPT_TOKENS_PER_S = 400.0
WARM_S = 1.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--targets", nargs="+", default=["off", "auto", "25"])
    parser.add_argument("--lengths", type=int, nargs="+", default=[0, 64, 512, 1536])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each cell and round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    return parser.parse_args()


@dataclass(slots=True)
class Cell:
    """One target beside prompts of one length, all rounds together."""

    gaps_s: list[float] = field(default_factory=list)
    firsts_s: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    def row(self) -> str:
        gaps = " | ".join(f"{quantile_ms(self.gaps_s, q):.0f}" for q in (0.5, 0.99, 1.0))
        firsts = "- | -"
        if self.firsts_s:
            firsts = " | ".join(f"{quantile_ms(self.firsts_s, q):.0f}" for q in (0.5, 1.0))
        return f"{gaps} | {self.tokens / self.seconds:.0f} | {firsts}"


async def _beside(url: str, length: int, seconds: float, cell: Cell) -> None:
    """Streams throughout; prompts after a warm-up, from where on it counts."""
    streams: list[Request] = []
    prompts: list[Request] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session:

        async def stream() -> None:
            while True:
                await ask(session, url, "", streams, STREAM_TOKENS)

        running = [asyncio.create_task(stream()) for _ in range(STREAMS)]
        await asyncio.sleep(WARM_S)
        start = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for count in itertools.count():
                if length:
                    tasks.create_task(ask(session, url, "", prompts, 1, length))
                every = length / PROMPT_TOKENS_PER_S if length else seconds
                due = start + (count + 1) * every
                if due > start + seconds:
                    break
                await asyncio.sleep(due - time.perf_counter())
            await asyncio.sleep(start + seconds - time.perf_counter())
        stop = time.perf_counter()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert not [one.error for one in streams + prompts if one.error]
    for one in streams:
        pairs = itertools.pairwise(one.ends_s)
        cell.gaps_s += [later - sooner for sooner, later in pairs if start <= sooner < stop]
        cell.tokens += sum(start <= end < stop for end in one.ends_s)
    cell.firsts_s += [one.first_s for one in prompts]
    cell.seconds += stop - start


def main() -> None:
    options = _options()
    model, adapters = prepare(options.work, 1, options.dtype)
    cells: dict[tuple[int, str], Cell] = defaultdict(Cell)
    with ExitStack() as stack:
        urls = {
            target: stack.enter_context(
                serving(model, adapters, options, "--step-target-ms", target)
            )
            for target in options.targets
        }
        for _ in range(options.rounds):
            for length, target in itertools.product(options.lengths, options.targets):
                cell = cells[length, target]
                asyncio.run(_beside(urls[target], length, options.seconds, cell))
    lines = [
        "| prompts of | target ms | inter-token p50 ms | p99 | max | streams' tokens/s "
        "| prompts' TTFT p50 ms | max |",
        "|---|---|---|---|---|---|---|---|",
        *(f"| {length} | {target} | {cell.row()} |" for (length, target), cell in cells.items()),
    ]
    print("\n".join(lines))
    if options.no_write:
        return
    text = (
        "# Prompts beside streams\n\n"
        f"{where_and_when(options.dtype)} `python {' '.join(sys.argv)}`\n\n"
        f"{STREAMS} streams of the base model, and beside them {PROMPT_TOKENS_PER_S:.0f} prompt "
        f"tokens a second in prompts of one length; {options.seconds:g} s of each, "
        f"rounds: {options.rounds}.\n\n"
    )
    path = result_path("prompts-beside", options.dtype)
    path.write_text(text + "\n".join(lines) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
