"""Coefficients of a machine from what was measured on it: least errors, none of them negative.

Errors count without being squared, so that a step some other process disturbed bends nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adex_scheduler.simulate.machine import LinkCost, StepCost

Floats = npt.NDArray[np.float64]

_REWEIGHTED = 20
# Errors below this are as good as none.
_ERROR_MIN = 1e-4


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """What one step had to do, and how long it took."""

    tokens: int
    sequences: int
    kv_tokens: int
    adapters: int
    adapter_bytes: float
    seconds: float


def fit_step(measured: Sequence[MeasuredStep]) -> StepCost:
    """The step model whose mean relative error is least.

    The knee, where multiplying tokens outweighs reading the weights, makes the model bend; each
    number of tokens that was measured is tried for it.
    """
    best: tuple[float, StepCost] | None = None
    for knee in sorted({one.tokens for one in measured}):
        columns = [
            (
                1.0,
                float(max(one.tokens, knee)),
                float(one.sequences),
                float(one.kv_tokens),
                float(one.adapters > 0),
                one.adapter_bytes,
            )
            for one in measured
        ]
        fixed, token, sequence, kv, adapter_fixed, adapter_byte = _least_errors(
            columns, [one.seconds for one in measured]
        )
        cost = StepCost(fixed, token * knee, token, sequence, kv, adapter_fixed, adapter_byte)
        error = mean_error(cost, measured)
        if best is None or error < best[0]:
            best = error, cost
    assert best is not None, "nothing was measured"
    return best[1]


def fit_link(measured: Sequence[tuple[float, float]]) -> LinkCost:
    """A link's cost from (bytes, seconds) of single transfers."""
    columns = [(1.0, size) for size, _ in measured]
    fixed, per_byte = _least_errors(columns, [seconds for _, seconds in measured])
    return LinkCost(fixed, 1 / max(per_byte, 1e-15))


def mean_error(cost: StepCost, measured: Sequence[MeasuredStep]) -> float:
    """The mean of the model's relative errors, without sign (MAPE); 0.1 is ten percent."""
    errors = [abs(error) for error in _relative_errors(cost, measured)]
    return sum(errors) / len(errors)


def _relative_errors(cost: StepCost, measured: Sequence[MeasuredStep]) -> list[float]:
    return [
        cost.seconds(
            tokens=one.tokens,
            sequences=one.sequences,
            kv_tokens=one.kv_tokens,
            adapters=one.adapters,
            adapter_bytes=one.adapter_bytes,
        )
        / one.seconds
        - 1
        for one in measured
    ]


def _least_errors(rows: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
    """Weights of the columns, none negative, whose relative errors are least, added up.

    Least squares over and over, each error weighed by the one it had before.
    """
    target = np.array(values)
    matrix = np.array(rows) / target[:, None]
    scale = np.maximum(np.abs(matrix).max(axis=0), 1e-300)
    matrix /= scale
    counts = np.ones(len(target))
    found = np.zeros(matrix.shape[1])
    for _ in range(_REWEIGHTED):
        found = _least_squares(matrix * counts[:, None], counts)
        counts = 1 / np.sqrt(np.maximum(np.abs(matrix @ found - 1), _ERROR_MIN))
    return [float(weight) for weight in found / scale]


def _least_squares(matrix: Floats, target: Floats) -> Floats:
    """Where a weight comes out negative its column is left out, the most negative first."""
    found = np.zeros(matrix.shape[1])
    kept = list(range(len(found)))
    while kept:
        weights = np.linalg.lstsq(matrix[:, kept], target, rcond=None)[0]
        if (weights >= 0).all():
            found[kept] = weights
            break
        del kept[int(np.argmin(weights))]
    return found
