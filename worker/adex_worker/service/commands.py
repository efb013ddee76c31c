"""Adapter commands beside the steps: a bounded pool of threads per kind, one answer per command.

A slow download never delays a copy to the device, because they wait in different queues. Commands
on one digest run in the order they came, whatever their kinds.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import (
    AdapterMalformed,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
    AdexError,
    CacheFull,
    ProtocolViolation,
    RankTooLarge,
    ServerError,
)
from adex_proto.outcome import (
    AdapterEvent,
    Evicted,
    Fetched,
    FetchFailed,
    Held,
    Moved,
    MoveFailed,
)
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage
from adex_worker.adapters.leave import Leave
from adex_worker.adapters.priority import step_aside

_LOG = logging.getLogger(__name__)

# Downloads wait for networks, so many may; reads and copies contend for one disk and one link.
_THREADS: dict[type[AdapterCommand], int] = {Fetch: 8, Stage: 4, PageIn: 2, Evict: 1}
_NAMES: dict[type[AdapterCommand], str] = {
    Fetch: "fetch",
    Stage: "stage",
    PageIn: "page_in",
    Evict: "evict",
}
COMMANDS_UNDER_WAY_MAX = 16384
# What is said of an adapter whose files were there to be read.
_READ = (
    AdapterMalformed,
    AdapterMismatch,
    AdapterTooLarge,
    AdapterUnsupported,
    RankTooLarge,
)


class Store(Protocol):
    """The adapters' bytes. Every method blocks, and may be called on any thread."""

    def fetch(
        self, key: AdapterKey, credential: str = "", leave: Leave | None = None
    ) -> AdapterVersion: ...
    def stage(self, digest: str) -> object: ...
    def page_in(self, digest: str, slot: int, first_page: int, pages: int) -> object: ...
    def evict(self, digest: str, tier: Tier) -> object: ...
    def held(self) -> tuple[Held, ...]: ...
    def release_device(self) -> object: ...


@dataclass(frozen=True, slots=True)
class CommandStatistics:
    """Commands of one kind since the start: taken, ended by kind of end, and seconds of work."""

    kind: str
    taken: int
    done: int
    failed: int
    seconds: float


class CommandPools:
    """The threads that commands run on; they outlive streams."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._counting = threading.Lock()
        self._counts = {
            kind: CommandStatistics(name, 0, 0, 0, 0.0) for kind, name in _NAMES.items()
        }
        self._pools = {
            kind: ThreadPoolExecutor(threads, f"adex-{kind.__name__.lower()}", step_aside)
            for kind, threads in _THREADS.items()
        }

    async def execute(self, command: AdapterCommand, leave: Leave) -> AdapterEvent:
        """Carry out one command, unless `leave` is withdrawn before it changes anything.

        Returns: its answer; a failure is an answer too.
        """
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self._pools[type(command)], self._perform, command, leave
            )
        except AdexError as error:
            _LOG.log(_level(error), "%s", _told(command, error))
            return _failed(command, error)
        except Exception as error:
            _LOG.exception("%s failed", _described(command))
            kind = type(command).__name__
            return _failed(command, ServerError(f"{kind} failed ({type(error).__name__})"))
        return result

    def statistics(self) -> tuple[CommandStatistics, ...]:
        """One for each kind. Any thread may ask."""
        with self._counting:
            return tuple(self._counts.values())

    def _perform(self, command: AdapterCommand, leave: Leave) -> AdapterEvent:
        """Blocks; called on the pool's threads."""
        began_s = time.monotonic()
        self._count(command, taken=1)
        try:
            event = self._carry_out(command, leave)
        except BaseException:
            self._count(command, failed=1, seconds=time.monotonic() - began_s)
            raise
        self._count(command, done=1, seconds=time.monotonic() - began_s)
        return event

    def _count(
        self,
        command: AdapterCommand,
        *,
        taken: int = 0,
        done: int = 0,
        failed: int = 0,
        seconds: float = 0.0,
    ) -> None:
        with self._counting:
            old = self._counts[type(command)]
            self._counts[type(command)] = CommandStatistics(
                old.kind,
                old.taken + taken,
                old.done + done,
                old.failed + failed,
                old.seconds + seconds,
            )

    def _carry_out(self, command: AdapterCommand, leave: Leave) -> AdapterEvent:
        if isinstance(command, Fetch):
            # The wait for its source is no deed yet; nobody waits for it when a stream ends.
            return Fetched(command.key, self.store.fetch(command.key, command.credential, leave))
        with leave.deed():
            return self._move(command)

    def _move(self, command: Stage | PageIn | Evict) -> AdapterEvent:
        match command:
            case Stage(digest):
                self.store.stage(digest)
                return Moved(digest, Tier.HOST)
            case PageIn(digest, slot, first_page, pages):
                self.store.page_in(digest, slot, first_page, pages)
                return Moved(digest, Tier.DEVICE)
            case Evict(digest, tier):
                self.store.evict(digest, tier)
                return Evicted(digest, tier)

    def close(self) -> None:
        """Take no more commands; those running end on their own."""
        for pool in self._pools.values():
            pool.shutdown(wait=False, cancel_futures=True)


class Commands:
    """The commands of one stream."""

    def __init__(self, pools: CommandPools, answer: Callable[[AdapterEvent], None]) -> None:
        self._pools = pools
        self._answer = answer
        self._under_way: dict[asyncio.Task[None], AdapterCommand] = {}
        self._last_by_digest: dict[str, asyncio.Task[None]] = {}
        self._leave = Leave()

    def submit(self, command: AdapterCommand) -> None:
        """Start a command, after the last one on its digest.

        Raises ProtocolViolation beyond COMMANDS_UNDER_WAY_MAX.
        """
        if len(self._under_way) >= COMMANDS_UNDER_WAY_MAX:
            raise ProtocolViolation(f"more than {COMMANDS_UNDER_WAY_MAX} adapter commands at once")
        digest = None if isinstance(command, Fetch) else command.digest
        before = None if digest is None else self._last_by_digest.get(digest)
        task = asyncio.create_task(self._carry_out(command, before))
        self._under_way[task] = command
        if digest is not None:
            self._last_by_digest[digest] = task
        task.add_done_callback(lambda done: self._forget(done, digest))

    async def settle(self) -> None:
        """Drop what has not begun and wait for all that changes a tier.

        Downloads are left to end on their own, and keep nothing: what a worker says it holds when a
        stream opens is all it holds until that stream's commands change it.
        """
        await asyncio.to_thread(self._leave.withdraw)

    async def _carry_out(self, command: AdapterCommand, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._answer(await self._pools.execute(command, self._leave))

    def _forget(self, task: asyncio.Task[None], digest: str | None) -> None:
        del self._under_way[task]
        if digest is not None and self._last_by_digest.get(digest) is task:
            del self._last_by_digest[digest]


def _failed(command: AdapterCommand, error: AdexError) -> FetchFailed | MoveFailed:
    match command:
        case Fetch(key):
            return FetchFailed(key, error)
        case Stage(digest):
            return MoveFailed(digest, Tier.HOST, error)
        case PageIn(digest):
            return MoveFailed(digest, Tier.DEVICE, error)
        case Evict(digest, tier):
            return MoveFailed(digest, tier, error)


def _level(error: AdexError) -> int:
    """A full disk is the operator's to mend; other failures are their callers'."""
    return logging.WARNING if isinstance(error, CacheFull) else logging.INFO


def _told(command: AdapterCommand, error: AdexError) -> str:
    """A failure in words fit for a log; of files that everybody may read, also whose and why."""
    if isinstance(command, Fetch) and command.key.tenant == "" and isinstance(error, _READ):
        return f"fetch of {command.key.name!r}: {error.code}: {' '.join(error.message.split())}"
    why = f": {error}" if isinstance(error, CacheFull) else ""
    return f"{_described(command)}: {error.code}{why}"


def _described(command: AdapterCommand) -> str:
    """The command in words fit for a log.

    A name stays out of it: until it has meant something it may be a private one, asked for without
    its credential.
    """
    match command:
        case Fetch(key):
            return f"fetch of an adapter from {key.source}"
        case Stage(digest):
            return f"stage of {digest[:12]}"
        case PageIn(digest, slot):
            return f"page-in of {digest[:12]} to slot {slot}"
        case Evict(digest, tier):
            return f"eviction of {digest[:12]} from {tier.name}"
