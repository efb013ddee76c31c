"""Server-sent events as bytes; pure.

Exactly one space follows `data:`, and JSON is written without raw line breaks, because clients in
use cut each line at a fixed place.
"""

import json
import math
from collections.abc import Mapping, Sequence

DONE = b"data: [DONE]\n\n"
# What JSON leaves bare, and Python's splitlines, which clients use, takes for line ends.
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
# A comment: it keeps proxies from closing a quiet connection, and clients skip it.
KEEP_ALIVE = b":\n\n"
# JSON has no infinity; a token that cannot be drawn shows as very improbable instead.
LOGPROB_MIN = -9999.0
# Written in a millisecond or two.
_ITEMS_AT_ONCE = 1000


def frame(value: Mapping[str, object]) -> bytes:
    """One event that carries `value`."""
    return b"data: " + json_bytes(value) + b"\n\n"


def json_bytes(value: object) -> bytes:
    """Compact JSON in UTF-8; raises ValueError for a number JSON has no form for."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.translate(LINE_ENDS).encode("utf-8", errors="replace")


def json_list(items: Sequence[object]) -> bytes:
    """A long list in JSON, in pieces: none keeps the interpreter to itself for long."""
    starts = range(0, len(items), _ITEMS_AT_ONCE)
    pieces = [json_bytes(items[start : start + _ITEMS_AT_ONCE])[1:-1] for start in starts]
    return b"[" + b",".join(pieces) + b"]"


def finite_logprob(logprob: float | None) -> float:
    """A log probability as JSON can carry it."""
    if logprob is None or math.isnan(logprob):
        return LOGPROB_MIN
    return min(0.0, max(logprob, LOGPROB_MIN))
