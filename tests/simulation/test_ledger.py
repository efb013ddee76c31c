"""The bytes the scheduler believes in are the bytes the worker holds, whatever has failed.

The worlds are those of test_worlds, but adapters are real files, and a real adapter store carries
out what the scheduler asks: it reads, checks, converts, writes, stages and copies, while its
source, its disk and its memory fail at every point at which they can. Whenever nothing is under
way, both ledgers are compared, tier by tier.
"""

import asyncio
import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch

import pytest
import torch

from adex_kernels.layout import LinearShape, ModelShape
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import SourceUnavailable
from adex_proto.outcome import (
    AdapterEvent,
    Fetched,
    FetchFailed,
    Hello,
    Moved,
    MoveFailed,
    WorkerInfo,
)
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage
from adex_scheduler.core.adapters import HostCopy, Residence
from adex_scheduler.core.events import Event, MovesDue
from adex_scheduler.core.instructions import Instruction
from adex_scheduler.testing.fake_worker import FakeWorker
from adex_scheduler.testing.world import Mishaps, World
from adex_worker.adapters import device_tier, disk_tier, host_tier, views
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.core.config import CONFIG_FILE
from adex_worker.adapters.leave import Leave
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.service.commands import CommandPools
from adex_worker.testing import adapter_store, write_random_adapter

SHAPE = ModelShape(
    2,
    tuple(
        LinearShape(*sizes)
        for sizes in ((16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16))
    ),
)
# Beside the first, those in which something was once wrong.
SEEDS = (*range(40), 98)
PAGE_BYTES = 1024
WILD = Mishaps(
    worker_loss=0.02, adapter_change=0.06, command_failure=0.15, cancel=0.05, control=0.1
)


# What can fail, each for as long as one command runs.


def _raises(error: BaseException, after: int = 0) -> Callable[..., NoReturn]:
    """A function that does its duty `after` times (which is: nothing), and then raises."""
    calls = Counter[str]()

    def fail(*_: Any, **__: Any) -> Any:
        calls["all"] += 1
        if calls["all"] > after:
            raise error

    return fail


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def failing_sync(on_call: int) -> Generator[None]:
    """The disk fails to make the bundle (1) or its name (2) last."""
    with patch.object(os, "fsync", _raises(OSError(errno.EIO, "I/O error"), on_call - 1)):
        yield


@contextmanager
def half_written() -> Generator[None]:
    write = os.write

    def some(number: int, view: memoryview) -> int:
        if len(view) < 600:
            return write(number, view)
        write(number, view[:300])
        raise full_disk()

    with patch.object(os, "write", some):
        yield


FETCH_FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the source does not answer": lambda: patch.object(
        LocalSource, "resolve", _raises(SourceUnavailable("it is down"))
    ),
    "the source breaks off": lambda: patch.object(
        LocalSource, "open", _raises(OSError(errno.EIO, "I/O error"))
    ),
    "the files change": lambda: patch.object(LocalSource, "unchanged", lambda *_: False),
    "the disk is full": half_written,
    "the disk takes no name": lambda: patch.object(os, "replace", _raises(full_disk())),
    "the bundle does not last": lambda: failing_sync(1),
    "its name does not last": lambda: failing_sync(2),
    "no memory to convert": lambda: patch.object(torch, "zeros", _raises(MemoryError())),
}
PAGE_IN_FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the copy fails": lambda: patch.object(
        device_tier.DeviceTier, "_copy", _raises(RuntimeError("the device is unwell"))
    ),
    "no record": lambda: patch.object(views, "record_of", _raises(MemoryError())),
}
STAGE_FAULTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "the disk does not answer": lambda: patch.object(
        disk_tier, "_read_header", _raises(OSError(errno.EIO, "I/O error"))
    ),
    "no memory": lambda: patch.object(host_tier.torch, "empty", _raises(MemoryError())),
}
DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit flips": lambda path: path.write_bytes(_flipped(path.read_bytes())),
    "it is cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "it is swept away": lambda path: path.unlink(),
}


def _flipped(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


class StoreWorker(FakeWorker):
    """The fake worker's steps and its eye for the contract, over the real store and its pools."""

    def __init__(self, info: WorkerInfo, folder: Path, chance: Random) -> None:
        self.chance = chance
        self.faults: Counter[str] = Counter()
        self._folder = folder
        self._loop = asyncio.Runner()
        self._leave = Leave()
        self._orphans: list[tuple[Fetch, Leave]] = []
        (folder / "adapters").mkdir()
        self.info = info
        self._start()
        super().__init__(info)

    def close(self) -> None:
        self.pools.close()
        self._loop.close()

    def _start(self) -> None:
        """As a process that starts over what its predecessor left on disk."""
        info = self.info
        self.arena = Arena(
            pages=info.pages, page_bytes=PAGE_BYTES, dtype=torch.float32, device="cpu"
        )
        self.store = adapter_store(
            cache_dir=self._folder / "cache",
            roots=[self._folder / "adapters"],
            shape=SHAPE,
            dtype=torch.float32,
            arena=self.arena,
            host_bytes=info.host_bytes,
            disk_bytes=info.disk_bytes,
            rank_max=info.rank_max,
        )
        self.pools = CommandPools(self.store)
        self._orphans.clear()

    def forget_device(self) -> None:
        """The end of a stream, as the session cleans up after it."""
        if hasattr(self, "commands"):
            self._orphans += [(c, self._leave) for c in self.commands if isinstance(c, Fetch)]
        self._leave.withdraw()
        self._leave = Leave()
        self.store.release_device()
        super().forget_device()

    def hello(self) -> Hello:
        if not self.host:
            self.pools.close()
            self._start()
        super().hello()
        held = self.store.held()
        self.disk = {copy.version.digest: copy.version for copy in held}
        self.host = {copy.version.digest for copy in held if copy.tier is Tier.HOST}
        return Hello(self.info, held)

    def run_command(self, index: int, *, fail: bool = False) -> AdapterEvent:
        if self._orphans and self.chance.random() < 0.5:
            # A download that has outlived its stream ends beside its successor's commands.
            orphan, leave = self._orphans.pop(0)
            self._execute(orphan, leave)
        command = self.commands.pop(index)
        with self._fault(command) if fail else nullcontext():
            answer = self._execute(command, self._leave)
        match answer:
            case Fetched(_, version):
                self.disk[version.digest] = version
            case Moved(digest, Tier.HOST):
                self.host.add(digest)
            case Moved(_, Tier.DEVICE):
                assert isinstance(command, PageIn)
                self.slots[command.slot].ready = True
            case MoveFailed(_, Tier.DEVICE):
                assert isinstance(command, PageIn), "nothing refuses to leave the device"
                del self.slots[command.slot]
            case _:
                assert not isinstance(answer, MoveFailed) or answer.tier is Tier.HOST
        if fail and isinstance(answer, FetchFailed | MoveFailed):
            self.faults["failed"] += 1
        return answer

    def _execute(self, command: AdapterCommand, leave: Leave) -> AdapterEvent:
        return self._loop.run(self.pools.execute(command, leave))

    def _fault(self, command: AdapterCommand) -> AbstractContextManager[Any]:
        match command:
            case Fetch():
                faults = FETCH_FAULTS
            case PageIn():
                faults = PAGE_IN_FAULTS
            case Stage(digest) if self.chance.random() < 0.6:
                return self._damaged(digest)
            case Stage():
                faults = STAGE_FAULTS
            case Evict():
                return nullcontext()
        name = self.chance.choice(sorted(faults))
        self.faults[name] += 1
        return faults[name]()

    def _damaged(self, digest: str) -> AbstractContextManager[Any]:
        name = self.chance.choice(sorted(DAMAGES))
        for path in (self._folder / "cache" / "bundles").glob(f"*{digest}*"):
            self.faults[name] += 1
            DAMAGES[name](path)
        return nullcontext()


class LedgerWorld(World):
    """A world whose versions are files, and which compares the ledgers whenever it is quiet."""

    def __init__(self, seed: int, folder: Path, versions: dict[Path, AdapterVersion]) -> None:
        self._root = folder / "adapters"
        self._library = versions
        self.compared = 0
        chance = Random(seed)
        super().__init__(
            seed,
            requests=25,
            mishaps=WILD,
            worker_of=lambda info: StoreWorker(info, folder, chance),
            page_bytes=PAGE_BYTES,
            pages=chance.choice([32, 64, 200]),
            slots_max=chance.choice([1, 2, 8]),
            host_bytes=chance.choice([8_000, 16_000, 60_000]),
            disk_bytes=chance.choice([8_000, 24_000, 100_000]),
        )

    def new_version(self, key: AdapterKey) -> AdapterVersion:
        source = self.chance.choice(sorted(self._library))
        shutil.rmtree(self._root / key.name, ignore_errors=True)
        shutil.copytree(source, self._root / key.name)
        return self._library[source]

    def _change_adapter(self) -> None:
        """Now and then the new files are none that can be served."""
        super()._change_adapter()
        for key, meaning in self.worker.published.items():
            if not isinstance(meaning, AdapterVersion):
                (self._root / key.name / CONFIG_FILE).write_text("{}")

    def tell(self, event: Event) -> list[Instruction]:
        instructions = super().tell(event)
        # After any other event the core has yet to ask for what it misses.
        at_rest = isinstance(event, MovesDue) and not self.worker.commands and not self.up
        if self.connected and at_rest:
            self.compare()
        return instructions

    def compare(self) -> None:
        """Both ledgers, tier by tier."""
        tiers, worker = self.core.tiers, self.worker
        assert isinstance(worker, StoreWorker)
        store = worker.store
        on_disk = {version.digest: version.bundle_bytes for version in store._disk.scan()}
        believed = {a.digest: a.version.bundle_bytes for a in tiers.adapters.values()}
        assert believed == on_disk
        assert tiers.disk_bytes == sum(on_disk.values())
        in_host = {copy.header.version.digest for copy in store._host.copies()}
        assert {a.digest for a in tiers.adapters.values() if a.host is HostCopy.HELD} == in_host
        assert tiers.host_bytes == store._host.bytes_used <= worker.info.host_bytes
        on_device = {
            a.digest: (a.slot, a.first_page)
            for a in tiers.adapters.values()
            if a.residence in (Residence.DEVICE, Residence.DRAINING)
        }
        assert on_device == store._device._held
        pages = sum(tiers.adapters[digest].pages for digest in on_device)
        assert pages == worker.arena.adapter_pages
        assert set(store._device._claimed_slots) == {slot for slot, _ in on_device.values()}
        self.compared += 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, AdapterVersion]:
    """Folders of adapters, and what they are to a store."""
    base = tmp_path_factory.mktemp("library")
    folders = [
        write_random_adapter(base / f"v{seed}", SHAPE, rank=1 + seed % 4, seed=seed)
        for seed in range(12)
    ]
    arena = Arena(pages=64, page_bytes=PAGE_BYTES, dtype=torch.float32, device="cpu")
    witness = adapter_store(
        cache_dir=base / "cache",
        roots=[base],
        shape=SHAPE,
        dtype=torch.float32,
        arena=arena,
        host_bytes=1 << 20,
        disk_bytes=1 << 20,
        rank_max=64,
    )
    return {folder: witness.fetch(AdapterKey("", "local", folder.name)) for folder in folders}


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path)


def test_the_bytes_believed_in_are_the_bytes_held_after_every_failure(
    library: dict[Path, AdapterVersion], folders: Path
) -> None:
    faults: Counter[str] = Counter()
    compared = 0
    for seed in SEEDS:
        folder = folders / str(seed)
        folder.mkdir()
        world = LedgerWorld(seed, folder, library)
        worker = world.worker
        assert isinstance(worker, StoreWorker)
        try:
            world.run()
            world.compare()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
        finally:
            worker.close()
        faults += worker.faults
        compared += world.compared
    # Worlds in which nothing fails, and comparisons that never come, would prove nothing.
    assert compared > 10 * len(SEEDS)
    every = [*FETCH_FAULTS, *STAGE_FAULTS, *PAGE_IN_FAULTS, *DAMAGES]
    assert not [name for name in every if not faults[name]], faults
