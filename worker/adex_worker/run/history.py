"""Which tokens a sequence has had, for the penalties: only sequences that have one keep this."""

import numpy as np

from adex_worker.run.arrays import IntArray


class TokenHistory:
    """The distinct tokens of one sequence, and how often each was generated.

    Sparse, because a sequence has seen a few hundred of a hundred thousand tokens, and a penalty
    touches only those.
    """

    __slots__ = ("_counts", "_ids", "_index", "_size")

    def __init__(self, token_ids: IntArray, output_start: int) -> None:
        """`token_ids` from `output_start` on were generated, those before are the prompt's."""
        distinct = np.unique(token_ids)
        self._size = len(distinct)
        self._ids: IntArray = np.zeros(self._size + 64, np.int64)
        self._counts: IntArray = np.zeros(self._size + 64, np.int64)
        self._ids[: self._size] = distinct
        self._index = {token: index for index, token in enumerate(distinct.tolist())}
        generated, counts = np.unique(token_ids[output_start:], return_counts=True)
        self._counts[np.searchsorted(distinct, generated)] = counts

    @property
    def ids(self) -> IntArray:
        """[distinct], each token of the prompt and the output once."""
        return self._ids[: self._size]

    @property
    def counts(self) -> IntArray:
        """[distinct], how often each of `ids` was generated; 0 for those of the prompt alone."""
        return self._counts[: self._size]

    def add(self, token_id: int) -> None:
        """One more token was generated."""
        index = self._index.get(token_id)
        if index is None:
            index = self._index[token_id] = self._size
            if index == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[index] = token_id
            self._size += 1
        self._counts[index] += 1
