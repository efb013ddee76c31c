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


class ReuseRates:
    """Requests per second that each digest may expect. `note` and `rate` cost the same for any N.

    At most `known_max` digests are remembered; the longest unused are forgotten first.
    """

    __slots__ = (
        "_alike",
        "_counts",
        "_first_at",
        "_known_max",
        "_parts",
        "_summed_at",
        "_sums",
        "_weights",
    )

    def __init__(self, known_max: int) -> None:
        self._known_max = known_max
        # By digest: when its counts were last decayed, and the counts then.
        self._counts: OrderedDict[str, tuple[float, tuple[float, ...]]] = OrderedDict()
        self._sums: tuple[float, ...] = (0.0,) * _COUNTS
        self._summed_at = self._first_at = 0.0
        # One per count, and the last for the component that expects all alike.
        self.weights = [1.0 / (_COUNTS + 1)] * (_COUNTS + 1)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def weights(self) -> list[float]:
        """What each component counts for; they add up to 1."""
        return self._weights

    @weights.setter
    def weights(self, weights: list[float]) -> None:
        self._weights = weights
        self._reckon()

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
        self._reckon()

    def rate(self, digest: str, now: float) -> float:
        """Requests per second for the adapter, as far as can be told now."""
        return self.total(now) * self.share(digest)

    def share(self, digest: str) -> float:
        """The chance that the next request is for the adapter; over all known they add up to 1.

        Between two requests for it the share only falls, but for what the weights learn.
        """
        known = self._counts.get(digest)
        if known is None:
            return self._alike
        # Count and sum decay alike, so only the time between their last updates matters. Each time
        # constant is a quarter of the one after it, so its decay is the fourth power. Written out:
        # whoever looks for the least valued copies asks this of dozens.
        at, (count_0, count_1, count_2, count_3, ever) = known
        part_0, part_1, part_2, part_3, part_ever = self._parts
        decay_3 = math.exp((at - self._summed_at) / TIME_CONSTANTS_S[-1])
        decay_2 = decay_3 * decay_3 * decay_3 * decay_3
        decay_1 = decay_2 * decay_2 * decay_2 * decay_2
        decay_0 = decay_1 * decay_1 * decay_1 * decay_1
        return (
            self._alike
            + part_ever * ever
            + part_3 * count_3 * decay_3
            + part_2 * count_2 * decay_2
            + part_1 * count_1 * decay_1
            + part_0 * count_0 * decay_0
        )

    def total(self, now: float) -> float:
        """Requests per second for all adapters together."""
        constant = TIME_CONSTANTS_S[_RATE_INDEX]
        observed = -math.expm1(-max(now - self._first_at, 1.0) / constant)
        decay = math.exp(-(now - self._summed_at) / constant)
        return self._sums[_RATE_INDEX] * decay / (constant * observed)

    def _reckon(self) -> None:
        """What one of each count adds to a share, and what every share has."""
        pairs = zip(self._weights, self._sums, strict=False)
        self._parts = tuple([weight / total if total else 0.0 for weight, total in pairs])
        self._alike = self._weights[-1] / max(len(self._counts), 1)

    def _learn(self, sums: tuple[float, ...], counts: tuple[float, ...]) -> None:
        """Move the weights towards the components that expected this request."""
        weights = self.weights
        # After hours without a request the short counts are 0 to the last bit, and their sums too.
        expected = [
            weight * count / total if total else 0.0
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
        self._weights = [weight / whole for weight in learned]


def _decayed(counts: tuple[float, ...], elapsed: float) -> tuple[float, ...]:
    """The counts `elapsed` seconds later; the last one never decays."""
    if elapsed == 0.0:
        return counts
    finite = [
        count * math.exp(-elapsed / constant)
        for count, constant in zip(counts, TIME_CONSTANTS_S, strict=False)
    ]
    return (*finite, counts[-1])
