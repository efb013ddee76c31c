"""What the fronts need of the rest of the scheduler, and the bundle of it that each door holds."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self
from urllib.parse import quote

from adex_proto.adapter import AdapterKey
from adex_proto.grammar import Grammar
from adex_proto.outcome import WorkerInfo
from adex_scheduler.engine import (
    AdapterStatus,
    ControlRequest,
    EngineRequest,
    Journey,
    Piece,
    Progress,
    Scene,
)
from adex_scheduler.front.catalogue import LocalAdapters
from adex_scheduler.front.fields import RequestLimits
from adex_scheduler.front.gate import Gate
from adex_scheduler.front.tenants import Directory
from adex_scheduler.text.tokenizer import Tokenizer


class TextEngine(Protocol):
    """The engine as the fronts see it."""

    @property
    def info(self) -> WorkerInfo | None:
        """The worker's own description; None until it has said hello."""
        ...

    @property
    def ready(self) -> bool:
        """Whether requests can be served now."""
        ...

    def stream(
        self, request: EngineRequest, journey: Journey | None = None
    ) -> AsyncGenerator[Piece, None]:
        """The pieces of one sequence; closing the iterator cancels it. Raises AdexError.

        What happens to the sequence, and when, is written into `journey`.
        """
        ...

    async def prepare_grammar(self, grammar: Grammar) -> None:
        """Have the grammar compiled. Raises AdexError where it cannot be honoured."""
        ...

    def adapters(self, most: int) -> Sequence[AdapterStatus]:
        """The adapters the scheduler knows of, with their tiers: the `most` used last, and pins."""
        ...

    def adapter(self, key: AdapterKey) -> AdapterStatus | None:
        """One of them, None where nothing is known of it."""
        ...

    def control(self, request: ControlRequest) -> AsyncGenerator[Progress, None]:
        """What becomes of a request about an adapter, `done` at last. Raises AdexError.

        Closing it gives a preload up; what else was asked goes on.
        """
        ...

    def scene(self) -> Scene | None:
        """What those who watch see, bounded; None until a worker has said hello."""
        ...


class Meters(Protocol):
    """Where the fronts report what callers see. Names of adapters or callers never go here."""

    def request_answered(self, endpoint: str, code: str, seconds: float) -> None:
        """One request is over; `code` is "ok" or an error's stable code."""
        ...

    def first_token(self, seconds: float, journey: Journey) -> None:
        """A sequence's first token came this long after its request."""
        ...

    def next_token(self, seconds: float) -> None:
        """A sequence's next token came this long after the one before."""
        ...

    def sequence_ended(self, seconds: float, journey: Journey, generated: int) -> None:
        """A sequence that had a token ended so long after its request, `generated` tokens read."""
        ...

    def exposition(self) -> bytes:
        """Everything measured, in Prometheus' text format."""
        ...


@dataclass(frozen=True, slots=True)
class Run:
    """One sequence of a request, and what happened to it."""

    request: EngineRequest
    journey: Journey


@dataclass(frozen=True, slots=True)
class Ended:
    """One request that is over, for those who watch. Seconds are of the monotonic clock.

    `operation` is what OpenTelemetry calls the kind of generation, "" for a route that generates
    nothing. `status` is the door's own: an HTTP status, or a name of gRPC's. `adapter` is what the
    caller wrote, "" for the base model and None where it was refused before that was read; it is to
    be shown by `shown_adapter` only. `context` holds the W3C headers that came.
    """

    door: str
    method: str
    endpoint: str
    operation: str
    status: int | str
    code: str
    request_id: str
    began_s: float
    ended_s: float
    first_token_s: float
    queue_s: float
    prompt_tokens: int
    new_tokens: int
    adapter: str | None
    runs: Sequence[Run]
    context: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The version that its sequences were bound to; "" for none, and for the base model."""
        return next((run.journey.digest for run in self.runs if run.journey.digest), "")

    @property
    def shown_adapter(self) -> str:
        """Its adapter in words that anybody may read.

        A name is shown once it has turned out to be everyone's; until then it may be a private
        one, asked for by mistake without its credential.
        """
        if self.adapter is None:
            return "unread"
        if not self.adapter:
            return "base"
        key = next((run.request.key for run in self.runs if run.request.key is not None), None)
        if key is None or not self.digest:
            return "unresolved"
        if key.tenant:
            return f"private-{self.digest[:12]}"
        return quote(self.adapter, safe="/:@+,;*~")[:256]


class Traces(Protocol):
    """Where requests become traces."""

    def request_ended(self, ended: Ended) -> str:
        """Tell of a request that is over. Returns: its trace's id, "" where none is kept."""
        ...


@dataclass(frozen=True, slots=True)
class FrontOptions:
    """Limits and names of the doors; seconds, bytes, counts.

    `new_tokens_default_max` bounds a generation whose caller named no number of tokens, which
    otherwise fills the context. `total_tokens_max` (0: the model's own) bounds prompt and output.
    `unread_s_max` is how long a caller may leave a full stream unread before it is cut off.
    """

    model_id: str
    version: str
    limits: RequestLimits = field(default_factory=RequestLimits)
    body_bytes_max: int = 2_000_000
    requests_max: int = 1024
    new_tokens_default_max: int = 2048
    total_tokens_max: int = 0
    keep_alive_s: float = 15.0
    unread_s_max: float = 60.0
    adapter_roots: tuple[str, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """What callers show to be served; none lets everybody."""
    cors_origins: tuple[str, ...] = ()
    """Origins of pages that may read answers; `*` for all."""
    admin_key: str = field(default="", repr=False)
    """What proves an operator; "" lets nobody control adapters, unless `open_admin` lets all."""
    open_admin: bool = False
    started_at_s: int = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """What every handler works with."""

    engine: TextEngine
    tokenizer: Tokenizer
    directory: Directory
    meters: Meters
    options: FrontOptions
    gate: Gate
    local_adapters: LocalAdapters
    traces: Traces | None = None

    @classmethod
    def over(
        cls,
        engine: TextEngine,
        tokenizer: Tokenizer,
        directory: Directory,
        meters: Meters,
        options: FrontOptions,
        traces: Traces | None = None,
    ) -> Self:
        """The bundle, with the gate and the listing that both doors share."""
        gate, found = Gate(options.requests_max), LocalAdapters(options.adapter_roots)
        return cls(engine, tokenizer, directory, meters, options, gate, found, traces)
