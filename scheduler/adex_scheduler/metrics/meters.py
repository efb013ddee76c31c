"""The meters that fronts and engine report to, and the exposition of everything.

What is measured for each token costs a microsecond; the rest is paid per request, move or step.
"""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from adex_proto.outcome import StepOutcome
from adex_proto.plan import StepPlan
from adex_scheduler.engine import Journey, Move, MoveKind, Start
from adex_scheduler.metrics.aliases import AliasCollector
from adex_scheduler.metrics.snapshot import CoreCollector, Sources

# From a token of a small model to a generation of minutes.
_REQUEST_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
_FIRST_TOKEN_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
_NEXT_TOKEN_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
# From nothing to wait for to the 300 seconds after which a request is given up.
_WAIT_SECONDS = (0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300)
# A copy over a fast link, and a download over a slow one.
_COPY_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)
_FETCH_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
_TOKENS = tuple(float(2**power) for power in range(18))
_SEQUENCES = tuple(float(2**power) for power in range(11))
# Whatever a request calls its source, no more than these are told apart.
_SOURCES = ("local", "hub", "s3")


class SchedulerMetrics:
    """Where the fronts and the engine report, and what /metrics answers."""

    def __init__(
        self, sources: Sources, *, dialects: tuple[str, ...] = (), model_name: str = ""
    ) -> None:
        """`dialects` are the other servers under whose names everything is told once more."""
        # When a counter was born doubles the number of series and tells nobody anything.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._registry.register(CoreCollector(sources))
        ProcessCollector(registry=self._registry)
        self._aliases = [
            AliasCollector(self._registry, dialect, sources, model_name) for dialect in dialects
        ]
        self._requests = self._counter(
            "adex_requests", "Requests answered, by route and stable code", "endpoint", "code"
        )
        self._seconds = self._histogram(
            "adex_request_duration_seconds",
            "From a request's arrival to the end of its answer",
            _REQUEST_SECONDS,
            "endpoint",
        )
        self._build_sequence_meters()
        self._build_engine_meters()

    def _build_sequence_meters(self) -> None:
        first = self._histogram(
            "adex_time_to_first_token_seconds",
            "From a request's arrival to its first token, by where its adapter was",
            _FIRST_TOKEN_SECONDS,
            "start",
        )
        self._first = {start: first.labels(start.value) for start in Start}
        wait = self._histogram(
            "adex_adapter_wait_seconds",
            "From a sequence's submission to its adapter's arrival on the device",
            _WAIT_SECONDS,
            "start",
        )
        self._wait = {start: wait.labels(start.value) for start in Start if start is not Start.BASE}
        starts = self._counter(
            "adex_sequence_starts", "Sequences taken in, by where their adapter was", "start"
        )
        self._starts = {start: starts.labels(start.value) for start in Start}
        self._next = self._histogram(
            "adex_inter_token_seconds", "Between two tokens of a sequence", _NEXT_TOKEN_SECONDS
        )
        self._per_token = self._histogram(
            "adex_time_per_output_token_seconds",
            "Mean time between the tokens of a sequence",
            _NEXT_TOKEN_SECONDS,
        )
        self._build_part_meters()
        self._prompt_lengths = self._histogram(
            "adex_sequence_prompt_tokens", "Prompt tokens of a sequence", _TOKENS
        )
        self._new_lengths = self._histogram(
            "adex_sequence_generated_tokens", "Tokens generated of a sequence", _TOKENS
        )
        self._prompt_tokens = self._counter("adex_prompt_tokens", "Prompt tokens of sequences")
        self._new_tokens = self._counter("adex_generated_tokens", "Tokens given to callers")

    def _build_part_meters(self) -> None:
        """The parts of a sequence's time."""
        self._validation = self._histogram(
            "adex_validation_seconds", "From a request's arrival to its submission", _COPY_SECONDS
        )
        self._queue = self._histogram(
            "adex_queue_seconds", "From a sequence's submission to its first step", _WAIT_SECONDS
        )
        self._prefill = self._histogram(
            "adex_prefill_seconds",
            "From a sequence's first step to its first token",
            _FIRST_TOKEN_SECONDS,
        )
        self._decode = self._histogram(
            "adex_decode_seconds", "From a sequence's first token to its last", _REQUEST_SECONDS
        )
        self._inference = self._histogram(
            "adex_inference_seconds",
            "From a sequence's first step to its last token",
            _REQUEST_SECONDS,
        )
        self._end_to_end = self._histogram(
            "adex_end_to_end_seconds",
            "From a request's arrival to a sequence's end",
            _REQUEST_SECONDS,
        )

    def _build_engine_meters(self) -> None:
        self._fetch = self._histogram(
            "adex_adapter_fetch_seconds",
            "Resolving a name, and bringing the adapter to disk where it is not",
            _FETCH_SECONDS,
            "source",
        )
        self._fetch_failures = self._counter(
            "adex_adapter_fetch_failures", "Names that could not be resolved", "source", "code"
        )
        self._stage = self._histogram(
            "adex_adapter_stage_seconds", "Reading an adapter into host memory", _COPY_SECONDS
        )
        self._page_in = self._histogram(
            "adex_adapter_page_in_seconds", "Copying an adapter to the device", _COPY_SECONDS
        )
        self._step = self._histogram(
            "adex_step_seconds", "Computing a step, as the worker measures it", _STEP_SECONDS
        )
        self._step_tokens = self._histogram(
            "adex_step_tokens", "Positions that a step computes", _TOKENS
        )
        self._step_sequences = self._histogram(
            "adex_step_sequences", "Sequences that a step computes for", _SEQUENCES
        )

    # What the fronts report.

    def request_answered(self, endpoint: str, code: str, seconds: float) -> None:
        """One request is over; `code` is "ok" or an error's stable code."""
        self._requests.labels(endpoint, code).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def first_token(self, seconds: float, journey: Journey) -> None:
        """A sequence's first token came this long after its request."""
        self._first[journey.start].observe(seconds)
        self._queue.observe(journey.queue_s)
        self._prefill.observe(max(journey.first_s - journey.admitted_s, 0.0))
        self._validation.observe(max(seconds - (journey.first_s - journey.submitted_s), 0.0))
        if journey.start is not Start.BASE:
            self._wait[journey.start].observe(journey.adapter_wait_s)

    def next_token(self, seconds: float) -> None:
        """A sequence's next token came this long after the one before."""
        self._next.observe(seconds)

    def sequence_ended(self, seconds: float, journey: Journey, generated: int) -> None:
        """A sequence that had a token ended so long after its request, `generated` tokens read."""
        self._prompt_tokens.inc(journey.prompt_tokens)
        self._new_tokens.inc(generated)
        self._prompt_lengths.observe(journey.prompt_tokens)
        self._new_lengths.observe(generated)
        self._end_to_end.observe(seconds)
        decode_s = max(journey.ended_s - journey.first_s, 0.0)
        self._decode.observe(decode_s)
        self._inference.observe(max(journey.ended_s - journey.admitted_s, 0.0))
        if journey.generated > 1:
            self._per_token.observe(decode_s / (journey.generated - 1))

    def exposition(self) -> bytes:
        """Everything measured, in Prometheus' text format."""
        told: bytes = generate_latest(self._registry)
        return told + b"".join(alias.exposition() for alias in self._aliases)

    # What the engine reports.

    def submitted(self, journey: Journey) -> None:
        """A sequence was taken in."""
        self._starts[journey.start].inc()

    def moved(self, move: Move) -> None:
        """A move of an adapter ended. Failures of copies are counted by the core."""
        seconds = move.ended_s - move.began_s
        match move.kind:
            case MoveKind.FETCH:
                source = move.source if move.source in _SOURCES else "other"
                self._fetch.labels(source).observe(seconds)
                if move.error:
                    self._fetch_failures.labels(source, move.error).inc()
            case MoveKind.STAGE:
                self._stage.observe(seconds)
            case MoveKind.PAGE_IN:
                self._page_in.observe(seconds)

    def planned(self, plan: StepPlan) -> None:
        """A step goes to the worker."""
        if plan.tokens:
            self._step_tokens.observe(plan.tokens)
            self._step_sequences.observe(len(plan.sequences))

    def computed(self, outcome: StepOutcome) -> None:
        """The worker answered a step."""
        self._step.observe(outcome.seconds)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(name, text, labels, buckets=buckets, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)
