"""Routes that list adapters and control them: /v1/adapters."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from aiohttp import web

from adex_scheduler.engine import Action, ControlRequest
from adex_scheduler.front import control
from adex_scheduler.front.schema_control import ControlWish, parse_control
from adex_scheduler.front.sse import frame
from adex_scheduler.front.visit import (
    SERVING,
    body_of_request,
    json_reply,
    stream_reply,
    visit_of,
)


async def adapters(request: web.Request) -> web.StreamResponse:
    """GET /v1/adapters: the adapters the caller may name, or the one of the query's `id`."""
    token = request.headers.get(control.TOKEN_HEADER, "")
    cards = await control.all_adapters(request.app[SERVING], token)
    wanted = request.query.get("id")
    if wanted is not None:
        cards = [card for card in cards if card["id"] == wanted]
    return json_reply({"object": "list", "data": cards})


def doing(action: Action) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """POST /v1/adapters/{action}: done with one adapter, whole or told as it goes."""

    async def do(request: web.Request) -> web.StreamResponse:
        serving = request.app[SERVING]
        wish = parse_control(action, await body_of_request(request), serving.options.limits)
        visit_of(request).ignored = wish.ignored
        asked = control.request_of(serving, wish, request.headers.get("authorization"))
        if wish.stream:
            return await stream_reply(request, _frames(request, wish, asked), {})
        return json_reply(await control.done(serving, wish, asked))

    return do


async def _frames(
    request: web.Request, wish: ControlWish, asked: ControlRequest
) -> AsyncGenerator[bytes, None]:
    serving = request.app[SERVING]
    # At once, so that a client sees the answer begin however long the source takes.
    yield frame(control.beginning(serving, wish, asked))
    async with aclosing(control.told(serving, wish, asked)) as events:
        async for event in events:
            yield frame(event)
