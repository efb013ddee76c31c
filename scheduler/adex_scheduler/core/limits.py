"""Every limit the core works under, in one frozen value."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf


@dataclass(frozen=True, slots=True)
class Pacing:
    """How long a step in which sequences decode may become by prompts beside them, which are cut.

    It takes `target_s`; without one, `stretch_max` times what it takes without prompts, as long as
    these are few.
    """

    target_s: float | None = None
    stretch_max: float = 4.0

    def __post_init__(self) -> None:
        if self.target_s is not None and self.target_s <= 0:
            raise ValueError(f"target_s must be positive, got {self.target_s}")
        if self.stretch_max <= 1:
            raise ValueError(f"stretch_max must be above 1, got {self.stretch_max}")


PACING = Pacing()


@dataclass(frozen=True, slots=True)
class Limits:
    """What the core may hold, wait for and keep in flight. None: as much as the worker can."""

    waiting_max: int = 1024
    """Sequences that may wait, all tenants together; more are refused as Overloaded."""
    waiting_tenant_max: int = 1024
    """Sequences that may wait for one tenant."""
    running_max: int | None = None
    """Sequences that may run at once, at most the worker's `step_sequences_max`."""
    prompt_tokens_max: int | None = None
    step_tokens_max: int | None = None
    """Tokens one step computes, at most the worker's `step_tokens_max`."""
    pacing: Pacing | None = PACING
    """None: prompts are not cut for the sake of those who decode beside them."""
    plans_in_flight_max: int = 2
    """Steps sent and not answered: 2 lets the worker start the next one without waiting."""
    fetches_max: int = 8
    stages_max: int = 4
    page_ins_max: int = 2
    """Moves in flight towards each tier; more only queue on the same link."""
    disk_evictions_max: int = 64
    """Bundles told to leave the disk and not gone yet: a worker may come with far too many."""
    move_retries_max: int = 2
    alias_ttl_s: float = 5.0
    """An adapter name resolved longer ago is resolved again beside the request that uses it."""
    failure_ttl_s: float = 2.0
    """How long a name that could not be resolved fails at once instead of being tried again."""
    aliases_max: int = 200_000
    tenants_max: int = 100_000
    """Names and tenants remembered; the longest unused are forgotten first."""
    tenant_weights: Mapping[str, float] = field(default_factory=dict[str, float], hash=False)
    """Shares of service by tenant, where one is to have another than 1."""
    wait_s_max: float = 300.0
    """A sequence that has not begun by then fails."""
    worker_wait_s_max: float = 30.0
    """How long a sequence outlives the loss of its worker without another one coming."""
    turn_admissions: int = 64
    turn_s: float = 2.0
    """An adapter on the device keeps its place for a turn, which ends after so many admissions or
    so much time, whichever is first; then it may have to make way for one that is due."""
    errands_max: int = 256
    """What operators may have under way, preloads and pins among it."""
    hints_max: int = 64
    """Prefetch hints that wait for an idle moment; the oldest is forgotten for a new one."""
    pins_max: int = 1024
    pinned_fraction: float = 0.5
    """Names that may be pinned, and the share of slots, pages, host memory and disk for them."""
    watermark_fraction: float = 0.01
    """Share of the pages that admission leaves free, so that running sequences can grow."""
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None or isinstance(value, bool | Mapping | Pacing):
                continue
            if value < 0 or (isinstance(value, int) and value == 0 and "retries" not in one.name):
                raise ValueError(f"{one.name} must be positive, got {value}")
        for tenant, weight in self.tenant_weights.items():
            if not 0 < weight < inf:
                raise ValueError(f"tenant_weights must be positive, got {weight} for {tenant!r}")
        if self.pinned_fraction > 1:
            raise ValueError(f"pinned_fraction must be at most 1, got {self.pinned_fraction}")
        if self.watermark_fraction >= 0.5:
            raise ValueError(f"watermark_fraction must be below 0.5, got {self.watermark_fraction}")
