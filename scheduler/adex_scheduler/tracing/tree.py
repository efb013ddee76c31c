"""A request that is over as a tree of spans: what is told of it, and what never is.

    chat demo                       the request, as its door saw it
    ├─ validation                   read, check, tokenise
    ├─ queue                        until a step first plans for it
    │  ├─ fetch                     its adapter's name is resolved, its files are brought
    │  ├─ stage                     disk to host memory
    │  └─ page_in                   host memory to the device
    ├─ prefill                      until its first token
    └─ decode                       until its last

A request of several sequences has a span `sequence` for each, above the last three. Attributes are
those of OpenTelemetry's conventions for HTTP, RPC and generative models, and `adex.*`. Prompts,
texts, tokens, credentials and names of private adapters are not among them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adex_scheduler.engine import Journey
from adex_scheduler.front.ports import Ended, Run

Attribute = str | int | float | bool | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """One piece of work, [began_s, ended_s) of the monotonic clock. `error` is "" for none."""

    name: str
    began_s: float
    ended_s: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict[str, Attribute])
    error: str = ""
    children: tuple["Span", ...] = ()


def tree_of(ended: Ended, base_name: str) -> Span:
    """The request's spans; `base_name` is what the base model is called here."""
    attributes = {**_door(ended), **_generation(ended, base_name)}
    error = "" if ended.code == "ok" else ended.code
    if error:
        attributes["error.type"] = error
    children: list[Span] = []
    if ended.runs:
        submitted_s = min(run.journey.submitted_s for run in ended.runs)
        children.append(Span("validation", ended.began_s, max(submitted_s, ended.began_s)))
    if len(ended.runs) == 1:
        children += _phases(ended.runs[0].journey)
    else:
        children += [_sequence(run) for run in ended.runs]
    name = f"{ended.operation} {attributes['gen_ai.request.model']}"
    return Span(name, ended.began_s, ended.ended_s, attributes, error, tuple(children))


def _sequence(run: Run) -> Span:
    journey = run.journey
    attributes: dict[str, Attribute] = {
        "gen_ai.usage.input_tokens": journey.prompt_tokens,
        "gen_ai.usage.output_tokens": journey.generated,
        "adex.end": journey.end,
    }
    phases = tuple(_phases(journey))
    return Span("sequence", journey.submitted_s, journey.ended_s, attributes, children=phases)


def _phases(journey: Journey) -> list[Span]:
    begun = journey.admissions > 0
    admitted_s = journey.admitted_s if begun else journey.ended_s
    moves = tuple(
        Span(
            move.kind.value,
            # One that another request had asked for may be under way already.
            max(move.began_s, journey.submitted_s),
            move.ended_s,
            {
                "adex.move.seconds": move.ended_s - move.began_s,
                **({"adex.source": move.source} if move.source else {}),
            },
            move.error,
        )
        for move in journey.moves
    )
    queue: dict[str, Attribute] = {"adex.adapter.start": journey.start.value}
    phases = [Span("queue", journey.submitted_s, admitted_s, queue, children=moves)]
    if begun:
        first_s = journey.first_s or journey.ended_s
        read: dict[str, Attribute] = {"gen_ai.usage.input_tokens": journey.prompt_tokens}
        phases.append(Span("prefill", admitted_s, first_s, read))
    if journey.first_s:
        written: dict[str, Attribute] = {
            "gen_ai.usage.output_tokens": journey.generated,
            "adex.preemptions": max(journey.admissions - 1, 0),
        }
        phases.append(Span("decode", journey.first_s, journey.ended_s, written))
    return phases


def _door(ended: Ended) -> dict[str, Attribute]:
    if ended.door == "rest":
        return {
            "http.request.method": ended.method,
            "http.route": ended.endpoint,
            "http.response.status_code": int(ended.status),
        }
    return {
        "rpc.system": "grpc",
        "rpc.method": ended.endpoint.partition(":")[2],
        "rpc.response.status_code": str(ended.status),
    }


def _generation(ended: Ended, base_name: str) -> dict[str, Attribute]:
    adapter = ended.shown_adapter
    model = base_name if adapter == "base" else adapter
    told: dict[str, Attribute] = {
        "gen_ai.operation.name": ended.operation,
        "gen_ai.provider.name": "adex",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": ended.request_id,
        "gen_ai.usage.input_tokens": ended.prompt_tokens,
        "gen_ai.usage.output_tokens": ended.new_tokens,
    }
    if not ended.runs:
        return told
    first = ended.runs[0]
    sampling = first.request.sampling
    told |= {
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "adex.adapter.start": first.journey.start.value,
    }
    if len(ended.runs) > 1:
        told["gen_ai.request.choice.count"] = len(ended.runs)
    if ended.digest:
        told["adex.adapter.digest"] = ended.digest[:12]
    ends = tuple(run.journey.end for run in ended.runs if run.journey.first_s)
    if ends:
        told["gen_ai.response.finish_reasons"] = ends
    if ended.first_token_s:
        told["gen_ai.response.time_to_first_chunk"] = ended.first_token_s - ended.began_s
    return told
