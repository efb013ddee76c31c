"""How both processes write their log: a line for people, or one JSON object a line for machines."""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import Enum
from typing import IO

# Libraries that write to standard error themselves, beside what they hand on.
_OWN_WRITERS = ("huggingface_hub",)


class LogFormat(Enum):
    """What a line looks like."""

    TEXT = "text"
    JSON = "json"


class JsonLines(logging.Formatter):
    """One JSON object a line. A record's `fields`, where it has them, stand beside its message."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_logging(level: str, style: LogFormat, stream: IO[str] | None = None) -> None:
    """Write what is at least `level` to `stream`, by default standard error."""
    handler = logging.StreamHandler(stream or sys.stderr)
    if style is LogFormat.JSON:
        handler.setFormatter(JsonLines())
    else:
        text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
        handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(level=level, handlers=[handler])
    for name in _OWN_WRITERS:
        # What it says would otherwise be said twice, once in a form that nobody chose.
        logging.getLogger(name).handlers.clear()
