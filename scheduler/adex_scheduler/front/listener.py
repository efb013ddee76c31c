"""The HTTP server under the REST door: how it is run, and what it says of callers' own faults."""

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from adex_scheduler.front.ports import Serving
from adex_scheduler.front.rest import create_app
from adex_scheduler.front.statuses import Family, plain_body
from adex_scheduler.front.visit import json_reply

# What a caller alone can cause: bytes that are no HTTP, a broken body, a connection that is gone.
_CALLERS_FAULTS = (HttpProcessingError, web.RequestPayloadError, ConnectionError)


class CallersFaults(logging.Filter):
    """One line without a traceback where aiohttp reports a caller's fault as the server's."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten such a record, and judge it by the level it then has."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _CALLERS_FAULTS):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            # The error's own text quotes the caller's bytes, which may hold a prompt or a secret.
            record.msg = f"{record.getMessage()}: {type(error).__name__}"
            record.args, record.exc_info, record.exc_text = None, None, None
            return logging.getLogger(record.name).isEnabledFor(logging.INFO)
        return True


class _Connection(web.RequestHandler):
    """One connection; what aiohttp itself refuses is answered in JSON like everything else."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no request, after which the connection closes."""
        super().handle_error(request, status, exc, message)
        body = plain_body("these bytes are no HTTP request", "bad_request", status, Family.TGI)
        if status >= 500:
            body = plain_body("something went wrong in the server", "internal", status, Family.TGI)
        response = json_reply(body, status=status)
        response.force_close()
        return response


class _Runner(web.AppRunner):
    """Makes connections of our own kind; aiohttp has no setting for it."""

    __slots__ = ()

    @property
    def server(self) -> Any:
        """What makes a connection, once the application is set up."""
        server, settings = super().server, self._kwargs
        if server is None:
            return None
        return lambda: _Connection(
            server,
            loop=asyncio.get_running_loop(),
            logger=settings["logger"],
            access_log=settings["access_log"],
        )


def runner_of(serving: Serving, *, close_s_max: float) -> web.AppRunner:
    """The server of the REST door, not listening yet.

    A caller who goes away cancels its handler, and with it the sequence.
    """
    logger = logging.getLogger("adex.http")
    if not any(isinstance(present, CallersFaults) for present in logger.filters):
        logger.addFilter(CallersFaults())
    return _Runner(
        create_app(serving),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=close_s_max,
        logger=logger,
    )
