"""The worker's gRPC server: GetInfo, Run, health and reflection, over TCP or a Unix socket.

The server answers before the model is loaded: health says NOT_SERVING and the service UNAVAILABLE,
so that whoever waits sees a worker that loads rather than one that is not there.
"""

import asyncio
import logging
import os
import socket as sockets
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adex_proto.codec import (
    WORKER_SERVICE_NAME,
    FromWorkerMessage,
    GetInfoRequestMessage,
    PrepareGrammarReplyMessage,
    ToWorkerMessage,
    WorkerInfoMessage,
    encode_grammar_reply,
)
from adex_proto.errors import AdexError, ProtocolViolation, ValidationError
from adex_proto.info_codec import encode_info
from adex_proto.outcome import WorkerInfo
from adex_proto.sampling_codec import GrammarMessage, grammar_from_wire
from adex_proto.transport import SERVER_OPTIONS
from adex_proto.v1.worker_pb2_grpc import WorkerServicer, add_WorkerServicer_to_server
from adex_worker.grammar.compiler import GrammarCompiler
from adex_worker.run.steps import StepThread
from adex_worker.service.commands import CommandPools
from adex_worker.service.session import Session

_LOG = logging.getLogger(__name__)

# A stream that opens while its predecessor is being cleaned up waits this long for it.
_CLEAN_UP_S_MAX = 60.0
# A stream's status waits this long for the message before it.
_LAST_WRITE_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """What serves, once the model is loaded. `steps` is started.

    `grammars` None: the model has no tokenizer that this worker can read.
    """

    info: WorkerInfo
    steps: StepThread
    pools: CommandPools
    grammars: GrammarCompiler | None = None


class WorkerService(WorkerServicer):
    """The Worker service over parts that arrive when they are loaded."""

    def __init__(self) -> None:
        self._parts: WorkerParts | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._clean_up: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()

    def serve(self, parts: WorkerParts) -> None:
        self._parts = parts

    async def stop(self) -> None:
        """End the stream, if there is one, let its running step finish, and clean up after it."""
        self._stopping.set()
        await self._idle.wait()
        if self._clean_up is not None:
            await asyncio.wait([self._clean_up])

    async def GetInfo(  # noqa: N802 -- gRPC's name
        self, request: GetInfoRequestMessage, context: Any
    ) -> WorkerInfoMessage:
        parts = self._parts
        if parts is None:
            await self._refuse_while_loading(context)
        return encode_info(parts.info)

    async def PrepareGrammar(  # noqa: N802 -- gRPC's name
        self, request: GrammarMessage, context: Any
    ) -> PrepareGrammarReplyMessage:
        parts = self._parts
        if parts is None:
            await self._refuse_while_loading(context)
        try:
            await _prepare(parts.grammars, request)
        except AdexError as error:
            return encode_grammar_reply(error)
        return encode_grammar_reply(None)

    async def Run(  # noqa: N802 -- gRPC's name
        self, request_iterator: AsyncIterator[ToWorkerMessage], context: Any
    ) -> None:
        parts = self._parts
        if parts is None:
            await self._refuse_while_loading(context)
        if not self._idle.is_set():
            await context.abort(
                grpc.StatusCode.ALREADY_EXISTS,
                "this worker already serves a scheduler, and serves one at a time",
            )
        self._idle.clear()
        try:
            await self._wait_for_clean_up(context)
            await self._stream(parts, request_iterator, context)
        finally:
            self._idle.set()

    async def _stream(
        self, parts: WorkerParts, requests: AsyncIterator[ToWorkerMessage], context: Any
    ) -> None:
        session = Session(parts.info, parts.steps, parts.pools)
        _LOG.info("a scheduler has connected")

        writer = _Writer(context)
        serving = asyncio.create_task(session.run(requests, writer.write))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                serving.cancel()
                await asyncio.wait([serving])
                await writer.abort(grpc.StatusCode.UNAVAILABLE, "the worker is stopping")
            serving.result()
        except ProtocolViolation as violation:
            _LOG.error("the scheduler broke the protocol: %s", violation)
            await writer.abort(grpc.StatusCode.INVALID_ARGUMENT, str(violation))
        finally:
            # The clean-up is a task of its own: gRPC cancels this one when the peer is gone.
            self._clean_up = asyncio.create_task(_clean_up_after(session, serving, stopping))

    async def _wait_for_clean_up(self, context: Any) -> None:
        if self._clean_up is None:
            return
        await asyncio.wait([self._clean_up], timeout=_CLEAN_UP_S_MAX)
        if not self._clean_up.done():
            await context.abort(
                grpc.StatusCode.UNAVAILABLE, "the worker still finishes the former stream's step"
            )

    async def _refuse_while_loading(self, context: Any) -> Never:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "the worker is loading its model")
        raise AssertionError("abort raises")


async def _prepare(grammars: GrammarCompiler | None, request: GrammarMessage) -> None:
    """Have the grammar compiled, beside the event loop. Raises AdexError."""
    grammar = grammar_from_wire(request)
    if grammars is None:
        raise ValidationError(
            "`grammar` cannot be honoured: this model has no tokenizer.json",
            field="grammar",
            remedy="Leave it out",
        )
    if grammars.find(grammar) is None:
        await asyncio.to_thread(grammars.prepare, grammar)


async def _clean_up_after(
    session: Session, serving: asyncio.Task[None], stopping: asyncio.Task[bool]
) -> None:
    stopping.cancel()
    serving.cancel()
    await asyncio.wait([serving, stopping])
    try:
        await session.close()
    except Exception:
        _LOG.exception("cleaning up after a stream failed")
        raise
    _LOG.info("the scheduler has gone; its sequences and device copies are forgotten")


class _Writer:
    """Writes a stream's messages, one at a time, and its status after them.

    gRPC sends no status while a message is under way, and a message whose writer was cancelled
    still is.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._under_way: asyncio.Task[None] | None = None

    async def write(self, message: FromWorkerMessage) -> None:
        self._under_way = asyncio.create_task(self._context.write(message))
        # Whoever is cancelled no longer asks how it ended.
        self._under_way.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._under_way)

    async def abort(self, code: grpc.StatusCode, details: str) -> Never:
        """End the stream with a status. A peer that reads nothing will not read that either."""
        if self._under_way is not None:
            await asyncio.wait([self._under_way], timeout=_LAST_WRITE_S_MAX)
        await self._context.abort(code, details)
        raise AssertionError("abort raises")


class WorkerServer:
    """A listening server around a WorkerService."""

    def __init__(self, listen: str, service: WorkerService) -> None:
        """`listen` is host:port (port 0: any free one) or unix:///path."""
        self.service = service
        self._listen = listen
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        # The asyncio servicer is re-exported where type checkers do not see it.
        self._health = cast(Any, health).aio.HealthServicer()
        add_WorkerServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (WORKER_SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> str:
        """Listen. Returns: the address with the port that was bound.

        Raises ValidationError when the address cannot be listened on.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        socket = _socket_path(self._listen)
        if socket is not None:
            _remove_stale_socket(socket)
        # Whoever may open a Unix socket may run anything on the worker: owner and group only, from
        # the moment it exists.
        umask = os.umask(stat.S_IXUSR | stat.S_IXGRP | stat.S_IRWXO)
        try:
            port = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise _cannot_listen(self._listen, str(error)) from error
        finally:
            os.umask(umask)
        await self._server.start()
        if socket is not None:
            return self._listen
        return f"{self._listen.rpartition(':')[0]}:{port}"

    async def serve(self, parts: WorkerParts) -> None:
        self.service.serve(parts)
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """Finish the running step, end the stream, and stop listening."""
        await self._health.enter_graceful_shutdown()
        try:
            async with asyncio.timeout(grace_s):
                await self.service.stop()
        except TimeoutError:
            _LOG.warning("the running step did not finish within %g s", grace_s)
        await self._server.stop(grace=0.5)
        socket = _socket_path(self._listen)
        if socket is not None:
            socket.unlink(missing_ok=True)

    async def _set_health(self, status: int) -> None:
        for name in ("", WORKER_SERVICE_NAME):
            await self._health.set(name, status)


def _socket_path(listen: str) -> Path | None:
    if not listen.startswith("unix:"):
        return None
    return Path(listen.removeprefix("unix:").replace("///", "/", 1))


def _remove_stale_socket(path: Path) -> None:
    """Remove what a killed worker left. Raises ValidationError for anything else that is there."""
    if not path.parent.is_dir():
        raise _cannot_listen(f"unix://{path}", f"the folder {path.parent} does not exist")
    if not path.exists():
        return
    if not path.is_socket():
        raise _cannot_listen(f"unix://{path}", "something that is no socket is there already")
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except OSError as error:
            raise _cannot_listen(f"unix://{path}", f"{error.strerror or error}") from error
        else:
            raise _cannot_listen(f"unix://{path}", "another process listens there")


def _cannot_listen(address: str, reason: str) -> AdexError:
    return ValidationError(
        f"cannot listen on {address}: {reason}",
        field="listen",
        remedy="Give a free host:port or a unix:///path in an existing folder",
    )
