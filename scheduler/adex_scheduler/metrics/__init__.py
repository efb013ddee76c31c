"""What a scheduler tells Prometheus: what callers saw, and the core's picture when asked.

No label of ours names an adapter or a tenant: there may be thousands, and some are private.
"""

from adex_scheduler.metrics.aliases import DIALECTS
from adex_scheduler.metrics.meters import SchedulerMetrics
from adex_scheduler.metrics.snapshot import Sources

__all__ = ["DIALECTS", "SchedulerMetrics", "Sources"]
