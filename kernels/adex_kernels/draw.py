"""Draw one token for each row: from all tokens, or from what the row's filters leave.

In plain torch, which looks at a few tokens first and again where those were too few; that asks the
device.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adex_kernels.batch import uploaded
from adex_kernels.filters import WIDTHS, FilterColumns, candidates
from adex_kernels.noise import TAIL, race, spread

# Drawing keeps several numbers for each token of each row; this many at once bounds the memory.
_ELEMENTS_AT_ONCE = 1 << 21
# Tokens that run on their own in a draw from all of them, where there are more than `WHOLE_MAX`.
HEAD = 1024
WHOLE_MAX = 4 * HEAD


@dataclass(frozen=True, slots=True)
class DrawnRows:
    """The rows of a step that are drawn, in host memory, [drawn] each.

    `rows` are int64 indexes into the step's logits, `keys` int32 from `noise.draw_keys`; the others
    are float32, but `top_k` int64, where 0 is none.
    """

    rows: NDArray[np.int64]
    keys: NDArray[np.int32]
    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    min_p: NDArray[np.float32]
    typical_p: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def filtered(self) -> NDArray[np.bool_]:
        """[drawn], whether any filter is at work on the row."""
        some = (self.top_k > 0) | (self.top_p < 1) | (self.min_p > 0)
        return some | (self.typical_p < 1)

    def at(self, index: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "DrawnRows":
        return DrawnRows(*(getattr(self, field.name)[index] for field in fields(self)))


def draw_(chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None:
    """As `dispatch.draw_`."""
    # Rows with a number that is none would spoil nothing but themselves; they just need a token.
    logits.masked_fill_(~finite.unsqueeze(1), 0.0)
    at_once = max(1, _ELEMENTS_AT_ONCE // logits.shape[1])
    filtered = drawn.filtered
    for kind, draw in ((drawn.at(~filtered), _draw_all), (drawn.at(filtered), _draw_filtered)):
        for start in range(0, len(kind), at_once):
            part = kind.at(slice(start, start + at_once))
            where = _upload(part.rows, logits)
            keys = _upload(part.keys, logits)
            chosen[where] = draw(_tempered(logits[where], part), keys, part)


def _draw_all(scores: Tensor, keys: Tensor, drawn: DrawnRows) -> Tensor:
    """[drawn] int64, from all tokens.

    The most probable tokens run on their own and all others as one, with their joint probability.
    Only where those others win, which is seldom, do they run against each other.
    """
    if scores.shape[1] <= WHOLE_MAX:
        return race(scores, _every(scores), keys)[1]
    values, token_ids = scores.topk(HEAD, dim=1, sorted=False)
    least = values.amin(1, keepdim=True)
    # Tokens as probable as the last are all among the others, whichever `topk` took.
    values.masked_fill_(values == least, float("-inf"))
    won, column = race(values, spread(token_ids), keys)
    chosen = token_ids.gather(1, column.unsqueeze(1)).squeeze(1)
    # In float64, so that what is left of the whole is not lost in the rounding of the whole.
    tail = scores.exp().sum(1, dtype=torch.float64) - values.exp_().sum(1, dtype=torch.float64)
    # Where all others are forbidden, what rounding leaves of them must not win.
    tail.masked_fill_(least.squeeze(1) == float("-inf"), 0.0)
    alone = spread(torch.full((1, 1), TAIL, device=scores.device))
    tail_won, _ = race(tail.clamp_(min=0).log_().float().unsqueeze(1), alone, keys)
    behind = (tail_won > won).nonzero().squeeze(1)
    if len(behind):
        others = scores[behind]
        others.masked_fill_(others > least[behind], float("-inf"))
        chosen[behind] = race(others, _every(others), keys[behind])[1]
    return chosen


def _draw_filtered(scores: Tensor, keys: Tensor, drawn: DrawnRows) -> Tensor:
    """[drawn] int64, from what each row's filters leave."""
    reals = _upload(np.stack((drawn.top_p, drawn.min_p, drawn.typical_p)), scores).unsqueeze(2)
    filters = FilterColumns(_upload(drawn.top_k, scores).unsqueeze(1), *reals)
    chosen = torch.zeros(len(drawn), dtype=torch.int64, device=scores.device)
    left = torch.arange(len(drawn), device=scores.device)
    for width in (*WIDTHS, scores.shape[1]):
        values, token_ids, complete = candidates(scores, filters, width)
        _, column = race(values, spread(token_ids), keys)
        # A row that is not complete is drawn again, from more candidates.
        chosen[left] = token_ids.gather(1, column.unsqueeze(1)).squeeze(1)
        again = (~complete).nonzero().squeeze(1)
        if not len(again):
            break
        scores, keys, filters, left = scores[again], keys[again], filters.at(again), left[again]
    return chosen


def _every(scores: Tensor) -> Tensor:
    """[1, vocabulary]: each column is its own token."""
    return spread(torch.arange(scores.shape[1], device=scores.device)).unsqueeze(0)


def _tempered(scores: Tensor, drawn: DrawnRows) -> Tensor:
    """Logits over temperature, in place, the greatest at 0 so that none overflows."""
    scores -= scores.amax(1, keepdim=True)
    scores /= _upload(drawn.temperature, scores).unsqueeze(1)
    return scores


def _upload(column: NDArray[np.generic], beside: Tensor) -> Tensor:
    return uploaded(torch.from_numpy(column), beside.device)
