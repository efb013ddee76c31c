"""What a cold adapter costs the processor on its way from a source to the device, tier by tier.

    python benchmarks/cold_adapter.py [--beside CHECKOUT] [--adapters 36] [--rounds 5]

The benchmark's adapters (float32 of ranks 8, 16 and 32, some 12 MB) go through the worker's own
code in a process of its own, with nothing else to do: from a folder and from an S3 server on
loopback onto the disk, from there to host memory, from there to a device that is this machine's
memory. Counted is the processor time of all its threads, the kernel's part included, so waiting
costs nothing. With `--beside` the code of another checkout does the same, turn by turn. Then the
parts that move bytes, each by itself, beside what copying as many takes. Prints the tables and
writes them under benchmarks/results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch

from fixture import CONFIG, adapter_name
from many_adapters import prepare_many
from serve import add_server_flags, result_path, where_and_when
from slow_s3 import BUCKET, FILES, slow_s3

T = TypeVar("T")
HERE = Path(__file__)
PACKAGES = ("client", "kernels", "proto", "scheduler", "worker")
WARM = 3
PIECE_BYTES = 1 << 18


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_server_flags(parser)
    parser.add_argument("--beside", type=Path, help="another checkout, measured in turn")
    parser.add_argument("--adapters", type=int, default=36)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true", help="print, but write no result file")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    return parser.parse_args()


# One process, of one checkout.


class _Way:
    """The tiers of one worker, over a folder of its own."""

    def __init__(self, root: Path, cache: Path, dtype: str) -> None:
        # Imported here: which checkout they come from is the other process's choice.
        from adex_kernels.layout import LinearShape, ModelShape
        from adex_worker import native
        from adex_worker.adapters.arena import Arena
        from adex_worker.adapters.core.bundle_header import fingerprint_of
        from adex_worker.adapters.core.remote_names import S3Place
        from adex_worker.adapters.disk_tier import DiskTier
        from adex_worker.adapters.format import Limits
        from adex_worker.adapters.intake import Intake
        from adex_worker.adapters.sources.served import served_sources
        from adex_worker.adapters.store import AdapterStore

        torch.set_num_threads(1)
        native.load(cache.parent)
        hidden, wide = int(CONFIG["hidden_size"]), int(CONFIG["intermediate_size"])
        kv = hidden // CONFIG["num_attention_heads"] * CONFIG["num_key_value_heads"]
        pairs = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
        pairs += [(hidden, wide), (hidden, wide), (wide, hidden)]
        shape = ModelShape(
            int(CONFIG["num_hidden_layers"]), tuple(LinearShape(*pair) for pair in pairs)
        )
        self.dtype = getattr(torch, dtype)
        self.limits = Limits(shape, self.dtype.itemsize, 64, 1 << 30)
        self.sources = served_sources(
            cache, [root], [S3Place(BUCKET, "")], use_server_hf_token=False
        )
        self.disk = DiskTier(cache, fingerprint_of(shape, dtype))
        self.arena = Arena(pages=1024, page_bytes=1 << 16, dtype=self.dtype, device="cpu")
        self.arena.bytes.zero_()
        self.store = AdapterStore(
            bringer=Intake(self.sources, self.disk, self.limits, self.dtype),
            disk=self.disk,
            shape=shape,
            dtype=self.dtype,
            arena=self.arena,
            host_bytes=1 << 30,
        )

    def costs(self, names: Sequence[str]) -> dict[str, float]:
        """Processor time of each move, in milliseconds for one adapter."""
        from adex_proto.adapter import AdapterKey, AdapterVersion, Tier

        versions: list[AdapterVersion] = []

        def fetch(source: str, name: str) -> None:
            versions.append(self.store.fetch(AdapterKey("", source, name)))

        def to_the_device_and_away(version: AdapterVersion) -> None:
            pages = self.arena.pages_for(version.bundle_bytes)
            self.store.page_in(version.digest, 1, 0, pages)
            self.store.evict(version.digest, Tier.DEVICE)

        def to_the_host_and_away(version: AdapterVersion) -> None:
            self.store.stage(version.digest)
            self.store.evict(version.digest, Tier.HOST)

        found = {"folder to disk": _each(lambda name: fetch("local", name), names)}
        local = [*versions]
        found["disk to host"] = _each(to_the_host_and_away, local)
        for version in local:
            self.store.stage(version.digest)
        found["host to device"] = _each(to_the_device_and_away, local)
        for version in local:
            self.store.evict(version.digest, Tier.HOST)
            self.store.evict(version.digest, Tier.DISK)
        remote = [f"s3://{BUCKET}/{name}" for name in names]
        found["S3 to disk"] = _each(lambda name: fetch("s3", name), remote)
        found["S3, looked up again"] = _each(lambda name: fetch("s3", name), remote)
        return found

    def parts(self, names: Sequence[str], url: str) -> list[tuple[str, float, float]]:
        """(what, bytes, milliseconds) of what touches every byte, for one adapter."""
        from adex_proto.adapter import AdapterKey
        from adex_worker.adapters.bundle import checksum_of, pack
        from adex_worker.adapters.byte_views import byte_view, copy_bytes
        from adex_worker.adapters.core.bundle_header import BundleHeader
        from adex_worker.adapters.digest import digest_of_content
        from adex_worker.adapters.format import read_adapter

        local = self.sources["local"]
        found: dict[str, list[tuple[int, float]]] = {}

        def timed(what: str, size: int, deed: Callable[..., object], *given: object) -> None:
            began_s = time.process_time()
            deed(*given)
            found.setdefault(what, []).append((size, 1e3 * (time.process_time() - began_s)))

        for name in names:
            resolved = local.resolve(AdapterKey("", "local", name))
            adapter = read_adapter(local, resolved, self.limits)
            file, size = byte_view(adapter.weights), adapter.weights.nbytes
            elements = pack(adapter, self.dtype)
            packed = elements.nbytes
            header = BundleHeader(
                adapter.version, "", "", adapter.form.ranks, checksum_of(elements)
            )
            timed("receive it from S3, with http.client", size, _received, url, name, file)
            timed("CRC32, as S3 tells it", size, zlib.crc32, file)
            timed("read it from a folder", size, _read, Path(resolved.location, FILES[1]), file)
            timed("digest of the file", size, digest_of_content().update, file)
            timed("scale, round, turn, look for NaN", size, pack, adapter, self.dtype)
            timed("digest of the bundle", packed, checksum_of, elements)
            timed("write the bundle", packed, self.disk.write, header, elements)
            timed("copy the bundle", packed, copy_bytes, torch.empty_like(elements), elements)
        return [
            (what, *map(statistics.median, zip(*each, strict=True))) for what, each in found.items()
        ]


def _each(deed: Callable[[T], object], items: Sequence[T]) -> float:
    """Processor time of the deed for one item, in milliseconds, after some that do not count."""
    for item in items[:WARM]:
        deed(item)
    began_s = time.process_time()
    for item in items[WARM:]:
        deed(item)
    return 1e3 * (time.process_time() - began_s) / len(items[WARM:])


def _received(url: str, name: str, room: memoryview) -> None:
    connection = HTTPConnection(urlsplit(url).netloc)
    connection.request("GET", f"/{BUCKET}/{name}/{FILES[1]}")
    answer, at = connection.getresponse(), 0
    while count := answer.readinto(room[at : at + PIECE_BYTES]):
        at += count
    connection.close()


def _read(path: Path, room: memoryview) -> None:
    with path.open("rb", buffering=0) as file:
        at = 0
        while count := file.readinto(room[at : at + PIECE_BYTES]):
            at += count


def _carry_out(task: dict[str, str]) -> None:
    """What a process of its own does: measure, and print it."""
    root, names = Path(task["root"]), task["names"].split()
    with tempfile.TemporaryDirectory(dir=root.parent) as cache:
        way = _Way(root, Path(cache), task["dtype"])
        found = way.parts(names, task["url"]) if task["parts"] else way.costs(names)
    print(json.dumps(found))


# All of them, turn by turn.


def _ask(checkout: Path, task: dict[str, str], environment: dict[str, str]) -> Any:
    """What a process says that has the checkout's packages."""
    paths = os.pathsep.join(str(checkout / package) for package in PACKAGES)
    done = subprocess.run(
        [sys.executable, str(HERE), "--task", json.dumps(task)],
        env={**os.environ, **environment, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _moves_table(costs: dict[str, list[dict[str, float]]]) -> list[str]:
    lines = [f"| milliseconds | {' | '.join(costs)} |", "|---|" + "---|" * len(costs)]
    for move in next(iter(costs.values()))[0]:
        cells = (f"{statistics.median(c[move] for c in each):.2f}" for each in costs.values())
        lines.append(f"| {move} | {' | '.join(cells)} |")
    return lines


def _parts_table(parts: list[tuple[str, float, float]]) -> list[str]:
    lines = ["| what | MB | ms | GB/s |", "|---|---|---|---|"]
    for what, size, ms in parts:
        lines.append(f"| {what} | {size / 1e6:.1f} | {ms:.2f} | {size / ms / 1e6:.1f} |")
    return lines


def main() -> None:
    """Prepare, measure, print, write."""
    options = _options()
    if options.task:
        _carry_out(json.loads(options.task))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    _, root = prepare_many(options.work, options.adapters, options.dtype)
    names = [adapter_name(index) for index in range(options.adapters)]
    asked = [options.beside] if options.beside is not None else []
    checkouts = {_commit(each): each.absolute() for each in (*asked, HERE.parents[1])}
    costs: dict[str, list[dict[str, float]]] = {checkout: [] for checkout in checkouts}
    with slow_s3(0.0, options.work) as store:
        for name in names:
            store.upload(name, root / name)
        task = {"root": str(root), "names": " ".join(names), "dtype": options.dtype}
        task |= {"url": store.url, "parts": ""}
        for _ in range(options.rounds):
            for label, checkout in checkouts.items():
                costs[label].append(_ask(checkout, task, store.environment()))
        parts = _ask(HERE.parents[1], task | {"parts": "yes"}, store.environment())
    text = "\n".join([*_moves_table(costs), "", *_parts_table(parts)])
    print(text)
    if options.no_write:
        return
    path = result_path("cold-adapter", options.dtype)
    head = f"# What a cold adapter costs the processor\n\n{where_and_when(options.dtype)} "
    head += f"`python {' '.join(sys.argv)}`\n\n"
    path.write_text(f"{head}{text}\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
