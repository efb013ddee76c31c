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
from torch import Tensor

from adex_worker.run.arrays import IntArray, UintArray

# Odd constants of splitmix64 (Steele, Lea and Flood 2014) and of murmur3's 32-bit finaliser.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)
_FINAL_A = 0x85EBCA6B
_FINAL_B = 0xC2B2AE35
_LOW_32 = 0xFFFFFFFF


def draw_keys(seeds: UintArray, positions: IntArray) -> IntArray:
    """[rows] int64: 32 bits hashed from each seed [rows] and output position [rows]."""
    with np.errstate(over="ignore"):
        mixed = _splitmix(seeds ^ _splitmix(positions.astype(np.uint64)))
    keys: IntArray = (mixed >> np.uint64(32)).astype(np.int64)
    return keys


def exponentials(keys: Tensor, token_ids: Tensor) -> Tensor:
    """Standard exponential variates, one for each key and token.

    Args:
        keys: [rows, 1] int64 from `draw_keys`.
        token_ids: [rows, tokens] or [1, tokens] int64.
    Returns: [rows, tokens] float32, each above 0.
    """
    # The tokens are spread first, so that neighbouring ones differ in half of their bits before
    # the key is mixed in. int64 throughout: torch has no full set of unsigned operations.
    bits = _finalise((token_ids + 1) * 0x9E3779B1 & _LOW_32)
    bits = _finalise(bits ^ keys)
    # The middles of 2**32 equal cells of (0, 1), so that the logarithm is finite; in float64, since
    # a float32 would round the topmost cells to 1 and let the variate be 0.
    uniforms = bits.double().add_(0.5).mul_(2.0**-32)
    return uniforms.log_().neg_().float()


def race(scores: Tensor, token_ids: Tensor, keys: Tensor) -> Tensor:
    """Draw one token for each row.

    Args:
        scores: [rows, tokens] float32 logits, -inf where a token may not be drawn.
        token_ids: [rows, tokens] or [1, tokens] int64, what each column stands for.
        keys: [rows] int64 from `draw_keys`.
    Returns: [rows] int64, the winning column.
    """
    noise = exponentials(keys.unsqueeze(1), token_ids)
    return (scores - noise.log_()).argmax(1)


def _splitmix(state: UintArray) -> UintArray:
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_A
    state = (state ^ (state >> np.uint64(27))) * _MIX_B
    return state ^ (state >> np.uint64(31))


def _finalise(bits: Tensor) -> Tensor:
    """Mix 32 bits held in int64; the products' upper halves are cut off."""
    bits = (bits ^ (bits >> 16)) * _FINAL_A & _LOW_32
    bits = (bits ^ (bits >> 13)) * _FINAL_B & _LOW_32
    return bits ^ (bits >> 16)
