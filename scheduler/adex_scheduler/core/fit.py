"""A cost learned from what it has been: a fixed part and a part per unit, the latest counting most.

Least squares over decaying observations, with a little of what was assumed before there were any.
Neither part is ever negative, and one observation far above all others counts as one that is not.
"""

from dataclasses import dataclass, field

# How much an observation counts beside the one after it, and how little the assumption does.
DECAY = 0.97
_PRIOR_WEIGHT = 0.05
# An observation this many times more than expected counts as one that is: things hang at times.
OUTLIER = 8.0


@dataclass(slots=True)
class CostFit:
    """Seconds for a number of units: `fixed_s` + units * `s_per_unit`.

    `typical` are a small and a large number of units, at which the assumption is taken for seen.
    """

    fixed_s: float
    s_per_unit: float
    typical: tuple[float, float]
    _assumed: tuple[float, float] = (0.0, 0.0)
    # Decayed sums over observations: of 1, units, units squared, seconds, units times seconds.
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def __post_init__(self) -> None:
        small, large = self.typical
        self._assumed = self.seconds(small), self.seconds(large)

    def seconds(self, units: float) -> float:
        """What so many units take."""
        return self.fixed_s + units * self.s_per_unit

    @property
    def mean_s(self) -> float:
        """What one has taken of late; as assumed where none has been seen."""
        count, seconds = self._sums[0], self._sums[3]
        return seconds / count if count else self._assumed[1]

    def observe(self, units: float, seconds: float) -> None:
        """So many units have taken so long."""
        seconds = min(seconds, OUTLIER * self.seconds(units))
        terms = (1.0, units, units * units, seconds, units * seconds)
        self._sums = [DECAY * total + term for total, term in zip(self._sums, terms, strict=True)]
        n, x, xx, y, xy = self._sums
        for size, expected in zip(self.typical, self._assumed, strict=True):
            n += _PRIOR_WEIGHT
            x += _PRIOR_WEIGHT * size
            xx += _PRIOR_WEIGHT * size * size
            y += _PRIOR_WEIGHT * expected
            xy += _PRIOR_WEIGHT * size * expected
        slope = (n * xy - x * y) / (n * xx - x * x)
        if slope <= 0.0:
            # Nothing tells size from chance: all of it is fixed, and a unit costs next to nothing.
            slope = 0.01 * y / x
        fixed = (y - slope * x) / n
        if fixed < 0.0:
            fixed, slope = 0.0, xy / xx
        self.fixed_s, self.s_per_unit = fixed, slope
