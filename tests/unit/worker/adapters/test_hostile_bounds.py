"""Hostile adapters cost their own request a typed refusal, and the worker next to nothing.

Each is fetched by a process of its own, which may use so many seconds of processor time and grow by
so many bytes; the kernel ends one that uses more time, and tells how much memory it took at most.
"""

import json
import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers.0.self_attn"
SECONDS_MAX = 20
# A header may have 16 MiB; as Python's objects it takes some times as much.
GROWTH_BYTES_MAX = 192 << 20

SCRIPT = textwrap.dedent(
    """
    import os, resource, sys, torch
    from pathlib import Path
    from adex_proto.adapter import AdapterKey
    from adex_proto.errors import AdexError, CallerError
    from adex_worker.adapters.arena import Arena
    from adex_worker.testing import adapter_store, tiny_config, tiny_shape

    root, cache = Path(sys.argv[1]), Path(sys.argv[2])
    arena = Arena(pages=1 << 13, page_bytes=1 << 14, dtype=torch.float32, device="cpu")
    store = adapter_store(
        cache_dir=cache, roots=[root], shape=tiny_shape(tiny_config()), dtype=torch.float32,
        arena=arena, host_bytes=1 << 27, disk_bytes=1 << 27, rank_max=64,
    )

    def peak():
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    # Whatever the first fetch of a process loads is not the hostile adapter's doing.
    store.fetch(AdapterKey("", "local", "sound"))
    for name in sys.argv[4:]:
        sys.stdout.flush()
        child = os.fork()
        if child:
            print(name, "ended", os.waitpid(child, 0)[1])
            continue
        seconds = int(sys.argv[3])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        Path("/proc/self/clear_refs").write_text("5")
        before = peak()
        try:
            store.fetch(AdapterKey("", "local", name))
            print(name, "served")
        except CallerError as error:
            print(name, "refused", error.code, peak() - before, bool(error.field and error.remedy))
        sys.stdout.flush()
        os._exit(0)
    """
)


def put(folder: Path, header: bytes, size: int, length: int | None = None) -> None:
    """A weights file of `size` bytes after its header; none of them take room on the disk."""
    path = folder / WEIGHTS
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    os.truncate(path, path.stat().st_size + size)


def tiny(count: int, name: str = "t{}") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        entries = (
            f'"{name.format(n)}":{{"dtype":"F32","shape":[1],"data_offsets":[{4 * n},{4 * n + 4}]}}'
            for n in range(count)
        )
        put(folder, ("{" + ",".join(entries) + "}").encode(), 4 * count)

    return write


def header(text: bytes) -> Callable[[Path], None]:
    return lambda folder: put(folder, text, 64)


def config(**changes: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        told = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(told))

    return write


def of_rank(rank: int) -> Callable[[Path], None]:
    """As large as it says: the file is there, though no disk holds it."""

    def write(folder: Path) -> None:
        config(r=rank)(folder)
        size = 4 * 64 * rank
        names = [f"{PREFIX}.q_proj.lora_{side}.weight" for side in "AB"]
        shapes = [[rank, 64], [64, rank]]
        entries = {
            name: {"dtype": "F32", "shape": shape, "data_offsets": [n * size, (n + 1) * size]}
            for n, (name, shape) in enumerate(zip(names, shapes, strict=True))
        }
        put(folder, json.dumps(entries).encode(), 2 * size)

    return write


def config_text(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / CONFIG).write_text(text)

    return write


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "three hundred thousand tensors": (tiny(300_000), "adapter_malformed"),
    "as many tensors as a header holds": (tiny(190_000), "adapter_malformed"),
    "as many tensors as are allowed": (tiny(50_000), "adapter_unsupported"),
    "as many under the names of layers": (
        tiny(50_000, "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"),
        "adapter_malformed",
    ),
    "a header of sixteen exbibytes": (
        lambda folder: put(folder, b"{}", 0, (1 << 64) - 1),
        "adapter_malformed",
    ),
    "a header of brackets": (header(b"[" * (15 << 20)), "adapter_malformed"),
    "a header of numbers": (header(b'{"t":[' + b"1," * (7 << 20) + b"1]}"), "adapter_malformed"),
    "a header of one name": (header(b'{"' + b"n" * (15 << 20) + b'":{}}'), "adapter_malformed"),
    "a header of escapes": (header(b'{"' + b"\\n" * (7 << 20) + b'":{}}'), "adapter_malformed"),
    "a header of one number": (header(b'{"t":' + b"9" * (15 << 20) + b"}"), "adapter_malformed"),
    "a header of one key over and over": (
        header(b"{" + b",".join([b'"t":{}'] * (2 << 20)) + b"}"),
        "adapter_malformed",
    ),
    "a rank of a million, declared": (config(r=10**6), "rank_too_large"),
    "a rank of a million, delivered": (of_rank(10**6), "adapter_too_large"),
    "a rank of ten thousand, delivered": (of_rank(10**4), "rank_too_large"),
    "a terabyte": (lambda folder: put(folder, b"{}", 1 << 40), "adapter_too_large"),
    "a config of brackets": (config_text("[" * 1_000_000), "adapter_malformed"),
    "a config of digits": (config_text('{"r":' + "9" * 1_000_000 + "}"), "adapter_malformed"),
    "a config of a gigabyte": (
        lambda folder: os.truncate(folder / CONFIG, 1 << 30),
        "adapter_malformed",
    ),
    "an expression of many states": (
        config(rank_pattern={"((a{99}){99}){99}": 4}),
        "adapter_unsupported",
    ),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells peaks so")
def test_every_hostile_adapter_is_refused_within_its_bounds(world: Any) -> None:
    world.write("sound")
    for name, (spoil, _) in HOSTILE.items():
        spoil(world.write(name))
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, world.root, world.cache_dir, str(SECONDS_MAX), *HOSTILE],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    for name, (_, code) in HOSTILE.items():
        lines = [line for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        assert lines[-1] == f"{name} ended 0", lines
        told = lines[0].removeprefix(f"{name} refused ").split()
        assert told[0] == code, lines
        assert told[2] == "True", f"{name}: a refusal names a field and a remedy"
        assert int(told[1]) <= GROWTH_BYTES_MAX, f"{name} took {int(told[1]) >> 20} MiB"
