"""top-k, top-p, min-p and typical-p, in that order, as transformers' logits warpers define them.

A filter keeps a few of very many tokens, so the candidates are first the most probable ones of
each row. A row whose filters may keep more than those is done again over more of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# How many candidates are looked at, in turn, before the whole vocabulary.
WIDTHS = (1024, 16384)


@dataclass(slots=True)
class FilterColumns:
    """One value per row, [rows, 1] each: `top_k` int64 (0: none), the others float32."""

    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    typical_p: Tensor

    def at(self, rows: Tensor) -> "FilterColumns":
        return FilterColumns(
            self.top_k[rows], self.top_p[rows], self.min_p[rows], self.typical_p[rows]
        )


def candidates(scores: Tensor, filters: FilterColumns, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens that the filters leave.

    Args:
        scores: [rows, vocabulary] float32 logits, after temperature.
        width: how many of the most probable tokens are looked at.
    Returns: scores [rows, width], most probable first and -inf where filtered; their token ids
        [rows, width]; and [rows] bool, whether no token beyond `width` could have been left.
    """
    width = min(width, scores.shape[1])
    values, token_ids = scores.topk(width, dim=1)
    by_count = filters.top_k > 0
    # A token as probable as the k-th is kept with it.
    last = filters.top_k.clamp(1, width) - 1
    # Forbidden tokens are none of the k, however few others there are.
    kept = (values > float("-inf")) & (~by_count | (values >= values.gather(1, last)))
    bounded = ~by_count | ~kept[:, -1:]
    # Without a top-k, a token's probability is its share of the whole row, however wide we look.
    by_count_total = values.masked_fill(~kept, float("-inf")).logsumexp(1, keepdim=True)
    total = torch.where(by_count, by_count_total, scores.logsumexp(1, keepdim=True))
    probabilities = (values - total).exp_()
    above = probabilities.cumsum(1).sub_(probabilities)
    within = (filters.top_p >= 1) | (above < filters.top_p)
    # Here too a token as probable as the last is kept with it, whichever `topk` put first.
    least = values.masked_fill(~within, float("inf")).amin(1, keepdim=True)
    kept &= values >= torch.minimum(least, values[:, :1])
    # One part in min_p of the most probable token; the logarithm of 0 keeps everything.
    kept &= values >= values[:, :1] + filters.min_p.log()
    complete = bounded & ~kept[:, -1:] if width < scores.shape[1] else torch.ones_like(bounded)
    values = values.masked_fill(~kept, float("-inf"))
    if bool((filters.typical_p < 1).any()):
        values = _typical(values, filters.typical_p)
    return values, token_ids, complete.squeeze(1)


def _typical(values: Tensor, mass: Tensor) -> Tensor:
    """Keep the tokens whose information is nearest the row's entropy, up to `mass` [rows, 1].

    Source: Meister et al. 2022, arXiv:2202.00666.
    """
    log_p = values.log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).nansum(1, keepdim=True)
    distance = (-log_p - entropy).abs()
    nearest, order = distance.sort(dim=1, stable=True)
    reached = p.gather(1, order).cumsum(1)
    last = (reached < mass).sum(1, keepdim=True).clamp_(max=values.shape[1] - 1)
    dropped = (distance > nearest.gather(1, last)) & (mass < 1)
    return values.masked_fill(dropped, float("-inf"))
