"""One HTTP request from arrival to answer: its name, its clock, its limits, its one line of log."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from time import monotonic
from urllib.parse import quote

from aiohttp import web

from adex_proto.errors import AdexError, ServerError
from adex_scheduler.front.account import request_id_of
from adex_scheduler.front.body import MalformedBodyError, read_object
from adex_scheduler.front.generation import Timeline
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.sse import KEEP_ALIVE, frame, json_bytes
from adex_scheduler.front.statuses import Family, body_of, family_of

LOG = logging.getLogger("adex.front")
SERVING: web.AppKey[Serving] = web.AppKey("serving", Serving)
# A body that takes longer than this to arrive holds a connection for nothing.
BODY_SECONDS_MAX = 60.0


@dataclass(slots=True)
class Visit:
    """One request. `code` is "ok" or the stable code of what went wrong."""

    request_id: str
    endpoint: str
    family: Family
    timeline: Timeline = field(default_factory=Timeline)
    code: str = "ok"
    adapter: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    ignored: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return monotonic() - self.timeline.began_s


VISIT: web.RequestKey[Visit] = web.RequestKey("visit", Visit)


def begin_visit(request: web.Request) -> Visit:
    """The visit of a request that just arrived; a sane x-request-id of the caller's is kept."""
    resource = request.match_info.route.resource
    endpoint = resource.canonical if resource is not None else "unknown"
    family = family_of(request.path) or Family.TGI
    visit = Visit(request_id_of(request.headers), endpoint, family)
    request[VISIT] = visit
    return visit


def visit_of(request: web.Request) -> Visit:
    """The visit that `begin_visit` opened for this request."""
    return request[VISIT]


async def body_of_request(request: web.Request) -> Mapping[str, object]:
    """The JSON object the caller sent. Raises MalformedBodyError, or aiohttp's 408 and 413."""
    announced, limit = request.content_length or 0, request.app[SERVING].options.body_bytes_max
    if announced > limit:
        # What is announced as too large need not arrive first.
        raise web.HTTPRequestEntityTooLarge(max_size=limit, actual_size=announced)
    try:
        async with asyncio.timeout(BODY_SECONDS_MAX):
            body = await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text="the body did not arrive in time") from error
    except web.RequestPayloadError as error:
        raise MalformedBodyError(
            "the body is not encoded as its headers say",
            remedy="Send it as Content-Encoding and Transfer-Encoding name it, or without them",
        ) from error
    return read_object(body)


def header_text(value: str) -> str:
    """A value as a header can carry it: anything but plain ASCII percent-encoded."""
    return quote(value, safe="/:@=+,;()[]{}!*'$&?#~ ", errors="replace")[:512].strip()


def json_reply(
    value: object, headers: Mapping[str, str] | None = None, status: int = 200
) -> web.Response:
    """A JSON answer."""
    return written_reply(json_bytes(value), headers, status)


def written_reply(
    body: bytes, headers: Mapping[str, str] | None = None, status: int = 200
) -> web.Response:
    """An answer that is JSON already."""
    return web.Response(body=body, status=status, content_type="application/json", headers=headers)


async def stream_reply(
    request: web.Request, frames: AsyncGenerator[bytes, None], headers: Mapping[str, str]
) -> web.StreamResponse:
    """Server-sent events. What fails before the first frame is raised, so that it gets a status.

    A later failure becomes a last event. When the caller goes away, `frames` is closed at once.
    """
    visit = visit_of(request)
    async with aclosing(frames):
        first = await anext(frames)
        response = web.StreamResponse(headers={**headers, "Content-Type": "text/event-stream"})
        response.headers["Cache-Control"] = "no-cache"
        response.headers["X-Accel-Buffering"] = "no"
        await response.prepare(request)
        written_s = [monotonic()]
        ticker = asyncio.create_task(
            _keep_alive(response, written_s, request.app[SERVING].options.keep_alive_s)
        )
        try:
            await _send(request, response, first)
            async for each in frames:
                await _send(request, response, each)
                written_s[0] = monotonic()
        except AdexError as error:
            visit.code = error.code
            await _send(request, response, frame(body_of(error, visit.family)))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            LOG.exception("request %s failed inside its stream", visit.request_id)
            visit.code = "internal"
            failure = ServerError("something went wrong in the server")
            await _send(request, response, frame(body_of(failure, visit.family)))
        finally:
            ticker.cancel()
        await _send(request, response, None)
        return response


async def _send(request: web.Request, response: web.StreamResponse, data: bytes | None) -> None:
    """Write `data`, or the end for None. Who reads nothing for too long is cut off.

    Such a caller would otherwise keep its place at the gate for as long as it likes.
    Raises ConnectionResetError.
    """
    try:
        async with asyncio.timeout(request.app[SERVING].options.unread_s_max):
            await (response.write_eof() if data is None else response.write(data))
    except TimeoutError as error:
        if request.transport is not None:
            # Closing would wait until what is written has been read.
            request.transport.abort()
        raise ConnectionResetError("the caller reads nothing") from error


async def _keep_alive(
    response: web.StreamResponse, written_s: list[float], interval_s: float
) -> None:
    """A comment whenever nothing was written for `interval_s` (`written_s` holds the last time)."""
    with suppress(ConnectionError):
        while True:
            await asyncio.sleep(max(0.0, written_s[0] + interval_s - monotonic()))
            if monotonic() - written_s[0] >= interval_s:
                await response.write(KEEP_ALIVE)
                written_s[0] = monotonic()
