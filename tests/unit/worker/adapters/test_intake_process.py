"""The process that brings adapters: the same bundles and errors as here, whatever happens to it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import (
    AdapterMalformed,
    AdapterNotFound,
    ServerError,
    SourceUnavailable,
    ValidationError,
)
from adex_proto.logs import LogFormat
from adex_worker.adapters import intake_process
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.core.bundle_header import fingerprint_of
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.format import Limits
from adex_worker.adapters.intake import granted
from adex_worker.adapters.intake_process import IntakeProcess
from adex_worker.adapters.intake_wire import Frame, IntakeOptions, Kind
from adex_worker.adapters.leave import Leave
from adex_worker.adapters.store import AdapterStore
from adex_worker.testing import adapter_store, tiny_config, tiny_shape, write_random_adapter

SHAPE = tiny_shape(tiny_config())
ROOM = 1 << 26


def arena() -> Arena:
    return Arena(pages=256, page_bytes=8192, dtype=torch.float32, device="cpu")


class Beside:
    """A root of adapters, the process, and a store over both."""

    def __init__(self, folder: Path) -> None:
        self.root, self.cache = folder / "root", folder / "cache"
        self.root.mkdir()
        self.disk = DiskTier(self.cache, fingerprint_of(SHAPE, "float32"))
        options = IntakeOptions(
            cache_dir=self.cache,
            local_roots=(self.root,),
            s3_roots=(),
            use_server_hf_token=False,
            limits=Limits(SHAPE, 4, 64, ROOM),
            dtype="float32",
            kernels=None,
            log_level="INFO",
            log_format=LogFormat.TEXT,
        )
        self.intake = IntakeProcess(options, self.disk)
        self.store = AdapterStore(
            bringer=self.intake,
            disk=self.disk,
            shape=SHAPE,
            dtype=torch.float32,
            arena=arena(),
            host_bytes=ROOM,
        )

    def key(self, name: str, seed: int = 0) -> AdapterKey:
        """A new adapter's key."""
        write_random_adapter(self.root / name, SHAPE, seed=seed)
        return AdapterKey("", "local", name)

    @property
    def pid(self) -> int:
        return self.intake._life._process.pid

    def kept(self) -> set[str]:
        return {version.digest for version in self.disk.scan()}


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    world = Beside(tmp_path_factory.mktemp("beside"))
    yield world
    world.store.close()


def test_what_the_process_brings_is_what_is_brought_here(beside: Beside, tmp_path: Path) -> None:
    key = beside.key("equal", seed=1)
    here = adapter_store(
        cache_dir=tmp_path,
        roots=[beside.root],
        shape=SHAPE,
        dtype=torch.float32,
        arena=arena(),
        host_bytes=ROOM,
        disk_bytes=ROOM,
        rank_max=64,
    )
    version = beside.store.fetch(key)
    assert version == here.fetch(key)
    (theirs,) = (beside.cache / "bundles").glob(f"{version.digest}*")
    (ours,) = (tmp_path / "bundles").glob(f"{version.digest}*")
    assert theirs.read_bytes() == ours.read_bytes()


def test_refusals_come_across_as_what_they_are(beside: Beside) -> None:
    with pytest.raises(AdapterNotFound, match="absent"):
        beside.store.fetch(AdapterKey("", "local", "absent"))
    with pytest.raises(ValidationError) as refused:
        beside.store.fetch(AdapterKey("", "nowhere", "a"))
    assert refused.value.field == "adapter_source"
    key = beside.key("short")
    weights = beside.root / "short" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(AdapterMalformed):
        beside.store.fetch(key)


def test_many_at_once_are_each_answered_with_their_own(beside: Beside) -> None:
    keys = [beside.key(f"many-{seed}", seed=100 + seed) for seed in range(24)]
    with ThreadPoolExecutor(12) as pool:
        versions = list(pool.map(beside.store.fetch, keys))
    assert len({version.digest for version in versions}) == len(keys)
    assert {version.digest for version in versions} <= beside.kept()
    assert versions == [beside.store.fetch(key) for key in keys]


def test_once_leave_is_withdrawn_nothing_is_kept(beside: Beside) -> None:
    key, leave, before = beside.key("unwanted", seed=2), Leave(), beside.kept()
    leave.withdraw()
    with pytest.raises(ServerError):
        beside.store.fetch(key, leave=leave)
    assert beside.kept() == before


def test_a_damaged_bundle_is_brought_again(beside: Beside) -> None:
    digest = beside.store.fetch(beside.key("damaged", seed=3)).digest
    (path,) = (beside.cache / "bundles").glob(f"{digest}*")
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    beside.store.stage(digest)
    assert path.read_bytes() == sound


def test_a_bundle_whose_files_have_changed_is_not_brought_again(beside: Beside) -> None:
    digest = beside.store.fetch(beside.key("changing", seed=4)).digest
    beside.key("changing", seed=5)
    beside.store.evict(digest, Tier.DISK)
    with pytest.raises(SourceUnavailable, match="missing or was damaged"):
        beside.store.stage(digest)


@pytest.mark.slow
def test_a_process_that_dies_costs_what_it_was_asked_and_no_more(beside: Beside) -> None:
    key, before = beside.key("mortal", seed=6), beside.pid
    os.kill(before, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(beside.store.fetch, key)
        wait_until(lambda: bool(beside.intake._life._waiting))
        os.kill(before, signal.SIGKILL)
        with pytest.raises(SourceUnavailable, match="ended before"):
            asked.result(timeout=60)
    assert beside.store.fetch(key).digest in beside.kept()
    assert beside.pid != before


@pytest.mark.slow
def test_what_nobody_was_told_of_is_not_kept(beside: Beside) -> None:
    key, before, asked = beside.key("untold", seed=7), beside.kept(), threading.Event()

    @contextmanager
    def dying(_digest: str) -> Generator[None, None, None]:
        asked.set()
        os.kill(beside.pid, signal.SIGKILL)
        yield

    with pytest.raises(SourceUnavailable):
        beside.intake.fetch(key, "", dying)
    assert asked.is_set()
    assert beside.kept() == before
    assert beside.intake.fetch(key, "", granted).digest in beside.kept()


@pytest.mark.slow
def test_the_process_ends_with_its_input(tmp_path: Path) -> None:
    world = Beside(tmp_path)
    process = world.intake._life._process
    world.store.close()
    assert process.returncode == 0
    with pytest.raises(SourceUnavailable):
        world.store.fetch(world.key("late"))


@pytest.mark.slow
def test_a_command_that_cannot_be_answered_ends_the_process_rather_than_wait(
    beside: Beside,
) -> None:
    key, before = beside.key("after-nonsense", seed=8), beside.pid
    beside.intake._life._say(Frame(1 << 31, Kind.COMMAND, b"\xff"))
    wait_until(lambda: beside.intake._life.over)
    assert beside.store.fetch(key).digest in beside.kept()
    assert beside.pid != before


@pytest.mark.slow
def test_a_process_that_does_not_read_holds_up_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake_process, "_END_S_MAX", 0.2)
    world = Beside(tmp_path)
    process = world.intake._life._process
    os.kill(process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        # More than a pipe holds.
        asked = pool.submit(world.intake.fetch, world.key("long"), "x" * (1 << 20), granted)
        wait_until(world.intake._life._writing.locked)
        world.store.close()
        with pytest.raises(SourceUnavailable):
            asked.result(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="Linux chooses whom it ends")
def test_where_memory_runs_out_the_process_falls_before_the_worker(beside: Beside) -> None:
    beside.store.fetch(beside.key("hungry", seed=9))
    score = Path(f"/proc/{beside.pid}/oom_score_adj").read_text(encoding="ascii")
    assert int(score) == 1000


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
