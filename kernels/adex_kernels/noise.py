"""Chance without state: a uniform number for every (seed, output position, token).

A token is drawn as the winner of an exponential race: of all tokens that may be drawn, the one with
the least E[token] / p[token], where E[token] is an exponential variate hashed from the seed, the
position and the token. The winner is token t with probability p[t], as with the inverse transform
of one uniform. But rounding moves every logit a little between a sequence alone and the same
sequence in a batch, and then the race changes its winner only when its first two runners are that
close, while the inverse transform changes its token whenever a boundary of the cumulative sum moves
across the uniform, and there are as many boundaries as tokens.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

UintArray = NDArray[np.uint64]

# Odd constants of splitmix64 (Steele, Lea and Flood 2014) and of murmur3's 32-bit finaliser.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_SPREAD = 0x9E3779B1 - 2**32
_FINAL_A = 0x85EBCA6B - 2**32
_FINAL_B = 0xC2B2AE35 - 2**32

# The token that stands for all tokens beyond the candidates.
TAIL = -1


def draw_keys(seeds: UintArray, positions: NDArray[np.int64]) -> NDArray[np.int32]:
    """[rows] int32: hashed from each seed [rows] and output position [rows]."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(seeds ^ _splitmix(positions.astype(np.uint64)))
    return (mixed >> np.uint64(32)).astype(np.uint32).view(np.int32)


def spread(token_ids: Tensor) -> Tensor:
    """Token ids as int32 of which neighbours differ in half of their bits; TAIL has its own."""
    return _finalise_((token_ids.to(torch.int32) + 1) * _SPREAD)


def log_exponentials(keys: Tensor, spread_ids: Tensor) -> Tensor:
    """Logarithms of standard exponential variates, one for each key and token.

    Args:
        keys: [rows] int32 from `draw_keys`.
        spread_ids: [rows, tokens] or [1, tokens] int32 from `spread`.
    Returns: [rows, tokens] float32; +inf once in 2**25, where the token then cannot win.
    """
    bits = _finalise_(spread_ids ^ keys.unsqueeze(1))
    # The middles of 2**31 equal cells of (0, 1). A winner's variate is small, and there both the
    # cells and float32 are finest: hence log(1 - u) and not log(u).
    uniforms = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    return uniforms.neg_().log1p_().neg_().log_()


def race(scores: Tensor, spread_ids: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Draw one token for each row.

    Args:
        scores: [rows, tokens] float32 logits, -inf where a token may not be drawn.
        spread_ids: [rows, tokens] or [1, tokens] int32 from `spread`, what each column stands for.
        keys: [rows] int32 from `draw_keys`.
    Returns: [rows] float32, by how much each winner ran, and [rows] int64, the winning column.
    """
    won, column = log_exponentials(keys, spread_ids).neg_().add_(scores).max(1)
    return won, column


def _splitmix(state: UintArray) -> UintArray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_A
    state = (state ^ (state >> np.uint64(27))) * _MIX_B
    return state ^ (state >> np.uint64(31))


def _finalise_(bits: Tensor) -> Tensor:
    """Mix int32 in place. torch shifts the sign in, so each shift is followed by a mask."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _FINAL_A
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= _FINAL_B
    bits ^= (bits >> 16) & 0xFFFF
    return bits
