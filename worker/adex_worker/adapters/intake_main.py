"""The process that brings adapters onto the disk, beside the one that computes steps.

    python -m adex_worker.adapters.intake_main

It speaks `intake_wire` on its input and output, and ends with its input. What is slow, hostile or
hungry for the processor in a download or a conversion holds neither the worker's interpreter nor
its memory, and stands behind its steps.
"""

import gc
import logging
import os
import pickle
import signal
import sys
import threading
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import BinaryIO, NoReturn

import torch

from adex_kernels.native import library
from adex_proto.adapter import Tier
from adex_proto.codec import ToWorkerMessage, Up, decode_to_worker, encode_from_worker
from adex_proto.errors import AdexError, ProtocolViolation, ServerError
from adex_proto.outcome import Fetched, FetchFailed, Moved, MoveFailed
from adex_proto.plan import Fetch, Stage
from adex_worker.adapters.core.bundle_header import fingerprint_of
from adex_worker.adapters.disk_tier import DiskTier
from adex_worker.adapters.intake import Intake
from adex_worker.adapters.intake_wire import (
    Frame,
    IntakeOptions,
    Kind,
    read_frame,
    write_frame,
)
from adex_worker.adapters.priority import fall_first, stand_behind
from adex_worker.adapters.sources.served import served_sources
from adex_worker.logs import configure_logging

_LOG = logging.getLogger(__name__)

# As many as the worker asks for at once; most of them wait for networks.
_THREADS = 16


def main() -> None:
    """Serve until the input ends."""
    fall_first()
    stand_behind()
    # What is typed at a terminal is for the worker, which then ends this input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    # Whatever a library prints must not come between two frames.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        _Service(sys.stdin.buffer, output).run()
    except Exception as error:
        _give_up(error)
    # Downloads may hang on; nobody waits for them.
    os._exit(0)


class _Service:
    """Reads commands, carries each out on a thread, and answers."""

    def __init__(self, down: BinaryIO, up: BinaryIO) -> None:
        self._down, self._up = down, up
        self._writing = threading.Lock()
        self._replies: dict[int, SimpleQueue[Kind]] = {}

    def run(self) -> None:
        """Until the input ends."""
        first = read_frame(self._down)
        if first is None:
            return
        intake = _intake(pickle.loads(first.data))  # noqa: S301 -- the worker's own words
        gc.freeze()
        threads = ThreadPoolExecutor(_THREADS, "adex-intake")
        while (frame := read_frame(self._down)) is not None:
            if frame.kind is Kind.COMMAND:
                self._replies[frame.number] = SimpleQueue()
                carried_out = threads.submit(self._carry_out, intake, frame)
                carried_out.add_done_callback(_answered)
            else:
                self._replies[frame.number].put(frame.kind)

    def _carry_out(self, intake: Intake, frame: Frame) -> None:
        command = decode_to_worker(ToWorkerMessage.FromString(frame.data))
        answer: Up
        match command:
            case Fetch(key, credential):
                try:
                    version = intake.fetch(
                        key, credential, lambda digest: self._asked(frame.number, digest)
                    )
                    answer = Fetched(key, version)
                except Exception as error:
                    answer = FetchFailed(key, _shown(error))
            case Stage(digest):
                try:
                    intake.restore(digest, lambda digest: self._asked(frame.number, digest))
                    answer = Moved(digest, Tier.DISK)
                except Exception as error:
                    answer = MoveFailed(digest, Tier.DISK, _shown(error))
            case _:
                raise ProtocolViolation(f"{type(command).__name__} is no command to an intake")
        del self._replies[frame.number]
        data = encode_from_worker(answer).SerializeToString()
        self._say(Frame(frame.number, Kind.ANSWER, data))

    @contextmanager
    def _asked(self, number: int, digest: str) -> Generator[None, None, None]:
        """Ask whether the bundle is still wanted; the worker holds on to its yes."""
        self._say(Frame(number, Kind.ASK, digest.encode()))
        if self._replies[number].get() is not Kind.GRANT:
            raise ServerError("nobody waits for this adapter any more")
        yield

    def _say(self, frame: Frame) -> None:
        with self._writing:
            write_frame(self._up, frame)


def _answered(command: Future[None]) -> None:
    """The worker would wait for ever for an answer that could not be given."""
    error = command.exception()
    if error is not None:
        _give_up(error)


def _give_up(error: BaseException) -> NoReturn:
    """End, which the worker tells all who wait for this process."""
    _LOG.critical("adapters can no longer be brought here", exc_info=error)
    os._exit(1)


def _intake(options: IntakeOptions) -> Intake:
    configure_logging(options.log_level, options.log_format)
    if options.kernels is not None:
        # The worker has just loaded the same file; where it has gone since, torch does as well.
        with suppress(OSError, AttributeError):
            library.register(library.Library(options.kernels))
    sources = served_sources(
        options.cache_dir,
        options.local_roots,
        options.s3_roots,
        use_server_hf_token=options.use_server_hf_token,
    )
    disk = DiskTier(options.cache_dir, fingerprint_of(options.limits.shape, options.dtype))
    return Intake(sources, disk, options.limits, getattr(torch, options.dtype))


def _shown(error: Exception) -> AdexError:
    if isinstance(error, AdexError):
        return error
    _LOG.exception("an adapter could not be brought here", exc_info=error)
    return ServerError(f"bringing the adapter here failed ({type(error).__name__})")


if __name__ == "__main__":
    main()
