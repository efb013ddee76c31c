"""The worker's hold on the process that brings adapters onto the disk; see `intake_main`."""

import itertools
import logging
import pickle
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from queue import SimpleQueue

from adex_proto.adapter import AdapterKey, AdapterVersion
from adex_proto.codec import FromWorkerMessage, Up, decode_from_worker, encode_to_worker
from adex_proto.errors import ServerError, SourceUnavailable
from adex_proto.outcome import Fetched, FetchFailed, Moved, MoveFailed
from adex_proto.plan import Fetch, Stage
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.intake import Permission
from adex_worker.adapters.intake_wire import (
    Frame,
    IntakeOptions,
    Kind,
    read_frame,
    write_frame,
)

_LOG = logging.getLogger(__name__)
_END_S_MAX = 5.0


class IntakeProcess:
    """Starts the process, and again after it has died. Any thread may ask; each waits for its own.

    An adapter that the process dies of costs the requests under way there, and no step.
    """

    def __init__(self, options: IntakeOptions, disk: DiskTier) -> None:
        """`disk` is where the process keeps its bundles, as seen from here."""
        self._options = options
        self._disk = disk
        self._changing = threading.Lock()
        self._closed = False
        self._life = self._begin()

    def fetch(self, key: AdapterKey, credential: str, permission: Permission) -> AdapterVersion:
        """See Bringer."""
        answer = self._ask(Fetch(key, credential), permission)
        match answer:
            case Fetched(_, version):
                return version
            case FetchFailed(_, error):
                raise error
            case _:
                raise _nonsense(answer)

    def restore(self, digest: str, permission: Permission) -> None:
        """See Bringer."""
        answer = self._ask(Stage(digest), permission)
        match answer:
            case Moved():
                return
            case MoveFailed(_, _, error):
                raise error
            case _:
                raise _nonsense(answer)

    def close(self) -> None:
        """End the process; whoever still waits for it is told."""
        with self._changing:
            self._closed = True
            self._life.end()

    def _ask(self, command: Fetch | Stage, permission: Permission) -> Up:
        with self._changing:
            if self._life.over and not self._closed:
                self._life = self._begin()
            life = self._life
        return life.ask(command, permission)

    def _begin(self) -> "_Life":
        return _Life(self._options, self._disk)


class _Life:
    """One process from its start to its end."""

    def __init__(self, options: IntakeOptions, disk: DiskTier) -> None:
        self._process = subprocess.Popen(
            # In the worker's own session: with autogroups, Linux weighs priorities only within one.
            [sys.executable, "-P", "-m", "adex_worker.adapters.intake_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin
        self._writing = threading.Lock()
        self._disk = disk
        self._numbers = itertools.count(1)
        self._waiting: dict[int, SimpleQueue[Frame | None]] = {}
        self._granted: dict[int, str] = {}
        self._changing = threading.Lock()
        self.over = False
        self._say(Frame(0, Kind.OPTIONS, pickle.dumps(options)))
        threading.Thread(target=self._listen, name="adex-intake", daemon=True).start()

    def ask(self, command: Fetch | Stage, permission: Permission) -> Up:
        """The answer. Raises SourceUnavailable where the process ends before it has one."""
        data = encode_to_worker(command).SerializeToString()
        frames: SimpleQueue[Frame | None] = SimpleQueue()
        with self._changing:
            if self.over:
                raise _died()
            number = next(self._numbers)
            self._waiting[number] = frames
        self._say(Frame(number, Kind.COMMAND, data))
        try:
            with ExitStack() as deeds:
                while (frame := frames.get()) is not None:
                    if frame.kind is Kind.ANSWER:
                        return decode_from_worker(FromWorkerMessage.FromString(frame.data))
                    self._decide(frame, permission, deeds)
            raise _died()
        finally:
            with self._changing:
                self._waiting.pop(number, None)
                self._granted.pop(number, None)

    def end(self) -> None:
        """End the process and wait for it."""
        # Where it does not read, whoever writes to it has the pipe for as long.
        if self._hang_up(_END_S_MAX):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S_MAX)
                return
        self._process.kill()
        self._process.wait()

    def _decide(self, frame: Frame, permission: Permission, deeds: ExitStack) -> None:
        """Grant what the process asks for, for as long as it takes to answer."""
        digest = frame.data.decode()
        try:
            deeds.enter_context(permission(digest))
        except ServerError:
            self._say(Frame(frame.number, Kind.REFUSE))
            return
        with self._changing:
            self._granted[frame.number] = digest
        self._say(Frame(frame.number, Kind.GRANT))

    def _listen(self) -> None:
        """Hand each frame to whoever waits for it, until the process ends."""
        assert self._process.stdout is not None
        try:
            while (frame := read_frame(self._process.stdout)) is not None:
                with self._changing:
                    frames = self._waiting.get(frame.number)
                    if frame.kind is Kind.ANSWER:
                        self._granted.pop(frame.number, None)
                if frames is not None:
                    frames.put(frame)
        except ValueError:
            _LOG.exception("the process that brings adapters here makes no sense")
            self._process.kill()
        status = self._process.wait()
        self._process.stdout.close()
        self._hang_up()
        with self._changing:
            self.over = True
            if self._waiting:
                _LOG.error("the process that brings adapters here ended with status %d", status)
            for digest in self._granted.values():
                # It may have been kept, but nobody will be told of it.
                self._disk.remove(digest)
            for frames in self._waiting.values():
                frames.put(None)

    def _hang_up(self, wait_s_max: float = -1) -> bool:
        """Whether the process has no more input, so that it ends."""
        if not self._writing.acquire(timeout=wait_s_max):
            return False
        with suppress(OSError):
            self._pipe.close()
        self._writing.release()
        return True

    def _say(self, frame: Frame) -> None:
        # Where nobody reads any more, the listener tells whoever waits.
        with self._writing, suppress(OSError, ValueError):
            write_frame(self._pipe, frame)


def _died() -> SourceUnavailable:
    return SourceUnavailable(
        "the process that brings adapters here ended before it had this one",
        field="adapter_id",
        remedy="Try again; if it happens again, have the worker's log looked at",
        retry_after_s=1.0,
    )


def _nonsense(answer: Up) -> ServerError:
    return ServerError(f"{type(answer).__name__} is no answer of an intake")
