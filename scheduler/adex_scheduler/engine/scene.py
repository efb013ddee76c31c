"""What somebody who watches an engine sees at one moment."""

from dataclasses import dataclass

from adex_proto.outcome import WorkerInfo
from adex_scheduler.core.picture import Picture
from adex_scheduler.engine.journal import Entry, Second


@dataclass(frozen=True, slots=True)
class Scene:
    """The core's picture, and the engine's log and rates, the oldest first."""

    info: WorkerInfo
    draining: bool
    picture: Picture
    entries: tuple[Entry, ...]
    seconds: tuple[Second, ...]
