"""The gRPC door: the meaning of the REST routes, through the same schema."""

import secrets
from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import Any, cast

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from adex_proto.generate_codec import (
    SERVICE_NAMES,
    body_of_chat,
    body_of_request,
    body_of_tokenize,
    chat_event_message,
    event_message,
    model_message,
    reply_message,
    tokens_message,
)
from adex_proto.v1.generate_pb2_grpc import (
    GenerationServicer,
    add_AdaptersServicer_to_server,
    add_GenerationServicer_to_server,
)
from adex_scheduler.front.asking import (
    Ask,
    ask_of,
    chat_events,
    chat_request_of,
    events,
    listed_tokens,
    whole,
)
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.prompts import beside_if_long
from adex_scheduler.front.rest_admin import info_of
from adex_scheduler.front.rpc_adapters import Adapters, listed_adapters
from adex_scheduler.front.rpc_call import Call, visited
from adex_scheduler.front.schema_openai import parse_chat
from adex_scheduler.front.schema_tgi import parse_generate, parse_tokenize

# Requests are prompts, replies are texts; neither comes near this.
MESSAGE_BYTES_MAX = 16 * 2**20


class Generation(GenerationServicer):
    """The service of generate.proto."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
        """One whole reply."""
        async with visited(self._serving, "Generate", context) as call:
            ask = await self._ask(request, call, stream=False)
            reply, _ = await whole(self._serving, ask, call.timeline)
            return reply_message(reply)

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """One event for each token."""
        async with visited(self._serving, "GenerateStream", context) as call:
            ask = await self._ask(request, call, stream=True)
            async with aclosing(events(self._serving, ask, call.timeline)) as told:
                async for event in told:
                    yield event_message(event)

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The answer to a conversation, as its text comes."""
        serving = self._serving
        async with visited(serving, "Chat", context) as call:
            body, limits = body_of_chat(request), serving.options.limits
            asked = parse_chat(body, limits, seed=secrets.randbits(63))
            adapter, sequence = await chat_request_of(
                serving, asked, request_id=call.request_id, credential=call.credential
            )
            call.adapter = adapter.name if adapter else ""
            call.timeline.submitted_s = monotonic()
            async with aclosing(chat_events(serving, sequence, call.timeline)) as told:
                async for event in told:
                    yield chat_event_message(event)

    async def Tokenize(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The tokens of a text."""
        async with visited(self._serving, "Tokenize", context):
            asked = parse_tokenize(body_of_tokenize(request), self._serving.options.limits)
            listed = await listed_tokens(self._serving, asked.text, asked.add_special_tokens)
            return await beside_if_long(len(asked.text), lambda: tokens_message(listed))

    async def ModelInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The model and the limits."""
        del request
        async with visited(self._serving, "ModelInfo", context, counted=False):
            return model_message(info_of(self._serving, self._serving.engine.info))

    async def ListAdapters(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Every adapter known."""
        del request
        return await listed_adapters(self._serving, "ListAdapters", context)

    async def _ask(self, request: Any, call: Call, *, stream: bool) -> Ask:
        serving = self._serving
        asked = parse_generate(
            body_of_request(request),
            serving.options.limits,
            seed=secrets.randbits(63),
            stream=stream,
        )
        call.adapter = asked.wish.adapter.name if asked.wish.adapter else ""
        ask = await ask_of(
            serving,
            asked,
            request_id=call.request_id,
            credential=call.credential,
        )
        call.timeline.submitted_s = monotonic()
        return ask


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
        add_AdaptersServicer_to_server(Adapters(serving), self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (*SERVICE_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME)
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
        for name in ("", *SERVICE_NAMES):
            await self._health.set(name, status)

    async def stop(self, grace_s: float) -> None:
        """Take nothing new, and end what still runs after `grace_s`."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
