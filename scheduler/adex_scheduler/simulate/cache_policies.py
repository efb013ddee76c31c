"""Which adapter a cache gives up: the known policies, as scores over the whole catalogue.

A score says what keeping each adapter is worth now; the least worth resident one leaves, the one
just loaded among them. With at most some ten thousand adapters exact statistics for each are cheap,
so nothing here needs a sketch. These are models of published policies, not their code.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class CachePolicy(ABC):
    """Statistics of every adapter, and what they say of each one's worth."""

    def __init__(self, sizes: Floats, costs: Floats) -> None:
        self.sizes, self.costs = sizes, costs
        self.count = len(sizes)

    @abstractmethod
    def use(self, index: int, now: float, position: int) -> None:
        """The adapter is asked for, by request number `position`."""

    @abstractmethod
    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        """Of each adapter, by index; only those of residents matter."""

    def note_eviction(self, index: int) -> None:
        """The adapter has left; most policies do not care."""
        return


class LastUse(CachePolicy):
    """LRU: the least recently used leaves. With `depth` k, LRU-k: by the k-th last use."""

    def __init__(self, sizes: Floats, costs: Floats, depth: int = 1) -> None:
        super().__init__(sizes, costs)
        # Those used less than `depth` times leave first, among them the least recently used.
        self._last = np.full((depth, self.count), -1e12)

    def use(self, index: int, now: float, position: int) -> None:
        self._last[1:, index] = self._last[:-1, index]
        self._last[0, index] = position

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        worth: Floats = self._last[-1] + 1e-6 * self._last[0]
        return worth


class UseCount(CachePolicy):
    """LFU over all time: the least often used leaves; of equals the least recently used."""

    def __init__(self, sizes: Floats, costs: Floats) -> None:
        super().__init__(sizes, costs)
        self._uses = np.zeros(self.count)
        self._last = np.zeros(self.count)

    def use(self, index: int, now: float, position: int) -> None:
        self._uses[index] += 1
        self._last[index] = position

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        return self._uses + 1e-9 * self._last


class GreedyDualSize(CachePolicy):
    """GDSF: uses times cost per byte, over an age that rises to each victim's worth."""

    def __init__(self, sizes: Floats, costs: Floats) -> None:
        super().__init__(sizes, costs)
        self._uses = np.zeros(self.count)
        self._worth = np.zeros(self.count)
        self._age = 0.0

    def use(self, index: int, now: float, position: int) -> None:
        self._uses[index] += 1
        density = self.costs[index] / self.sizes[index]
        self._worth[index] = self._age + self._uses[index] * density

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        return self._worth

    def note_eviction(self, index: int) -> None:
        """From now on the age is what the victim was worth."""
        self._age = float(self._worth[index])


class ChameleonScore(CachePolicy):
    """0.45 frequency + 0.10 recency + 0.45 size, each as its percentile among residents.

    Frequency counts the last `window` requests. After Chameleon (MICRO 2025), whose normalisation
    by the maximum does worse.
    """

    def __init__(self, sizes: Floats, costs: Floats, window: int = 4096) -> None:
        super().__init__(sizes, costs)
        self._uses = np.zeros(self.count)
        self._last = np.full(self.count, -1.0)
        self._recent = np.full(window, -1, dtype=np.int64)

    def use(self, index: int, now: float, position: int) -> None:
        place = position % len(self._recent)
        if self._recent[place] >= 0:
            self._uses[self._recent[place]] -= 1
        self._recent[place] = index
        self._uses[index] += 1
        self._last[index] = position

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        inside = np.flatnonzero(resident)
        worth = np.zeros(self.count)
        for values, weight in ((self._uses, 0.45), (self._last, 0.10), (self.sizes, 0.45)):
            _, places, counts = np.unique(values[inside], return_inverse=True, return_counts=True)
            below = np.cumsum(counts) - counts
            worth[inside] += weight * below[places] / max(len(inside) - 1, 1)
        return worth


class FastLibra(CachePolicy):
    """Cost times visits times 1 - sigmoid(seconds since the last use). After arXiv:2505.03756.

    The sigmoid's unit is not stated there; taken as seconds it is all but a rule of recency.
    """

    def __init__(self, sizes: Floats, costs: Floats) -> None:
        super().__init__(sizes, costs)
        self._uses = np.zeros(self.count)
        self._last = np.zeros(self.count)

    def use(self, index: int, now: float, position: int) -> None:
        self._uses[index] += 1
        self._last[index] = now

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        # The logarithm of the product: e**-1000 is zero, and all zeros have no order.
        age = now - self._last
        return np.log(self.costs * np.maximum(self._uses, 1)) - np.logaddexp(0.0, age)


class FarthestUse(CachePolicy):
    """Belady's rule weighed by size: the largest (time to next use) x size / cost leaves.

    `next_use` has, for each position of the trace, the position at which its adapter is asked for
    again.
    """

    def __init__(self, sizes: Floats, costs: Floats, next_use: Ints) -> None:
        super().__init__(sizes, costs)
        self._next_use = next_use
        self._next = np.full(self.count, np.inf)
        self._weight = sizes / costs

    def use(self, index: int, now: float, position: int) -> None:
        self._next[index] = self._next_use[position]

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        return -(self._next - position) * self._weight


class LearnedMixture(CachePolicy):
    """Chance of the next request, by counts that decay at several paces, times cost per byte.

    The exact form of what the core approximates: every adapter is valued anew at each eviction. The
    weight of each pace moves towards those that expected what was asked for. With `queue`, the
    trace's uses and a number, so many next requests are known, and of those the latest leaves
    first, after all that are not among them.
    """

    def __init__(
        self,
        sizes: Floats,
        costs: Floats,
        paces_s: tuple[float, ...] = (5.0, 20.0, 80.0, 320.0, 1e12),
        learning_rate: float = 0.01,
        queue: tuple[Ints, int] | None = None,
    ) -> None:
        super().__init__(sizes, costs)
        self._paces = np.array(paces_s)
        self._rate = learning_rate
        self._queue = queue
        # Counts are kept larger by `growth` instead of being decayed each time.
        self._counts = np.zeros((len(paces_s), self.count))
        self._sums = np.zeros(len(paces_s))
        self._growth = np.ones(len(paces_s))
        self._now = 0.0
        self.weights = np.full(len(paces_s) + 1, 1.0 / (len(paces_s) + 1))

    def use(self, index: int, now: float, position: int) -> None:
        self._growth *= np.exp((now - self._now) / self._paces)
        self._now = now
        if self._growth.max() > 1e100:
            self._counts /= self._growth[:, None]
            self._sums /= self._growth
            self._growth[:] = 1.0
        expected = self._counts[:, index] / np.maximum(self._sums, 1e-300)
        moved = self.weights * np.append(expected, 1 / self.count)
        self.weights += self._rate * (moved / moved.sum() - self.weights)
        self._counts[:, index] += self._growth
        self._sums += self._growth

    def worth(self, resident: Bools, now: float, position: int) -> Floats:
        shares = self.weights[:-1] / np.maximum(self._sums, 1e-300)
        chance: Floats = shares @ self._counts + self.weights[-1] / self.count
        worth = chance * self.costs / self.sizes
        if self._queue is not None:
            uses, window = self._queue
            known, first = np.unique(uses[position + 1 : position + 1 + window], return_index=True)
            worth[known] = 1e9 - first
        return worth
