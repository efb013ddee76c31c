"""Spans to an OpenTelemetry collector, over OTLP and gRPC, from a thread of its own.

A trace is made when its request is over, from times written down on the way: while a request runs,
tracing costs nothing. What the collector does not take in time is dropped, never waited for.
"""

import threading
import time
from typing import TYPE_CHECKING, Any

from adex_proto.errors import ValidationError
from adex_scheduler.front.ports import Ended
from adex_scheduler.tracing.tree import Span, tree_of

if TYPE_CHECKING:
    from opentelemetry.context import Context

_CLOSE_S_MAX = 3.0


class Tracing:
    """Tells a collector of every request. Needs the extra `otel`."""

    def __init__(self, endpoint: str, *, version: str, base_name: str) -> None:
        """`endpoint` is http://host:port, or https:// for TLS.

        The SDK reads the other standard OTEL_* variables: sampler, headers, resource attributes.
        Raises ValidationError where OpenTelemetry is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation import tracecontext
        except ImportError as error:
            raise ValidationError(
                f"traces need OpenTelemetry, which is not installed here ({error.name})",
                field="otlp_endpoint",
                remedy="Install the extra: pip install 'adex[otel]', or give --otlp-endpoint off",
            ) from error
        self._trace: Any = trace
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        ours = Resource.create({"service.name": "adex-scheduler", "service.version": version})
        self._provider: TracerProvider = TracerProvider(
            resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("adex_scheduler", version)
        self._base_name = base_name

    def request_ended(self, ended: Ended) -> str:
        """Make the request's trace, below the caller's span if it has one.

        Returns: the trace's id; "" for a route that generates nothing.
        """
        if not ended.operation:
            return ""
        # Spans have wall-clock times; ours are of a clock that never jumps.
        epoch_ns = time.time_ns() - time.monotonic_ns()
        parent = self._propagator.extract(ended.context)
        tree = tree_of(ended, self._base_name)
        kind = self._trace.SpanKind.SERVER
        trace_id: int = self._emit(tree, parent, epoch_ns, kind)
        return f"{trace_id:032x}"

    def close(self) -> None:
        """Send what is left. Blocks, but for a few seconds only where the collector is silent."""
        closing = threading.Thread(target=self._provider.shutdown, name="adex-traces", daemon=True)
        closing.start()
        closing.join(_CLOSE_S_MAX)

    def _emit(self, told: Span, parent: "Context", epoch_ns: int, kind: Any) -> int:
        trace = self._trace
        span = self._tracer.start_span(
            told.name,
            context=parent,
            kind=kind,
            attributes=dict(told.attributes),
            start_time=epoch_ns + int(told.began_s * 1e9),
        )
        if told.error:
            span.set_status(trace.StatusCode.ERROR, told.error)
        if span.is_recording():
            below = trace.set_span_in_context(span, parent)
            for child in told.children:
                self._emit(child, below, epoch_ns, trace.SpanKind.INTERNAL)
        span.end(epoch_ns + int(told.ended_s * 1e9))
        trace_id: int = span.get_span_context().trace_id
        return trace_id
