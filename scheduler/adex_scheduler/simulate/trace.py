"""A trace: who asks what and when, as JSON lines that drive the simulation and a server alike."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adex_proto.errors import ValidationError

TOKENS_MAX = 2**20


@dataclass(frozen=True, slots=True)
class TracedRequest:
    """One request. `adapter` None is the base model.

    `rank` is the adapter's; with the hardware's bytes per rank it says how large the adapter is.
    Requests of one `session` share the tokens they have in common: each prompt begins with the
    one before it and its answer. So many `shared_tokens` begin the prompts of all requests with the
    adapter, as a system prompt does.
    """

    time_s: float
    tenant: str
    adapter: str | None
    prompt_tokens: int
    output_tokens: int
    rank: int
    session: int | None = None
    shared_tokens: int = 0


def adapter_name(index: int) -> str:
    """What generated traces call adapter `index`."""
    return f"adapter-{index:05d}"


def write_trace(path: Path, requests: Iterable[TracedRequest]) -> None:
    """One JSON object per line, in order of time."""
    with path.open("w", encoding="utf-8") as file:
        for request in requests:
            told: dict[str, Any] = {
                "time_s": request.time_s,
                "tenant": request.tenant,
                "adapter": request.adapter,
                "prompt_tokens": request.prompt_tokens,
                "output_tokens": request.output_tokens,
                "rank": request.rank,
            }
            if request.session is not None:
                told["session"] = request.session
            if request.shared_tokens:
                told["shared_tokens"] = request.shared_tokens
            file.write(json.dumps(told) + "\n")


def read_trace(path: Path) -> list[TracedRequest]:
    """The requests of a file, in order of time.

    Raises ValidationError that names the line and the field.
    """
    requests: list[TracedRequest] = []
    ranks: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValidationError(f"{path} cannot be read: {error}", field="trace") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        request = _request(f"{path}, line {number}", line)
        if request.adapter and ranks.setdefault(request.adapter, request.rank) != request.rank:
            raise _bad(f"{path}, line {number}", "rank", "an adapter has one rank in a trace")
        requests.append(request)
    if not requests:
        raise ValidationError(f"{path} holds no requests", field="trace")
    return sorted(requests, key=lambda request: request.time_s)


def ranks_of(requests: Sequence[TracedRequest]) -> dict[str, int]:
    """Every adapter the trace names, with its rank, in order of first use."""
    return {one.adapter: one.rank for one in requests if one.adapter is not None}


def _request(where: str, line: str) -> TracedRequest:
    try:
        told = json.loads(line)
    except json.JSONDecodeError as error:
        raise _bad(where, "line", f"is not JSON: {error.msg}") from error
    if not isinstance(told, dict):
        raise _bad(where, "line", "is not a JSON object")
    unknown = set(told) - set(TracedRequest.__slots__)
    if unknown:
        raise _bad(where, min(unknown), "is not a field of a traced request")
    adapter, session = told.get("adapter"), told.get("session")
    if not (adapter is None or (isinstance(adapter, str) and adapter)):
        raise _bad(where, "adapter", "must be a name, or null for the base model")
    if not (session is None or _is_count(session, 0, 2**31)):
        raise _bad(where, "session", "must be a whole number")
    shared = told.get("shared_tokens", 0)
    if not _is_count(shared, 0, TOKENS_MAX):
        raise _bad(where, "shared_tokens", f"must be a whole number from 0 to {TOKENS_MAX}")
    time_s, tenant = told.get("time_s"), told.get("tenant", "")
    if isinstance(time_s, bool) or not isinstance(time_s, int | float) or not 0 <= time_s < 1e9:
        raise _bad(where, "time_s", "must be seconds from the trace's start, 0 or more")
    if not isinstance(tenant, str):
        raise _bad(where, "tenant", "must be a string")
    counts = {"prompt_tokens": TOKENS_MAX, "output_tokens": TOKENS_MAX, "rank": 4096}
    told.setdefault("rank", 16)
    for field, most in counts.items():
        if not _is_count(told.get(field), 1, most):
            raise _bad(where, field, f"must be a whole number from 1 to {most}")
    return TracedRequest(
        float(time_s),
        tenant,
        adapter,
        told["prompt_tokens"],
        told["output_tokens"],
        told["rank"],
        session,
        shared,
    )


def _is_count(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _bad(where: str, field: str, what: str) -> ValidationError:
    return ValidationError(
        f"{where}: `{field}` {what}", field=field, remedy="See docs/simulate.md for the format"
    )
