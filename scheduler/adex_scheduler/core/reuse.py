"""How often each adapter will be asked for: a mixture of decayed counts whose weights are learned.

A count that forgets within seconds foresees sessions, one that never forgets foresees a fixed
popularity, and which of them is right differs between workloads and over a day. So each adapter has
one count per time constant, and every request moves the weights a little towards the counts that
expected it. Counts are kept of every adapter, resident or not: the catalogue is small beside one
adapter's bytes, so nothing here is a sketch.
"""

import math
from collections import OrderedDict

TIME_CONSTANTS_S = (5.0, 20.0, 80.0, 320.0)
"""How fast the counts decay; one more never does, and one component expects all adapters alike."""

# The share of the weights that each request moves, and the least weight of any component: one
# without any would never be listened to again.
_LEARNING_RATE = 0.01
_WEIGHT_MIN = 1e-3

# Of all requests per second; the count with this time constant says how many.
_RATE_INDEX = TIME_CONSTANTS_S.index(80.0)

_FINITE = len(TIME_CONSTANTS_S)
_COUNTS = _FINITE + 1
_LONGEST_FIRST = tuple(range(_FINITE - 1, -1, -1))


class ReuseRates:
    """Requests per second that each digest may expect. `note` and `rate` cost the same for any N.

    At most `known_max` digests are remembered; the longest unused are forgotten first.
    """

    __slots__ = ("_counts", "_first_at", "_known_max", "_summed_at", "_sums", "weights")

    def __init__(self, known_max: int) -> None:
        self._known_max = known_max
        # By digest: when its counts were last decayed, and the counts then.
        self._counts: OrderedDict[str, tuple[float, tuple[float, ...]]] = OrderedDict()
        self._sums: tuple[float, ...] = (0.0,) * _COUNTS
        self._summed_at = self._first_at = 0.0
        # One per count, and the last for the component that expects all alike.
        self.weights: list[float] = [1.0 / (_COUNTS + 1)] * (_COUNTS + 1)

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, digest: str, now: float) -> None:
        """The adapter has been asked for. `now` never goes back."""
        sums = _decayed(self._sums, now - self._summed_at)
        at, counts = self._counts.pop(digest, (now, (0.0,) * _COUNTS))
        counts = _decayed(counts, now - at)
        if sums[-1] == 0.0:
            self._first_at = now
        else:
            self._learn(sums, counts)
        self._counts[digest] = now, tuple([count + 1.0 for count in counts])
        self._sums, self._summed_at = tuple([total + 1.0 for total in sums]), now
        if len(self._counts) > self._known_max:
            _, (at, forgotten) = self._counts.popitem(last=False)
            forgotten = _decayed(forgotten, now - at)
            pairs = zip(self._sums, forgotten, strict=True)
            self._sums = tuple([max(total - count, 0.0) for total, count in pairs])

    def rate(self, digest: str, now: float) -> float:
        """Requests per second for the adapter, as far as can be told now."""
        return self.total(now) * self.share(digest)

    def share(self, digest: str) -> float:
        """The chance that the next request is for the adapter; over all known they add up to 1.

        Between two requests for it the share only falls, but for what the weights learn.
        """
        weights, sums = self.weights, self._sums
        share = weights[-1] / max(len(self._counts), 1)
        known = self._counts.get(digest)
        if known is None:
            return share
        # Count and sum decay alike, so only the time between their last updates matters.
        at, counts = known
        share += weights[_FINITE] * counts[_FINITE] / sums[_FINITE]
        # Each time constant is a quarter of the one after it, so its decay is the fourth power.
        decay = math.exp((at - self._summed_at) / TIME_CONSTANTS_S[-1])
        for index in _LONGEST_FIRST:
            share += weights[index] * counts[index] * decay / sums[index]
            decay *= decay
            decay *= decay
        return share

    def total(self, now: float) -> float:
        """Requests per second for all adapters together."""
        constant = TIME_CONSTANTS_S[_RATE_INDEX]
        observed = -math.expm1(-max(now - self._first_at, 1.0) / constant)
        decay = math.exp(-(now - self._summed_at) / constant)
        return self._sums[_RATE_INDEX] * decay / (constant * observed)

    def _learn(self, sums: tuple[float, ...], counts: tuple[float, ...]) -> None:
        """Move the weights towards the components that expected this request."""
        weights = self.weights
        expected = [
            weight * count / total
            for weight, count, total in zip(weights, counts, sums, strict=False)
        ]
        expected.append(weights[-1] / max(len(self._counts), 1))
        moved = _LEARNING_RATE / sum(expected)
        kept = 1.0 - _LEARNING_RATE
        learned = [
            max(kept * weight + moved * part, _WEIGHT_MIN)
            for weight, part in zip(weights, expected, strict=True)
        ]
        whole = sum(learned)
        self.weights = [weight / whole for weight in learned]


def _decayed(counts: tuple[float, ...], elapsed: float) -> tuple[float, ...]:
    """The counts `elapsed` seconds later; the last one never decays."""
    if elapsed == 0.0:
        return counts
    finite = [
        count * math.exp(-elapsed / constant)
        for count, constant in zip(counts, TIME_CONSTANTS_S, strict=False)
    ]
    return (*finite, counts[-1])
