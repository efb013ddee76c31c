"""Draw a token for each row in one launch, from all tokens or from what its filters leave.

A filter keeps the tokens up to some distance from the most probable one. That distance is found by
halving: it is a positive float32, and those have the order of their bits.
"""

from typing import Final

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.batch import uploaded
from adex_kernels.draw import HEAD, WHOLE_MAX, DrawnRows
from adex_kernels.gpu.launch import power_of_two

# Tokens that a program looks at together: many where they are counted, so that many loads are
# under way, and fewer where they run, which takes registers.
_COUNTED_AT_ONCE, _RUN_AT_ONCE = 8192, 4096
_WARPS = 16
_INFINITE: Final = tl.constexpr(0x7F800000)


def draw_(chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None:
    """As `dispatch.draw_`, for rows without typical-p. `logits` has contiguous rows.

    The choice is that of `adex_kernels.draw` but where sums, rounded in another order, decide.
    """
    words, reals = _uploaded(drawn, logits.device)
    size = logits.shape[1]
    _draw[(len(drawn),)](
        chosen,
        logits,
        finite,
        words,
        reals,
        len(drawn),
        logits.stride(0),
        size,
        HEAD=HEAD,
        WHOLE_MAX=WHOLE_MAX,
        COUNTED=min(_COUNTED_AT_ONCE, power_of_two(size)),
        RUN=min(_RUN_AT_ONCE, power_of_two(size)),
        num_warps=_WARPS,
    )


def _uploaded(drawn: DrawnRows, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows, keys and top-k [3, drawn] int32; temperature, top-p and the furthest that min-p keeps
    [3, drawn] float32; in one copy."""
    top_k = np.minimum(drawn.top_k, np.iinfo(np.int32).max)
    with np.errstate(divide="ignore"):
        # Without the sign that the logarithm of 1 would get.
        furthest = np.abs(np.log(drawn.min_p))
    words = np.stack((drawn.rows, drawn.keys, top_k)).astype(np.int32)
    reals = np.stack((drawn.temperature, drawn.top_p, furthest)).astype(np.float32)
    both = uploaded(torch.from_numpy(np.concatenate((words, reals.view(np.int32)))), device)
    return both[:3], both[3:].view(torch.float32)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["reals_ptr"])
def _draw(
    chosen_ptr,
    logits_ptr,
    finite_ptr,
    words_ptr,
    reals_ptr,
    count,
    stride,
    size,
    HEAD: tl.constexpr,
    WHOLE_MAX: tl.constexpr,
    COUNTED: tl.constexpr,
    RUN: tl.constexpr,
):
    """One row. Its logits become distances below the greatest, over its temperature."""
    at = tl.program_id(0)
    row = tl.load(words_ptr + at).to(tl.int64)
    key = tl.load(words_ptr + count + at).to(tl.uint32, bitcast=True)
    top_k = tl.load(words_ptr + 2 * count + at)
    temperature = tl.load(reals_ptr + at)
    top_p = tl.load(reals_ptr + count + at)
    furthest = tl.load(reals_ptr + 2 * count + at)
    if tl.load(finite_ptr + row) == 0:
        tl.store(chosen_ptr + row, tl.zeros((), tl.int64))
        return
    row_ptr = logits_ptr + row * stride
    _to_distances(row_ptr, size, temperature, COUNTED)
    # What was stored is read by other threads from now on.
    tl.debug_barrier()
    stop = tl.full((), _INFINITE, tl.int32)
    if top_k > 0:
        stop = _edge(row_ptr, size, stop, top_k.to(tl.float32), False, COUNTED) + 1
    if top_p < 1.0:
        goal = top_p * _weight(row_ptr, size, 0, stop, COUNTED)
        stop = _edge(row_ptr, size, stop, goal, True, COUNTED) + 1
    stop = tl.minimum(stop, furthest.to(tl.int32, bitcast=True) + 1)
    # What is infinitely far is forbidden, however many may be kept.
    stop = tl.minimum(stop, _INFINITE)
    whole = (top_k <= 0) & (top_p >= 1.0) & (furthest == float("inf")) & (size > WHOLE_MAX)
    if whole:
        stop = _edge(row_ptr, size, stop, HEAD * 1.0, False, COUNTED)
    won, token = _race(row_ptr, size, 0, stop, key, RUN)
    if whole:
        # All beyond the most probable run as one first: the token -1, whose spread bits are 0.
        tail = _weight(row_ptr, size, stop, _INFINITE, COUNTED)
        # A mass this small never wins, and what is none has no logarithm.
        if tl.log(tl.maximum(tail, 1e-37)) - _log_exponential(key) > won:
            won, token = _race(row_ptr, size, stop, _INFINITE, key, RUN)
    tl.store(chosen_ptr + row, token.to(tl.int64))


@triton.jit
def _to_distances(row_ptr, size, temperature, AT_ONCE: tl.constexpr):
    """Replace the row's logits by how far each is below the greatest, over the temperature."""
    most = tl.full((AT_ONCE,), float("-inf"), tl.float32)
    for start in range(0, size, AT_ONCE):
        token = start + tl.arange(0, AT_ONCE)
        logits = tl.load(row_ptr + token, mask=token < size, other=float("-inf"))
        most = tl.maximum(most, logits)
    top = tl.max(most, 0)
    for start in range(0, size, AT_ONCE):
        token = start + tl.arange(0, AT_ONCE)
        logits = tl.load(row_ptr + token, mask=token < size, other=float("-inf"))
        # Rounded as torch does, so that both find the same tokens equal.
        distances = tl.div_rn(top - logits, tl.zeros_like(logits) + temperature)
        distances = tl.where(logits > float("-inf"), distances, float("inf"))
        tl.store(row_ptr + token, distances, mask=token < size)


@triton.jit
def _edge(row_ptr, size, stop, goal, BY_MASS: tl.constexpr, AT_ONCE: tl.constexpr):
    """The greatest bits below `stop` of which all tokens before have less than `goal` together.

    That is in mass, where the most probable token has 1, or else in number. The answer is a token's
    own distance where there is one, and `stop - 1` where all tokens below `stop` are not enough.
    """
    first = tl.full((), 0, tl.int32)
    while stop - first > 1:
        middle = first + (stop - first) // 2
        weights = tl.zeros((AT_ONCE,), tl.float32)
        before = tl.full((AT_ONCE,), -1, tl.int32)
        behind = tl.full((AT_ONCE,), _INFINITE, tl.int32)
        for start in range(0, size, AT_ONCE):
            distances, bits = _distances(row_ptr, size, start, AT_ONCE)
            nearer = bits < middle
            if BY_MASS:
                weights += tl.where(nearer, tl.exp(-distances), 0.0)
            else:
                weights += nearer.to(tl.float32)
            before = tl.maximum(before, tl.where(nearer, bits, -1))
            behind = tl.minimum(behind, tl.where(nearer, _INFINITE, bits))
        # Between one token and the next there is nothing to look for.
        if tl.sum(weights, 0) < goal:
            first = tl.minimum(tl.min(behind, 0), stop - 1)
        else:
            stop = tl.max(before, 0) + 1
    return first


@triton.jit
def _weight(row_ptr, size, first, stop, AT_ONCE: tl.constexpr):
    """The mass of the tokens whose bits are in [first, stop), where the most probable has 1."""
    weights = tl.zeros((AT_ONCE,), tl.float32)
    for start in range(0, size, AT_ONCE):
        distances, bits = _distances(row_ptr, size, start, AT_ONCE)
        weights += tl.where((bits >= first) & (bits < stop), tl.exp(-distances), 0.0)
    return tl.sum(weights, 0)


@triton.jit
def _race(row_ptr, size, first, stop, key, AT_ONCE: tl.constexpr):
    """`adex_kernels.noise.race` of the tokens whose bits are in [first, stop)."""
    best = tl.full((AT_ONCE,), float("-inf"), tl.float32)
    best_token = tl.zeros((AT_ONCE,), tl.int32)
    for start in range(0, size, AT_ONCE):
        distances, bits = _distances(row_ptr, size, start, AT_ONCE)
        token = start + tl.arange(0, AT_ONCE)
        spread = _finalise((token + 1).to(tl.uint32) * 0x9E3779B1)
        # However slow, a runner is before a token that may not run.
        ran = tl.maximum(-distances - _log_exponential(spread ^ key), -3e38)
        ran = tl.where((bits >= first) & (bits < stop), ran, float("-inf"))
        best_token = tl.where(ran > best, token, best_token)
        best = tl.maximum(best, ran)
    won = tl.max(best, 0)
    return won, tl.min(tl.where(best == won, best_token, size), 0)


@triton.jit
def _distances(row_ptr, size, start, AT_ONCE: tl.constexpr):
    """The distances of the tokens from `start` on, and their bits, which have the same order."""
    token = start + tl.arange(0, AT_ONCE)
    distances = tl.load(row_ptr + token, mask=token < size, other=float("inf"))
    return distances, distances.to(tl.int32, bitcast=True)


@triton.jit
def _log_exponential(bits):
    """The last lines of `adex_kernels.noise.log_exponentials`."""
    cells = (_finalise(bits) & 0x7FFFFFFF).to(tl.int32)
    uniform = (cells.to(tl.float32) + 0.5) * (0.5 / (1 << 30))
    left = 1.0 - uniform
    # What is left over of the rounding, so that small variates are whole.
    rest = (1.0 - left) - uniform
    exponential = -(_log(left) + rest / left)
    return tl.where(uniform < 1.0, _log(exponential), float("inf"))


@triton.jit
def _log(x):
    """Natural logarithm of normal numbers to the last bit or two, which the device's own is not
    near 1. Source: Cephes' `logf` (Moshier)."""
    bits = x.to(tl.int32, bitcast=True)
    fraction = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    low = fraction < 0.70710678
    exponent = ((bits >> 23) - 126 - low.to(tl.int32)).to(tl.float32)
    z = tl.where(low, fraction + fraction, fraction) - 1.0
    series = 7.0376836292e-2 * z - 1.1514610310e-1
    series = series * z + 1.1676998740e-1
    series = series * z - 1.2420140846e-1
    series = series * z + 1.4249322787e-1
    series = series * z - 1.6668057665e-1
    series = series * z + 2.0000714765e-1
    series = series * z - 2.4999993993e-1
    series = series * z + 3.3333331174e-1
    square = z * z
    # ln 2 in two parts, of which the first times an exponent is exact.
    series = series * z * square - 2.12194440e-4 * exponent - 0.5 * square
    return z + series + 0.693359375 * exponent


@triton.jit
def _finalise(bits):
    """`adex_kernels.noise`'s mixing of 32 bits."""
    bits ^= bits >> 16
    bits *= 0x85EBCA6B
    bits ^= bits >> 13
    bits *= 0xC2B2AE35
    return bits ^ (bits >> 16)
