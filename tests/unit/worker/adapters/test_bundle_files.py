"""Bundles on disk appear whole or not at all, and a damaged one is never used."""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adex_proto.adapter import Tier
from adex_proto.errors import CacheFull, SourceUnavailable
from adex_worker.adapters.byte_views import byte_view
from adex_worker.adapters.core.bundle_header import elements_start, header_bytes_of
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter


def write(folder: Path, seed: int = 0, rank: int = 8) -> Path:
    return write_random_adapter(folder, tiny_shape(tiny_config()), seed=seed, rank=rank)


def elements_of(bundle: Path) -> bytes:
    raw = bundle.read_bytes()
    return raw[elements_start(header_bytes_of(raw)) :]


def test_disk_host_and_device_hold_the_same_bytes(world: Any) -> None:
    write(world.root / "a")
    digest = world.page_in("a", slot=1, first_page=7)
    (bundle,) = world.bundles
    version = world.store.fetch(world.key("a"))
    on_disk = elements_of(bundle)
    on_host = bytes(byte_view(world.store._host.get(digest).bytes))
    start = 7 * world.arena.page_bytes
    on_device = bytes(byte_view(world.arena.bytes[start : start + version.bundle_bytes]))
    assert len(on_disk) == version.bundle_bytes
    assert on_disk == on_host == on_device


def test_the_file_is_named_by_content_and_only_its_owner_may_read_it(world: Any) -> None:
    write(world.root / "a")
    write(world.root / "same bytes")
    write(world.root / "other bytes", seed=1)
    digests = {world.store.fetch(world.key(n)).digest for n in ("a", "same bytes", "other bytes")}
    assert len(digests) == 2
    assert {bundle.name[:64] for bundle in world.bundles} == digests
    assert all(bundle.stat().st_mode & 0o077 == 0 for bundle in world.bundles)
    assert all(os.path.getsize(bundle) % 64 == 0 for bundle in world.bundles)


def test_equal_adapters_make_equal_files(make_world: Any, tmp_path: Path) -> None:
    first = make_world()
    write(first.root / "a")
    first.store.fetch(first.key("a"))
    before = first.bundles[0].read_bytes()
    first.bundles[0].unlink()
    make_world().store.fetch(first.key("a"))
    assert first.bundles[0].read_bytes() == before


def flip(at: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        index = at(raw)
        return raw[:index] + bytes([raw[index] ^ 1]) + raw[index + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit in the last element": flip(lambda raw: len(raw) - 1),
    "a bit in the middle": flip(lambda raw: len(raw) // 2),
    "a bit in the header": flip(lambda raw: 60),
    "a bit in the header's checksum": flip(lambda raw: 20),
    "a bit in the magic": flip(lambda raw: 0),
    "a bit in the length": flip(lambda raw: 8),
    "a length beyond the file": lambda raw: raw[:8] + b"\xff\xff\xff\xff" + raw[12:],
    "cut": lambda raw: raw[:-1],
    "cut in the header": lambda raw: raw[:50],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_is_made_again_when_it_is_staged(
    damage: str, world: Any, caplog: pytest.LogCaptureFixture
) -> None:
    write(world.root / "a")
    version = world.store.fetch(world.key("a"))
    sound = world.bundles[0].read_bytes()
    world.bundles[0].write_bytes(DAMAGES[damage](sound))
    with caplog.at_level(logging.WARNING):
        world.store.stage(version.digest)
    assert "damaged" in caplog.text
    assert world.bundles[0].read_bytes() == sound
    assert (
        bytes(byte_view(world.store._host.get(version.digest).bytes))
        == sound[-version.bundle_bytes :]
    )


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_bundle_whose_source_is_gone_is_reported_and_removed(
    damage: str, make_world: Any
) -> None:
    world = make_world()
    write(world.root / "a")
    version = world.store.fetch(world.key("a"))
    world.bundles[0].write_bytes(DAMAGES[damage](world.bundles[0].read_bytes()))
    # A new process knows the bundle from the disk, and no key that leads to it.
    restarted = make_world()
    with pytest.raises(SourceUnavailable, match=version.digest) as caught:
        restarted.store.stage(version.digest)
    assert caught.value.remedy == "Fetch the adapter again"
    assert restarted.bundles == []
    assert restarted.store._host.bytes_used == 0
    restarted.store.fetch(restarted.key("a"))
    restarted.store.stage(version.digest)


def test_a_bundle_under_another_bundles_name_is_not_used(make_world: Any) -> None:
    world = make_world()
    write(world.root / "a")
    write(world.root / "b", seed=1)
    a, b = (world.store.fetch(world.key(name)).digest for name in "ab")
    by_digest = {bundle.name[:64]: bundle for bundle in world.bundles}
    by_digest[a].write_bytes(by_digest[b].read_bytes())
    with pytest.raises(SourceUnavailable):
        make_world().store.stage(a)


def test_the_adapter_changed_underneath_is_not_staged_under_the_old_digest(world: Any) -> None:
    write(world.root / "a")
    version = world.store.fetch(world.key("a"))
    world.bundles[0].unlink()
    write(world.root / "a", seed=1)
    with pytest.raises(SourceUnavailable):
        world.store.stage(version.digest)
    assert world.store.fetch(world.key("a")).digest != version.digest


def test_a_new_process_finds_the_bundles_of_the_old_one(make_world: Any) -> None:
    world = make_world()
    write(world.root / "a")
    write(world.root / "b", rank=3)
    versions = sorted((world.store.fetch(world.key(n)) for n in "ab"), key=lambda v: v.digest)
    restarted = make_world()
    assert [held.version for held in restarted.store.held()] == versions
    assert {held.tier for held in restarted.store.held()} == {Tier.DISK}


def test_a_scan_opens_no_bundle_that_is_as_it_was(world: Any, monkeypatch: Any) -> None:
    for seed, name in enumerate("abc"):
        write(world.root / name, seed=seed)
        world.store.fetch(world.key(name))
    held = world.store.held()
    changed, gone, _ = world.bundles
    changed.write_bytes(b"nonsense")
    gone.unlink()
    opened: list[Path] = []
    whole = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *how, **more: opened.append(path) or whole(path, *how, **more)
    )
    assert len(held) == 3
    assert world.store.held() == held[2:]
    assert opened == [changed]


def test_bundles_of_another_type_or_shape_are_left_alone(make_world: Any) -> None:
    world = make_world()
    write(world.root / "a")
    world.store.fetch(world.key("a"))
    half = make_world(dtype=torch.float16)
    assert half.store.held() == ()
    half.store.fetch(half.key("a"))
    assert len(half.bundles) == 2
    assert len(make_world().store.held()) == 1


def test_what_a_dead_writer_left_is_swept_and_what_a_living_one_writes_is_not(
    make_world: Any,
) -> None:
    world = make_world()
    dead, living = (world.cache_dir / "bundles" / f".{name}.partial" for name in "ab")
    dead.write_bytes(b"half a bundle")
    with living.open("wb") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        make_world()
        assert world.bundles == [living]
    make_world()
    assert world.bundles == []


def script(world: Any, before: str, names: list[str]) -> list[str]:
    """A process with a store of its own over the world's folders, which fetches and stages."""
    text = (
        "import os, resource, torch\n"
        "from pathlib import Path\n"
        "from adex_proto.adapter import AdapterKey, Tier\n"
        "from adex_proto.errors import AdexError\n"
        "from adex_worker.adapters.arena import Arena\n"
        "from adex_worker.testing import adapter_store, tiny_config, tiny_shape\n"
        "arena = Arena(pages=64, page_bytes=8192, dtype=torch.float32, device='cpu')\n"
        f"store = adapter_store(cache_dir=Path({str(world.cache_dir)!r}),"
        f" roots=[Path({str(world.root)!r})], shape=tiny_shape(tiny_config()),"
        " dtype=torch.float32, arena=arena, host_bytes=1 << 26, disk_bytes=1 << 26, rank_max=64)\n"
        f"{before}\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        digest = store.fetch(AdapterKey('', 'local', name)).digest\n"
        "        store.stage(digest)\n"
        "        store.evict(digest, Tier.HOST)\n"
        "        print('staged', name)\n"
        "    except AdexError as error: print('refused', error.code, error.field, error)\n"
    )
    return [sys.executable, "-c", text]


def environment() -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)


def test_a_crash_in_mid_write_leaves_no_bundle(make_world: Any) -> None:
    world = make_world()
    write(world.root / "a")
    crash = "os.fsync = lambda number: os._exit(9)"
    assert run(script(world, crash, ["a"])).returncode == 9
    assert [path.suffix for path in world.bundles] == [".partial"]
    restarted = make_world()
    assert restarted.bundles == []
    assert restarted.store.fetch(restarted.key("a")).modules == 14


def test_a_disk_that_takes_no_more_gives_a_typed_error_and_keeps_no_debris(world: Any) -> None:
    """A limit on file size makes the kernel refuse the write in the middle of the bundle."""
    write(world.root / "a")
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))"
    done = run(script(world, limit, ["a"]))
    assert done.stdout.startswith("refused source_unavailable cache_dir"), done.stderr
    assert "cannot be written (File too large)" in done.stdout
    assert "--cache-dir" in done.stdout
    assert world.bundles == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small file system")
def test_a_full_file_system_gives_a_typed_error_and_recovers(
    make_world: Any, tmp_path: Path
) -> None:
    bundles = tmp_path / "cache" / "bundles"
    bundles.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(bundles)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        world = make_world()
        write(world.root / "a", rank=4)
        write(world.root / "b", rank=8)
        small = world.store.fetch(world.key("a"))
        with pytest.raises(CacheFull, match="is full"):
            world.store.fetch(world.key("b"))
        assert len(world.bundles) == 1
        world.store.evict(small.digest, Tier.DISK)
        assert world.store.fetch(world.key("b")).rank_max == 8
    finally:
        subprocess.run(["umount", str(bundles)], check=True)


def test_a_cache_that_cannot_be_written_is_named(world: Any, monkeypatch: Any) -> None:
    write(world.root / "a")

    def refuse(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(SourceUnavailable, match="Input/output error") as caught:
        world.store.fetch(world.key("a"))
    assert caught.value.field == "cache_dir"
    assert world.bundles == []


def test_processes_may_share_one_cache(make_world: Any) -> None:
    world = make_world()
    names = [f"a{n}" for n in range(12)]
    for seed, name in enumerate(names):
        write(world.root / name, seed=seed)
    processes = [
        subprocess.Popen(
            script(world, "", order), stdout=subprocess.PIPE, text=True, env=environment()
        )
        for order in (names, names[::-1])
    ]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [output.split().count("staged") for output in outputs] == [12, 12], outputs
    assert len(world.bundles) == len(names)
    assert len(make_world().store.held()) == len(names)


def test_a_cache_that_was_swept_away_is_empty_and_then_used_again(world: Any) -> None:
    write(world.root / "a")
    digest = world.store.fetch(world.key("a")).digest
    (bundle,) = world.bundles
    shutil.rmtree(bundle.parent)
    assert world.store.held() == ()
    assert world.store.fetch(world.key("a")).digest == digest
    assert world.page_in("a", slot=1, first_page=7) == digest
