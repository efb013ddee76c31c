"""The REST door: its routes, what stands on every answer, and how errors become answers.

Statuses and bodies of errors are in `front.statuses`. Every answer carries x-request-id; fields of
the body that had no effect are named in x-ignored-fields.
"""

import logging
from time import monotonic

from aiohttp import web

from adex_proto.errors import AdexError, ServerError
from adex_scheduler.front import cors, rest_ui
from adex_scheduler.front.account import close_account, context_of, operation_of
from adex_scheduler.front.callers import payer_of
from adex_scheduler.front.ports import Ended, Serving
from adex_scheduler.front.routes import PROBES, ROUTES, Handler
from adex_scheduler.front.statuses import Family, body_of, headers_of, plain_body, status_of
from adex_scheduler.front.visit import (
    SERVING,
    VISIT,
    Visit,
    begin_visit,
    header_text,
    json_reply,
    visit_of,
)

LOG = logging.getLogger("adex.front")
CLIENT_GONE = "cancelled"
# Open without a key: probes, what Prometheus reads, and the page, which brings no data. What is no
# route is told as such to everybody.
OPEN = frozenset({*PROBES, "/metrics", "/version", "/ui", "/ui/", "/ui/{file}", "unknown"})


def _counted(handler: Handler) -> Handler:
    """The handler behind the gate."""

    async def counted(request: web.Request) -> web.StreamResponse:
        with request.app[SERVING].gate.entered():
            return await handler(request)

    return counted


def create_app(serving: Serving) -> web.Application:
    """The application with all routes. Run it with `handler_cancellation=True`."""
    app = web.Application(middlewares=[_answer], client_max_size=serving.options.body_bytes_max)
    app[SERVING] = serving
    app.on_response_prepare.append(_mark)
    for operation, handler in ROUTES:
        behind = _counted(handler) if operation.computes else handler
        app.router.add_route(operation.method, operation.path, behind)
        if operation.method == "GET":
            app.router.add_route("HEAD", operation.path, behind)
    rest_ui.add_page(app, serving)
    return app


async def _mark(request: web.Request, response: web.StreamResponse) -> None:
    """Headers that stand on every answer, streams included."""
    response.headers["Server"] = "adex"
    origins = request.app[SERVING].options.cors_origins
    response.headers.update(cors.allowed(origins, request.headers.get("Origin")))
    if VISIT not in request:
        return
    visit = visit_of(request)
    response.headers["x-request-id"] = visit.request_id
    if visit.ignored:
        response.headers["x-ignored-fields"] = header_text(", ".join(visit.ignored))
    if tier := visit.timeline.adapter_tier:
        response.headers["x-adapter-tier"] = tier


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an answer; measure and log each request once."""
    visit = begin_visit(request)
    status = 499
    try:
        response = await _handled(request, handler, visit)
        status = response.status
        return response
    except ConnectionError:
        # The caller went away in the middle of the answer: nobody is left to tell.
        visit.code = CLIENT_GONE
        raise
    except BaseException:
        visit.code = CLIENT_GONE
        raise
    finally:
        _close(request, visit, status)


async def _handled(request: web.Request, handler: Handler, visit: Visit) -> web.StreamResponse:
    try:
        if request.method == "OPTIONS" and _is_let_in(request):
            asked = request.headers.get("Access-Control-Request-Headers")
            return web.Response(status=204, headers=cors.preflight(asked))
        if visit.endpoint not in OPEN:
            payer_of(request.app[SERVING].options, request.headers.get("authorization"))
        return await handler(request)
    except AdexError as error:
        visit.code = error.code
        names_model = not visit.endpoint.startswith("/v1/adapters/")
        if visit.family is Family.OPENAI and names_model and error.field == "adapter_id":
            # OpenAI's routes name the adapter in `model`.
            error.field = "model"
        status = status_of(error, visit.family)
        if isinstance(error, ServerError):
            LOG.error("request %s failed: %s", visit.request_id, error)
        headers = headers_of(error, visit.family)
        return json_reply(body_of(error, visit.family), headers, status)
    except web.HTTPException as error:
        visit.code = _code_of_status(error.status)
        message = _plain_message(request, error)
        body = plain_body(message, visit.code, error.status, visit.family)
        allowed = error.headers.get("Allow")
        return json_reply(body, {"Allow": allowed} if allowed else None, error.status)
    except ConnectionError:
        raise
    except Exception:
        LOG.exception("request %s failed in the server", visit.request_id)
        visit.code = "internal"
        failure = ServerError("something went wrong in the server")
        return json_reply(body_of(failure, visit.family), status=500)


def _is_let_in(request: web.Request) -> bool:
    """Whether a browser asks for a page of another origin that may send requests here."""
    origins = request.app[SERVING].options.cors_origins
    asks = "Access-Control-Request-Method" in request.headers
    return asks and "Access-Control-Allow-Origin" in cors.allowed(
        origins, request.headers.get("Origin")
    )


def _code_of_status(status: int) -> str:
    codes = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}
    return codes.get(status, "bad_request")


def _plain_message(request: web.Request, error: web.HTTPException) -> str:
    match error.status:
        case 404:
            return f"no route {request.path}"
        case 405:
            return f"{request.path} does not take {request.method}"
        case 413:
            limit = request.app[SERVING].options.body_bytes_max
            return f"the body exceeds {limit} bytes. Send a shorter prompt"
        case _:
            return error.text or error.reason


def _close(request: web.Request, visit: Visit, status: int) -> None:
    timeline = visit.timeline
    ended = Ended(
        door="rest",
        method=request.method,
        endpoint=visit.endpoint,
        operation=operation_of(request.method, visit.endpoint),
        status=status,
        code=visit.code,
        request_id=visit.request_id,
        began_s=timeline.began_s,
        ended_s=monotonic(),
        first_token_s=timeline.first_token_s,
        queue_s=timeline.queue_s,
        prompt_tokens=visit.prompt_tokens,
        new_tokens=visit.new_tokens,
        adapter=visit.adapter,
        runs=timeline.runs,
        context=context_of(request.headers),
    )
    # Whoever watches asks often: neither yes nor not yet is news.
    watched = request.method == "GET" and status in (200, 503)
    level = logging.DEBUG if watched else logging.INFO
    close_account(request.app[SERVING], ended, level=level)
