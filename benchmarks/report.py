"""Rounds to a Markdown table and a plot."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from load import Timings


@dataclass(slots=True)
class Cell:
    """All rounds of one system at one (streams, distinct adapters)."""

    rounds: list[Timings] = field(default_factory=list)

    def rate(self) -> float:
        """Output tokens per second, the median of the rounds."""
        rates = [r.tokens / r.wall_s for r in self.rounds if r.wall_s > 0]
        return statistics.median(rates) if rates else float("nan")

    def first_ms(self, quantile: float) -> float:
        return quantile_ms([t for r in self.rounds for t in r.first_s], quantile)

    def gap_ms(self, quantile: float) -> float:
        return quantile_ms([t for r in self.rounds for t in r.gaps_s], quantile)

    def failures(self) -> list[str]:
        return [f for r in self.rounds for f in r.failures]


Key = tuple[int, int]


def quantile_ms(values: list[float], quantile: float) -> float:
    """The quantile of times in seconds, as milliseconds; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def table(ours: dict[Key, Cell], peft: dict[Key, Cell]) -> str:
    """One row per (streams, distinct adapters); times are milliseconds."""
    heading = (
        "| streams / adapters | Adex tok/s | PEFT tok/s | ratio | of own base | "
        "TTFT p50 / p99 ms | PEFT TTFT ms | inter-token p50 / p99 ms | PEFT inter-token ms |"
    )
    lines = [heading, "|---|---|---|---|---|---|---|---|---|"]
    for (streams, adapters), cell in sorted(ours.items()):
        other = peft.get((streams, adapters), Cell())
        base = ours.get((streams, 0))
        of_base = f"{100 * cell.rate() / base.rate():.0f} %" if base else "-"
        lines.append(
            f"| {streams} / {adapters} | {cell.rate():.1f} | {other.rate():.1f} | "
            f"{cell.rate() / other.rate():.2f}x | {of_base} | "
            f"{cell.first_ms(0.5):.0f} / {cell.first_ms(0.99):.0f} | {other.first_ms(0.5):.0f} | "
            f"{cell.gap_ms(0.5):.1f} / {cell.gap_ms(0.99):.1f} | {other.gap_ms(0.5):.1f} |"
        )
    return "\n".join(lines)


def plot(ours: dict[Key, Cell], peft: dict[Key, Cell], path: Path) -> None:
    """Output tokens per second against distinct adapters, one pair of lines per stream count."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for color, streams in enumerate(sorted({s for s, _ in ours})):
        counts = sorted(a for s, a in ours if s == streams)
        positions = [_position(a) for a in counts]
        axes.plot(
            positions,
            [ours[streams, a].rate() for a in counts],
            marker="o",
            color=f"C{color}",
            label=f"Adex, streams: {streams}",
        )
        axes.plot(
            positions,
            [peft.get((streams, a), Cell()).rate() for a in counts],
            marker="x",
            linestyle="--",
            color=f"C{color}",
            label=f"PEFT, streams: {streams}",
        )
    ticks = sorted({a for _, a in ours})
    axes.set_xticks([_position(a) for a in ticks], [str(a) for a in ticks])
    axes.set_xlabel("distinct adapters (0: base model)")
    axes.set_ylabel("output tokens per second")
    axes.set_yscale("log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.set_title("Serving 88 M parameters: Adex beside transformers + PEFT")
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _position(adapters: int) -> float:
    return 0.0 if adapters == 0 else 1.0 + adapters.bit_length()
