"""Requests as OpenTelemetry traces: off unless an endpoint is given."""

from adex_scheduler.tracing.export import Tracing

__all__ = ["Tracing"]
