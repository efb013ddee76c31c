"""Routes of TGI and LoRAX: /generate, /generate_stream and /."""

import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from time import monotonic

from aiohttp import web

from adex_scheduler.front.asking import Ask, ask_of, events, whole
from adex_scheduler.front.generation import worker_of
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.schema_tgi import parse_generate
from adex_scheduler.front.sse import frame
from adex_scheduler.front.visit import (
    SERVING,
    Visit,
    body_of_request,
    header_text,
    json_reply,
    stream_reply,
    visit_of,
)


async def generate(request: web.Request) -> web.StreamResponse:
    """POST /generate: one reply."""
    ask = await _ask(request, await body_of_request(request), stream=False)
    return await _whole(request, ask, as_list=False)


async def generate_stream(request: web.Request) -> web.StreamResponse:
    """POST /generate_stream: one event for each token."""
    ask = await _ask(request, await body_of_request(request), stream=True)
    return await _streamed(request, ask)


async def compatible(request: web.Request) -> web.StreamResponse:
    """POST / and /v1: the body's `stream` decides; a whole reply comes as a list of one."""
    return await answer_generate(request, await body_of_request(request))


async def answer_generate(request: web.Request, body: Mapping[str, object]) -> web.StreamResponse:
    """The answer to the body of `compatible`."""
    ask = await _ask(request, body, stream=None)
    if ask.asked.wish.stream:
        return await _streamed(request, ask)
    return await _whole(request, ask, as_list=True)


async def _ask(request: web.Request, body: Mapping[str, object], *, stream: bool | None) -> Ask:
    serving, visit = request.app[SERVING], visit_of(request)
    asked = parse_generate(body, serving.options.limits, seed=secrets.randbits(63), stream=stream)
    visit.ignored = asked.wish.ignored
    visit.adapter = asked.wish.adapter.name if asked.wish.adapter else ""
    ask = await ask_of(
        serving,
        asked,
        request_id=visit.request_id,
        credential=request.headers.get("authorization"),
    )
    visit.prompt_tokens = len(ask.request.token_ids)
    visit.timeline.submitted_s = monotonic()
    return ask


async def _whole(request: web.Request, ask: Ask, *, as_list: bool) -> web.Response:
    serving, visit = request.app[SERVING], visit_of(request)
    reply, visit.new_tokens = await whole(serving, ask, visit.timeline)
    headers = {**_model_headers(serving, ask), **_time_headers(visit)}
    return json_reply([reply] if as_list else reply, headers)


async def _streamed(request: web.Request, ask: Ask) -> web.StreamResponse:
    serving, visit = request.app[SERVING], visit_of(request)

    async def frames() -> AsyncGenerator[bytes, None]:
        async with aclosing(events(serving, ask, visit.timeline)) as told:
            async for event in told:
                visit.new_tokens += 1
                yield frame(event)

    return await stream_reply(request, frames(), _model_headers(serving, ask))


def _model_headers(serving: Serving, ask: Ask) -> dict[str, str]:
    """What computed, and with which adapter."""
    info = worker_of(serving)
    headers = {
        "x-compute-type": "cpu" if info.device.startswith("cpu") else "gpu",
        "x-compute-characters": str(len(ask.asked.prompt)),
        "x-model-id": header_text(serving.directory.base_name),
    }
    if ask.key is not None and ask.asked.wish.adapter is not None:
        headers["x-adapter-id"] = header_text(ask.asked.wish.adapter.name)
        headers["x-adapter-source"] = ask.key.source
    return headers


def _time_headers(visit: Visit) -> dict[str, str]:
    """Milliseconds and counts, as LoRAX names them; what is not measured is left out."""
    timeline = visit.timeline
    queue_s = timeline.queue_s
    inference_s = timeline.last_token_s - timeline.submitted_s - queue_s
    decode_s = timeline.last_token_s - timeline.first_token_s
    return {
        "x-compute-time": _milliseconds(visit.seconds),
        "x-total-time": _milliseconds(visit.seconds),
        "x-validation-time": _milliseconds(timeline.submitted_s - timeline.began_s),
        "x-queue-time": _milliseconds(queue_s),
        "x-inference-time": _milliseconds(inference_s),
        "x-time-per-token": _milliseconds(inference_s / max(1, visit.new_tokens)),
        "x-time-to-first-token": _milliseconds(timeline.first_token_s - timeline.began_s),
        "x-time-per-output-token": _milliseconds(decode_s / max(1, visit.new_tokens - 1)),
        "x-prompt-tokens": str(visit.prompt_tokens),
        "x-generated-tokens": str(visit.new_tokens),
        "x-skipped-tokens": "0",
        "x-total-tokens": str(visit.prompt_tokens + visit.new_tokens),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))
