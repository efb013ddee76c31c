"""The gRPC door: the meaning of /generate and /generate_stream, through the same schema.

    error                                        status
    validation, template_error                   INVALID_ARGUMENT
    adapter_not_found                            NOT_FOUND
    adapter_forbidden                            PERMISSION_DENIED
    unauthorized                                 UNAUTHENTICATED
    other adapter_*, rank_too_large, pin_refused FAILED_PRECONDITION
    overloaded                                   RESOURCE_EXHAUSTED
    shutting_down, source_unavailable, worker_lost   UNAVAILABLE
    generation                                   ABORTED
    protocol, anything else                      INTERNAL

Trailing metadata names the error's stable code and field. A deadline or a caller who cancels ends
the handler, and with it the sequence.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NoReturn, Self, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adex_proto.errors import (
    AdapterForbidden,
    AdapterNotFound,
    AdexError,
    CallerError,
    CapacityError,
    Overloaded,
    ServerError,
    StepFailed,
    TemplateError,
    Unauthorized,
    ValidationError,
    WorkerLost,
)
from adex_proto.generate_codec import (
    SERVICE_NAME,
    adapters_message,
    body_of_request,
    event_message,
    reply_message,
)
from adex_proto.v1.generate_pb2_grpc import GenerationServicer, add_GenerationServicer_to_server
from adex_scheduler.front.account import close_account, context_of, operation_of, request_id_of
from adex_scheduler.front.asking import Ask, ask_of, events, whole
from adex_scheduler.front.generation import Timeline
from adex_scheduler.front.listing import adapter_cards
from adex_scheduler.front.ports import Ended, Serving
from adex_scheduler.front.schema_tgi import parse_generate

LOG = logging.getLogger("adex.front")
CLIENT_GONE = "cancelled"
# Requests are prompts, replies are texts; neither comes near this.
MESSAGE_BYTES_MAX = 16 * 2**20


@dataclass(slots=True)
class Call:
    """One call: its name, the text metadata that came with it, and its clock."""

    request_id: str
    metadata: dict[str, str]
    timeline: Timeline = field(default_factory=Timeline)
    adapter: str = ""

    @classmethod
    def of(cls, context: Any) -> Self:
        """A call that just arrived; a sane x-request-id of the caller's is kept."""
        pairs = context.invocation_metadata() or ()
        metadata = {str(key): value for key, value in pairs if isinstance(value, str)}
        return cls(request_id_of(metadata), metadata)

    def ended(self, method: str, status: str, code: str) -> Ended:
        """The call as it is told when it is over."""
        timeline = self.timeline
        endpoint = f"grpc:{method}"
        return Ended(
            door="grpc",
            method="grpc",
            endpoint=endpoint,
            operation=operation_of("grpc", endpoint),
            status=status,
            code=code,
            request_id=self.request_id,
            began_s=timeline.began_s,
            ended_s=monotonic(),
            first_token_s=timeline.first_token_s,
            queue_s=timeline.queue_s,
            prompt_tokens=sum(run.journey.prompt_tokens for run in timeline.runs),
            new_tokens=sum(run.journey.generated for run in timeline.runs),
            adapter=self.adapter,
            runs=timeline.runs,
            context=context_of(self.metadata),
        )


class Generation(GenerationServicer):
    """The service of generate.proto."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
        """One whole reply."""
        async with self._visit("Generate", context) as call:
            ask = await self._ask(request, call, stream=False)
            reply, _ = await whole(self._serving, ask, call.timeline)
            return reply_message(reply)

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """One event for each token."""
        async with self._visit("GenerateStream", context) as call:
            ask = await self._ask(request, call, stream=True)
            async with aclosing(events(self._serving, ask, call.timeline)) as told:
                async for event in told:
                    yield event_message(event)

    async def ListAdapters(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Every adapter known."""
        del request
        async with self._visit("ListAdapters", context, counted=False):
            return adapters_message(await adapter_cards(self._serving))

    async def _ask(self, request: Any, call: Call, *, stream: bool) -> Ask:
        serving = self._serving
        asked = parse_generate(
            body_of_request(request),
            serving.options.limits,
            seed=secrets.randbits(63),
            stream=stream,
        )
        ask = await ask_of(
            serving,
            asked,
            request_id=call.request_id,
            credential=call.metadata.get("authorization"),
        )
        call.adapter = asked.wish.adapter.name if asked.wish.adapter else ""
        call.timeline.submitted_s = monotonic()
        return ask

    @asynccontextmanager
    async def _visit(
        self, method: str, context: Any, *, counted: bool = True
    ) -> AsyncGenerator[Call, None]:
        """Count, measure and log one call; turn its error into a status."""
        call, code, status = Call.of(context), "ok", grpc.StatusCode.OK
        try:
            await context.send_initial_metadata((("x-request-id", call.request_id),))
            with self._serving.gate.entered() if counted else nullcontext():
                yield call
        except AdexError as error:
            code, status = error.code, status_of(error)
            await abort(context, error)
        except (asyncio.CancelledError, GeneratorExit):
            code, status = CLIENT_GONE, grpc.StatusCode.CANCELLED
            raise
        except Exception:
            LOG.exception("the call %s failed in the server", method)
            code, status = "internal", grpc.StatusCode.INTERNAL
            await abort(context, ServerError("something went wrong in the server"))
        finally:
            close_account(self._serving, call.ended(method, status.name, code))


async def abort(context: Any, error: AdexError) -> NoReturn:
    """End the call with the error's status; its code, field and patience go behind it."""
    metadata = [("adex-error-code", error.code)]
    if error.field is not None:
        metadata.append(("adex-error-field", error.field))
    if error.retry_after_s is not None:
        metadata.append(("retry-after-ms", str(round(error.retry_after_s * 1000))))
    await context.abort(status_of(error), str(error), trailing_metadata=tuple(metadata))
    raise AssertionError("abort raises")


def status_of(error: AdexError) -> grpc.StatusCode:
    """The gRPC status of an error; see the table above."""
    match error:
        case ValidationError() | TemplateError():
            return grpc.StatusCode.INVALID_ARGUMENT
        case AdapterNotFound():
            return grpc.StatusCode.NOT_FOUND
        case AdapterForbidden():
            return grpc.StatusCode.PERMISSION_DENIED
        case Unauthorized():
            return grpc.StatusCode.UNAUTHENTICATED
        case CallerError():
            return grpc.StatusCode.FAILED_PRECONDITION
        case Overloaded():
            return grpc.StatusCode.RESOURCE_EXHAUSTED
        case CapacityError() | WorkerLost():
            return grpc.StatusCode.UNAVAILABLE
        case StepFailed():
            return grpc.StatusCode.ABORTED
        case _:
            return grpc.StatusCode.INTERNAL


class RpcFront:
    """A listening gRPC server with the service, health and reflection."""

    def __init__(self, serving: Serving, listen: str) -> None:
        """`listen` is host:port; port 0 takes any free one."""
        self._listen = listen
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", serving.options.body_bytes_max),
                ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
                ("grpc.so_reuseport", 0),
            )
        )
        # The asyncio servicer is re-exported where type checkers do not see it.
        self._health: Any = cast(Any, health).aio.HealthServicer()
        add_GenerationServicer_to_server(Generation(serving), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)

    async def start(self) -> int:
        """Listen; the port that was bound. Raises OSError when the address is taken."""
        await self.set_serving(False)
        try:
            port: int = self._server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen at {self._listen}: {error}") from error
        await self._server.start()
        return port

    async def set_serving(self, serving: bool) -> None:
        """What the health service tells."""
        kinds = health_pb2.HealthCheckResponse
        status = kinds.SERVING if serving else kinds.NOT_SERVING
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, and end what still runs after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
