"""Routes of others that name adapters while the server runs: vLLM's, AIBrix's and SageMaker's.

Success is told in vLLM's sentences, errors in its shape: {"error": {"message", "type", "param",
"code"}} with the status as `code`. What the caller did wrong is a 4xx here. A name that was given
is an alias for as long as the process lives; its adapter comes and goes like any other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web

from adex_proto.errors import AdapterNotFound
from adex_scheduler.engine import Action
from adex_scheduler.front import control, runtime_names
from adex_scheduler.front.callers import EVERYONE
from adex_scheduler.front.schema_control import LoadWish, parse_load, parse_sagemaker
from adex_scheduler.front.visit import SERVING, body_of_request, json_reply, visit_of

# How long an answer waits for the adapter to leave, which goes on by itself afterwards.
UNLOAD_WAIT_S = 1.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def for_operators(handler: Handler) -> Handler:
    """The handler behind the admin key."""

    async def answer(request: web.Request) -> web.StreamResponse:
        control.require_admin(request.app[SERVING], request.headers.get("authorization"))
        return await handler(request)

    return answer


async def load(request: web.Request) -> web.StreamResponse:
    """POST /v1/load_lora_adapter and /v1/lora_adapter/load."""
    serving = request.app[SERVING]
    return await _load(request, parse_load(await body_of_request(request), serving.options.limits))


async def unload(request: web.Request) -> web.StreamResponse:
    """POST /v1/unload_lora_adapter and /v1/lora_adapter/unload."""
    serving = request.app[SERVING]
    wish = parse_load(await body_of_request(request), serving.options.limits)
    return await _unload(request, wish.name)


async def sagemaker_load(request: web.Request) -> web.StreamResponse:
    """POST /adapters."""
    serving = request.app[SERVING]
    body = await body_of_request(request)
    return await _load(request, parse_sagemaker(body, serving.options.limits))


async def sagemaker_unload(request: web.Request) -> web.StreamResponse:
    """DELETE /adapters/{name}."""
    return await _unload(request, request.match_info["name"])


async def sagemaker_list(request: web.Request) -> web.StreamResponse:
    """GET /adapters."""
    aliases = request.app[SERVING].directory.aliases
    adapters = [{"name": name, "src": key.name} for name, key in aliases.items()]
    return json_reply({"adapters": adapters})


async def _load(request: web.Request, wish: LoadWish) -> web.StreamResponse:
    serving = request.app[SERVING]
    visit_of(request).ignored = wish.ignored
    key = runtime_names.meaning(serving.directory, wish, EVERYONE)
    try:
        if wish.in_place:
            await control.carry_out(serving, Action.RELOAD, key)
        await control.carry_out(serving, Action.PRELOAD, key)
    except AdapterNotFound as error:
        message = f"Loading lora {wish.name} failed: No adapter found for {wish.path}"
        raise AdapterNotFound(message) from error
    runtime_names.register(serving.directory, wish, key)
    return web.Response(text=f"Success: LoRA adapter '{wish.name}' added successfully.")


async def _unload(request: web.Request, name: str) -> web.StreamResponse:
    serving = request.app[SERVING]
    key = runtime_names.forget(serving.directory, name)
    status = serving.engine.adapter(key)
    pinned = status is not None and status.pinned
    if not pinned and key not in serving.directory.aliases.values():
        # Whoever uses it finishes; it leaves the device and host memory after them.
        with suppress(TimeoutError, AdapterNotFound):
            async with asyncio.timeout(UNLOAD_WAIT_S):
                await control.carry_out(serving, Action.UNLOAD, key)
    return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")
