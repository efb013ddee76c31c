"""What a run gave: each request's times, and the figures made of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from adex_scheduler.simulate.trace import TracedRequest
from adex_scheduler.simulate.worker import WorkerTimes


@dataclass(slots=True)
class RequestRecord:
    """One request's life, in seconds from the run's start; None: it did not come to that."""

    number: int
    arrived_at: float
    request: TracedRequest
    first_at: float | None = None
    finished_at: float | None = None
    error: str = ""

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_at is None else self.first_at - self.arrived_at


@dataclass(frozen=True, slots=True)
class TokenGap:
    """So many sequences got a token at `at`, each `seconds` after the one before."""

    at: float
    seconds: float
    count: int


@dataclass(frozen=True, slots=True)
class RunResult:
    """Everything a run is judged by."""

    ended_at: float
    records: tuple[RequestRecord, ...]
    times: WorkerTimes
    gaps: tuple[TokenGap, ...] = ()

    def figures(self, *, from_s: float = 0.0) -> "Figures":
        """Figures over what arrived, and what ended, from `from_s` on."""
        late = [one for one in self.records if one.arrived_at >= from_s]
        ended = [one for one in self.records if (one.finished_at or -1.0) >= from_s]
        # A request without a first token has waited this long, and does not drop out of the tail.
        ttft = sorted(
            self.ended_at - one.arrived_at if one.ttft_s is None else one.ttft_s for one in late
        )
        span = max(self.ended_at - from_s, 1e-9)
        return Figures(
            requests=len(late),
            finished=len(ended),
            failed=sum(bool(one.error) for one in late),
            requests_per_s=len(ended) / span,
            output_tokens_per_s=sum(one.request.output_tokens for one in ended) / span,
            ttft_p50_s=quantile(ttft, 0.5),
            ttft_p99_s=quantile(ttft, 0.99),
            ttft_max_s=ttft[-1] if ttft else 0.0,
            token_gap_p99_s=_gap_quantile([g for g in self.gaps if g.at >= from_s], 0.99),
            within_1s=sum(one <= 1.0 for one in ttft) / max(len(ttft), 1),
            blocked_share=self.times.blocked_s / max(self.ended_at, 1e-9),
            steps=self.times.steps,
            fetches=self.times.fetches,
            stages=self.times.stages,
            page_ins=self.times.page_ins,
            fetched_bytes=self.times.fetched_bytes,
            staged_bytes=self.times.staged_bytes,
            paged_in_bytes=self.times.paged_in_bytes,
        )

    def served(self, *, from_s: float = 0.0) -> Counter[str]:
        """Requests finished from `from_s` on, by adapter ("" is the base model)."""
        return Counter(
            one.request.adapter or ""
            for one in self.records
            if one.finished_at is not None and one.finished_at >= from_s
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """One run in numbers; times in seconds."""

    requests: int
    finished: int
    failed: int
    requests_per_s: float
    output_tokens_per_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    ttft_max_s: float
    token_gap_p99_s: float
    within_1s: float
    blocked_share: float
    steps: int
    fetches: int
    stages: int
    page_ins: int
    fetched_bytes: float
    staged_bytes: float
    paged_in_bytes: float


def _gap_quantile(gaps: Sequence[TokenGap], share: float) -> float:
    left = int(share * sum(one.count for one in gaps))
    for one in sorted(gaps, key=lambda gap: gap.seconds):
        left -= one.count
        if left < 0:
            return one.seconds
    return 0.0


def quantile(ordered: Sequence[float], share: float) -> float:
    """The least value that `share` of them do not exceed; 0 of nothing."""
    if not ordered:
        return 0.0
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def mix_distance(one: Counter[str], other: Counter[str]) -> float:
    """Total variation between two mixes of adapters: 0 the same, 1 nothing in common."""
    first, second = max(one.total(), 1), max(other.total(), 1)
    return 0.5 * sum(abs(one[name] / first - other[name] / second) for name in one | other)
