"""`adex-worker`: start, serve until told to stop, stop."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from adex_proto.errors import AdexError
from adex_worker.assembly import Worker, assemble
from adex_worker.config import WorkerOptions, parse_options
from adex_worker.logs import configure_logging
from adex_worker.metrics import serve_metrics
from adex_worker.service.server import WorkerServer, WorkerService

_LOG = logging.getLogger("adex.worker")
_T = TypeVar("_T")

USER_ERROR = 2
# A step was still running when the time for stopping was over.
UNFINISHED = 3
# How long a stop waits for the step that runs.
_STOP_S_MAX = 30.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0 after a stop that was asked for, 2 for what the operator can mend. Leaves the
    process with 3 where a step does not end."""
    try:
        options = parse_options(arguments)
        configure_logging(options.log_level, options.log_format)
        return asyncio.run(_serve(options))
    except AdexError as error:
        sys.stderr.write(f"adex-worker: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _serve(options: WorkerOptions) -> int:
    server = WorkerServer(options.listen, WorkerService())
    address = await server.start()
    stop = _stop_signals()
    worker: Worker | None = None
    try:
        loading = _on_daemon_thread(lambda: assemble(options))
        stopping = asyncio.create_task(stop.wait())
        either: list[asyncio.Future[Any]] = [loading, stopping]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            worker = loading.result()
            if options.metrics_port:
                serve_metrics(worker.sources, options.metrics_port)
            await server.serve(worker.parts)
            _LOG.info("ready on %s: %s", address, worker.description)
            await stopping
        _LOG.info("stopping")
    finally:
        await server.stop(_STOP_S_MAX)
        if worker is not None:
            worker.parts.pools.close()
            worker.store.close()
            if worker.parts.grammars is not None:
                worker.parts.grammars.close()
            if not worker.parts.steps.stop(wait_s=1.0):
                # Nothing can end a thread from outside; the process need not wait for it.
                _LOG.error("a step does not end; leaving without it")
                os._exit(UNFINISHED)
    return 0


def _stop_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second one ends the process on the spot."""
    stop = asyncio.Event()

    def on_signal(number: int) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
    return stop


def _on_daemon_thread(work: Callable[[], _T]) -> asyncio.Future[_T]:
    """Like asyncio.to_thread, on a thread that a process that stops need not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(set_outcome: Callable[[], None]) -> None:
        if not future.cancelled():
            set_outcome()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            failure = error
            loop.call_soon_threadsafe(settle, lambda: future.set_exception(failure))
        else:
            loop.call_soon_threadsafe(settle, lambda: future.set_result(result))

    threading.Thread(target=run, name="adex-load", daemon=True).start()
    return future


if __name__ == "__main__":
    sys.exit(main())
