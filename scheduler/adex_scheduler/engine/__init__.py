"""The engine: requests in, pieces of text out, one core and one worker behind it."""

from adex_scheduler.engine.shell import Engine, Link
from adex_scheduler.engine.streams import AdapterStatus, EngineRequest, Piece, TokenTexts

__all__ = ["AdapterStatus", "Engine", "EngineRequest", "Link", "Piece", "TokenTexts"]
