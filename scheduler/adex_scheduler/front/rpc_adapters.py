"""Control of adapters over gRPC: the meaning of the routes under /v1/adapters."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from adex_proto.generate_codec import adapter_event_message, adapters_message, body_of_control
from adex_proto.v1.generate_pb2_grpc import AdaptersServicer
from adex_scheduler.engine import Action
from adex_scheduler.front import control
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.rpc_call import visited
from adex_scheduler.front.schema_control import parse_control


def _doing(action: Action) -> Any:
    """The method that does `action` with one adapter."""

    async def do(self: "Adapters", request: Any, context: Any) -> AsyncGenerator[Any, None]:
        serving = self.serving
        async with visited(serving, f"Adapters.{action.value.title()}", context) as call:
            wish = parse_control(action, body_of_control(request), serving.options.limits)
            asked = control.request_of(serving, wish, call.credential)
            async with aclosing(control.told(serving, wish, asked)) as told:
                async for event in told:
                    yield adapter_event_message(event)

    return do


class Adapters(AdaptersServicer):
    """The service of the same name in generate.proto."""

    def __init__(self, serving: Serving) -> None:
        self.serving = serving

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
        """Every adapter the caller may name."""
        del request
        return await listed_adapters(self.serving, "Adapters.List", context)

    Preload = _doing(Action.PRELOAD)
    Prefetch = _doing(Action.PREFETCH)
    Pin = _doing(Action.PIN)
    Unpin = _doing(Action.UNPIN)
    Reload = _doing(Action.RELOAD)
    Unload = _doing(Action.UNLOAD)


async def listed_adapters(serving: Serving, method: str, context: Any) -> Any:
    """The reply that lists every adapter the caller may name."""
    async with visited(serving, method, context, counted=False) as call:
        token = call.metadata.get(control.TOKEN_HEADER, "")
        return adapters_message(await control.all_adapters(serving, token))
