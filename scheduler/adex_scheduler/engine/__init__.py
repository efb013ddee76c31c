"""The engine: requests in, pieces of text out, one core and one worker behind it."""

from adex_scheduler.core.events import Action
from adex_scheduler.engine.control import ControlRequest, Progress
from adex_scheduler.engine.journal import Entry, Happening, Second
from adex_scheduler.engine.journey import Journey, Move, MoveKind, Start
from adex_scheduler.engine.ports import Link
from adex_scheduler.engine.recorder import Observer
from adex_scheduler.engine.scene import Scene
from adex_scheduler.engine.shell import Engine
from adex_scheduler.engine.streams import AdapterStatus, EngineRequest, Piece, TokenTexts

__all__ = [
    "Action",
    "AdapterStatus",
    "ControlRequest",
    "Engine",
    "EngineRequest",
    "Entry",
    "Happening",
    "Journey",
    "Link",
    "Move",
    "MoveKind",
    "Observer",
    "Piece",
    "Progress",
    "Scene",
    "Second",
    "Start",
    "TokenTexts",
]
