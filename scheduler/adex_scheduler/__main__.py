"""`adex-scheduler`: open the doors, keep a worker busy, drain and stop when told to."""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePath

from aiohttp import web

from adex_proto.errors import AdexError, ValidationError
from adex_proto.logs import LogFormat, configure_logging
from adex_scheduler.collecting import collect_rarely
from adex_scheduler.config import SchedulerOptions, parse_options
from adex_scheduler.core.limits import Limits
from adex_scheduler.engine import Engine
from adex_scheduler.front.fields import RequestLimits
from adex_scheduler.front.listener import runner_of
from adex_scheduler.front.listing import public_names
from adex_scheduler.front.ports import FrontOptions, Serving
from adex_scheduler.front.rpc import RpcFront
from adex_scheduler.front.tenants import Directory
from adex_scheduler.link.worker import WorkerLink
from adex_scheduler.metrics import SchedulerMetrics, Sources
from adex_scheduler.text.tokenizer import Tokenizer
from adex_scheduler.tracing import Tracing

_LOG = logging.getLogger("adex.scheduler")

USER_ERROR = 2
SERVER_ERROR = 1
# How long connections may take to close once their generations have ended.
_CLOSE_S_MAX = 5.0
_READINESS_S = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns: 0 after a stop that was asked for, 2 for what the operator can mend, 1 else."""
    try:
        options = parse_options(arguments)
        _configure_logging(options.log_level, options.log_format)
        return asyncio.run(_serve(options))
    except AdexError as error:
        sys.stderr.write(f"adex-scheduler: {error}\n")
        return USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


async def _serve(options: SchedulerOptions) -> int:
    stop = _stop_signals()
    tokenizer = await asyncio.to_thread(Tokenizer.load, options.model_id, options.revision)
    directory = _directory(options)
    metrics = SchedulerMetrics(
        # Called at a scrape, when there is an engine.
        Sources(
            lambda: engine.statistics(),
            lambda: engine.info,
            lambda: engine.longest_wait_s(),
            lambda: _names_told(engine, directory),
        ),
        dialects=options.metrics_compat,
        model_name=directory.base_name,
    )
    engine = Engine(WorkerLink(options.worker), tokenizer, _limits(options), observer=metrics)
    front = _front_options(options)
    tracing: Tracing | None = None
    if options.otlp_endpoint is not None:
        tracing = Tracing(
            options.otlp_endpoint, version=front.version, base_name=directory.base_name
        )
    serving = Serving.over(engine, tokenizer, directory, metrics, front, tracing)
    rest = runner_of(serving, close_s_max=_CLOSE_S_MAX)
    await rest.setup()
    rpc: RpcFront | None = None
    if options.grpc_port is not None:
        rpc = RpcFront(serving, f"{_bracketed(options.host)}:{options.grpc_port}")
    running = asyncio.create_task(engine.run())
    telling = asyncio.create_task(_tell_readiness(engine, rpc, options.model_id))
    try:
        await _listen(options, rest, rpc)
        collect_rarely()
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if running.done():
            _LOG.error("the engine ended: %s", running.exception())
            return SERVER_ERROR
        _LOG.info("draining for at most %g s", options.drain_s)
        await engine.drain(options.drain_s)
        return 0
    finally:
        telling.cancel()
        if rpc is not None:
            await rpc.stop(_CLOSE_S_MAX)
        await rest.cleanup()
        running.cancel()
        await asyncio.gather(running, telling, return_exceptions=True)
        if tracing is not None:
            await asyncio.to_thread(tracing.close)
        _LOG.info("stopped")


async def _listen(options: SchedulerOptions, rest: web.AppRunner, rpc: RpcFront | None) -> None:
    """Open the doors. Raises ValidationError when an address cannot be listened on."""
    try:
        await web.TCPSite(rest, options.host, options.port).start()
        port = rest.addresses[0][1]
        _LOG.info("REST on http://%s:%d", _bracketed(options.host), port)
        if rpc is not None:
            _LOG.info("gRPC on %s:%d", _bracketed(options.host), await rpc.start())
    except OSError as error:
        raise ValidationError(
            f"cannot listen at {options.host}: {error.strerror or error}",
            field="port",
            remedy="Choose another --host, --port or --grpc-port",
        ) from error


async def _tell_readiness(engine: Engine, rpc: RpcFront | None, model_id: str) -> None:
    """Log each change between serving and not serving, and tell the gRPC health service."""
    told = False
    _LOG.info("waiting for the worker")
    while True:
        if engine.ready != told:
            told = engine.ready
            if rpc is not None:
                await rpc.set_serving(told)
            info = engine.info
            if told and info is not None:
                _LOG.info("ready: %s on %s, %d pages", info.model_id, info.device, info.pages)
                if PurePath(info.model_id).name != PurePath(model_id).name:
                    _LOG.warning("the worker serves %s, not %s", info.model_id, model_id)
            elif not told:
                _LOG.warning("not serving now")
        await asyncio.sleep(_READINESS_S)


def _names_told(engine: Engine, directory: Directory) -> tuple[list[str], list[str]]:
    """Public names of the adapters on the device, and of those that sequences wait for."""
    statistics = engine.statistics()
    resident = statistics.on_device if statistics else ()
    return public_names(directory, resident), public_names(directory, engine.waiting_names())


def _limits(options: SchedulerOptions) -> Limits:
    return Limits(
        waiting_max=options.waiting_max,
        # Where there are tenants, none may fill the queue for all.
        waiting_tenant_max=max(options.waiting_max // (1 + (len(options.api_keys) > 1)), 1),
        running_max=options.running_max,
        step_tokens_max=options.step_tokens_max,
        pacing=options.pacing,
    )


def _directory(options: SchedulerOptions) -> Directory:
    names = (*options.served_names, options.model_id, PurePath(options.model_id).name)
    return Directory(tuple(dict.fromkeys(names)), dict(options.aliases), options.adapter_source)


def _front_options(options: SchedulerOptions) -> FrontOptions:
    try:
        release = version("adex")
    except PackageNotFoundError:
        release = "unknown"
    return FrontOptions(
        model_id=options.model_id,
        version=release,
        limits=RequestLimits(stops_max=options.stops_max, sequences_max=options.choices_max),
        body_bytes_max=options.body_bytes_max,
        requests_max=options.requests_max,
        new_tokens_default_max=options.new_tokens_default_max,
        total_tokens_max=options.total_tokens_max,
        adapter_roots=options.local_adapter_roots,
        api_keys=options.api_keys,
        cors_origins=options.cors_origins,
        admin_key=options.admin_key,
        open_admin=options.open_admin,
        started_at_s=int(time.time()),
    )


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


def _configure_logging(level: str, style: LogFormat) -> None:
    configure_logging(level, style)
    if level != "DEBUG":
        # The fronts write a line for each request; the engine's, for each sequence, is detail.
        logging.getLogger("adex_scheduler.engine").setLevel(logging.WARNING)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


if __name__ == "__main__":
    sys.exit(main())
