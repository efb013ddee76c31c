"""Do running streams notice other people's adapters? Inter-token times, left alone and disturbed.

    python benchmarks/disturbance.py [--streams 32] [--seconds 8]

32 streams generate without end over 8 adapters. Window by window they are left alone, or ten times
a second another caller names an adapter that does not exist, that is damaged, or that is good but
cold: fetched, checked, converted, paged in and run for one token. Prints the inter-token p50, p99
and maximum of each kind of window, side by side.
"""

import argparse
import asyncio
import itertools
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import aiohttp

from fixture import adapter_name, prepare
from report import quantile_ms
from serve import add_server_flags, serving

WARM_ADAPTERS = 8
NEW_TOKENS = 512
PER_SECOND = 10
ALONE = "left alone"
KINDS = (ALONE, "missing", "broken", "cold")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of one window")
    parser.add_argument("--windows", type=int, default=3, help="windows of each kind")
    return parser.parse_args()


def _links(source: Path, root: Path, count: int) -> None:
    """Under `root`: the warm adapters as they are, cold ones each of its own bytes, broken ones."""
    for index in range(WARM_ADAPTERS):
        shutil.copytree(source / adapter_name(index), root / adapter_name(index))
    for index in range(count):
        model = source / adapter_name(WARM_ADAPTERS + index % WARM_ADAPTERS)
        cold, broken = root / f"cold-{index}", root / f"broken-{index}"
        shutil.copytree(model, cold)
        config = cold / "adapter_config.json"
        # Another spelling of the same config is another digest: nothing is cached for it.
        config.write_text(config.read_text() + "\n" * (index + 1))
        shutil.copytree(model, broken)
        weights = broken / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[: -index - 1])


class _Gaps:
    """Inter-token times by kind of window; a gap counts where it ends."""

    def __init__(self) -> None:
        self.windows: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.present: str | None = None

    def note(self, seconds: float) -> None:
        if self.present is not None:
            self.windows[self.present].append(seconds)


async def _stream(session: aiohttp.ClientSession, url: str, index: int, gaps: _Gaps) -> None:
    parameters = {
        "adapter_id": adapter_name(index % WARM_ADAPTERS),
        "max_new_tokens": NEW_TOKENS,
        "ignore_eos_token": True,
    }
    for turn in itertools.count():
        prompt = " ".join(f"w{(index * 97 + turn * 13 + k) % 8000 + 2}" for k in range(16))
        body = {"inputs": prompt, "parameters": parameters}
        last = None
        async with session.post(f"{url}/generate_stream", json=body) as response:
            async for line in response.content:
                if line.startswith(b"data:"):
                    assert b'"error"' not in line, line[:200]
                    now = time.perf_counter()
                    if last is not None:
                        gaps.note(now - last)
                    last = now


async def _disturb(
    session: aiohttp.ClientSession, url: str, names: list[str], answers: Counter[str]
) -> None:
    async def ask(name: str) -> None:
        body = {"inputs": "w5 w6", "parameters": {"adapter_id": name, "max_new_tokens": 1}}
        async with session.post(f"{url}/generate", json=body) as response:
            answer = await response.json()
            answers[f"{response.status} {answer.get('error_type', 'ok')}"] += 1

    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(ask(name))
            await asyncio.sleep(1 / PER_SECOND)


async def _measure(url: str, options: argparse.Namespace) -> tuple[_Gaps, Counter[str]]:
    gaps, answers = _Gaps(), Counter[str]()
    count = int(options.seconds * PER_SECOND)
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        streams = [
            asyncio.create_task(_stream(session, url, i, gaps)) for i in range(options.streams)
        ]
        await asyncio.sleep(options.seconds)
        for window, kind in itertools.product(range(options.windows), KINDS):
            gaps.present = kind
            if kind == ALONE:
                await asyncio.sleep(options.seconds)
            else:
                numbers = range(window * count, (window + 1) * count)
                await _disturb(session, url, [f"{kind}-{n}" for n in numbers], answers)
        gaps.present = None
        for stream in streams:
            stream.cancel()
        ended = await asyncio.gather(*streams, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
    return gaps, answers


def main() -> None:
    """Serve, disturb, print."""
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    model, adapters = prepare(options.work, 2 * WARM_ADAPTERS, options.dtype)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _links(adapters, root, int(options.seconds * PER_SECOND) * options.windows)
        with serving(model, root, options) as url:
            gaps, answers = asyncio.run(_measure(url, options))
    print("| streams | inter-token p50 ms | p99 ms | max ms | gaps |\n|---|---|---|---|---|")
    for kind, found in gaps.windows.items():
        numbers = " | ".join(f"{quantile_ms(found, q):.1f}" for q in (0.5, 0.99, 1.0))
        print(f"| {options.streams} {kind} | {numbers} | {len(found)} |")
    print(f"answers to the disturbing requests: {dict(sorted(answers.items()))}")


if __name__ == "__main__":
    main()
