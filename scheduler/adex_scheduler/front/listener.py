"""The HTTP server under the REST door: how it is run, and what it says of callers' own faults."""

import logging

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from adex_scheduler.front.ports import Serving
from adex_scheduler.front.rest import create_app

# What a caller alone can cause: bytes that are no HTTP, a broken body, a connection that is gone.
_CALLERS_FAULTS = (HttpProcessingError, web.RequestPayloadError, ConnectionError)


class CallersFaults(logging.Filter):
    """One line without a traceback where aiohttp reports a caller's fault as the server's."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten such a record; it is never dropped."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, _CALLERS_FAULTS):
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
            # The error's own text quotes the caller's bytes, which may hold a prompt or a secret.
            record.msg = f"{record.getMessage()}: {type(error).__name__}"
            record.args, record.exc_info, record.exc_text = None, None, None
        return True


def runner_of(serving: Serving, *, close_s_max: float) -> web.AppRunner:
    """The server of the REST door, not listening yet.

    A caller who goes away cancels its handler, and with it the sequence.
    """
    logger = logging.getLogger("adex.http")
    if not any(isinstance(present, CallersFaults) for present in logger.filters):
        logger.addFilter(CallersFaults())
    return web.AppRunner(
        create_app(serving),
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=close_s_max,
        logger=logger,
    )
