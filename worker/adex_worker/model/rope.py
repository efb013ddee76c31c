"""Rotary embeddings: frequencies of every served scaling, and the angles of a step's rows.

The angle of a row is its position times the frequencies, computed in float32 once per step for all
layers; no table over positions is kept, so its memory does not grow with the context.

Two scalings choose their frequencies by the length of the sequence. "dynamic" raises theta with
every position beyond the trained length; "longrope" has one set of factors up to the original
length and another beyond it. Each row uses its own sequence's whole known length
(`AttentionBatch.row_lens`): the prompt's while that is being prefilled, in one go or in chunks, and
the length so far when decoding. So a prompt is rotated as transformers rotates it in one go, and a
sequence in a batch never changes another's rotation. Keys that are already cached keep the rotation
they had: a sequence that grows across the original length while decoding attends with new queries
over keys of the former rotation, as it does in transformers with a cache.
"""

import math

import numpy as np
import torch
from torch import Tensor

from adex_worker.model.rope_spec import RopeSpec


class Rope:
    """The rotation of one model."""

    __slots__ = ("_frequencies", "_long_frequencies", "_spec")

    def __init__(self, spec: RopeSpec, device: torch.device) -> None:
        self._spec = spec
        self._frequencies = frequencies(spec).to(device)
        self._long_frequencies = (
            _long_frequencies(spec).to(device) if spec.kind == "longrope" else None
        )

    def rotation(
        self, positions: Tensor, lens: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """cos and sin for each row, [rows, 1, rotary_dim], as `dispatch.rotate_write_` takes them.

        Args:
            positions: [rows] int64.
            lens: [rows] int64, the whole known length of each row's sequence.
        The first half of sin is negated, so that rotating is one product with the halves swapped.
        """
        turned = _on_this_thread if positions.device.type == "cpu" else _by_operations
        frequencies = self._row_frequencies(lens)
        return turned(positions, frequencies, self._spec.attention_factor, dtype)

    def _row_frequencies(self, lens: Tensor) -> Tensor:
        spec = self._spec
        if self._long_frequencies is not None:
            long = (lens > spec.original_positions).unsqueeze(1)
            return torch.where(long, self._long_frequencies, self._frequencies)
        if spec.kind == "dynamic":
            lengths = lens.clamp(min=spec.positions_max).float()
            stretch = spec.factor * lengths / spec.positions_max - (spec.factor - 1)
            dim = spec.rotary_dim
            theta = spec.theta * stretch ** (dim / (dim - 2))
            return 1.0 / theta.unsqueeze(1) ** _exponents(dim, lens.device)
        return self._frequencies


def _by_operations(
    positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """`Rope.rotation`, each result times `factor`."""
    angles = positions.unsqueeze(1).float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    if factor != 1.0:
        cos.mul_(factor)
        sin.mul_(factor)
    cosines = torch.cat((cos, cos), 1).to(dtype).unsqueeze(1)
    return cosines, torch.cat((-sin, sin), 1).to(dtype).unsqueeze(1)


def _on_this_thread(
    positions: Tensor, frequencies: Tensor, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same in numpy: torch would wake all of its own threads for a few numbers."""
    angles = positions.numpy().astype(np.float32)[:, None] * frequencies.numpy()
    rows, half = angles.shape
    both = np.empty((2, rows, 1, 2 * half), np.float32)
    cos, sin = both[0, :, 0], both[1, :, 0]
    np.cos(angles, out=cos[:, half:])
    np.sin(angles, out=sin[:, half:])
    if factor != 1.0:
        both[..., half:] *= np.float32(factor)
    cos[:, :half] = cos[:, half:]
    np.negative(sin[:, half:], out=sin[:, :half])
    cosines, sines = torch.from_numpy(both[0]), torch.from_numpy(both[1])
    return (cosines, sines) if dtype == torch.float32 else (cosines.to(dtype), sines.to(dtype))


def frequencies(spec: RopeSpec) -> Tensor:
    """[rotary_dim / 2] float32, radians per position; for longrope those of short sequences."""
    exponents = _exponents(spec.rotary_dim, torch.device("cpu"))
    plain = 1.0 / spec.theta**exponents
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec, spec.theta**exponents)
    if spec.kind == "longrope":
        return 1.0 / (torch.tensor(spec.short_factor) * spec.theta**exponents)
    return plain


def _long_frequencies(spec: RopeSpec) -> Tensor:
    exponents = _exponents(spec.rotary_dim, torch.device("cpu"))
    return 1.0 / (torch.tensor(spec.long_factor) * spec.theta**exponents)


def _exponents(rotary_dim: int, device: torch.device) -> Tensor:
    return torch.arange(0, rotary_dim, 2, device=device).float() / rotary_dim


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Slow frequencies are divided, fast ones kept, and those between are mixed."""
    turns = spec.original_positions * plain / (2 * math.pi)
    mix = (turns - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    mix = mix.clamp(0, 1)
    return (1 - mix) * plain / spec.factor + mix * plain


def _yarn(spec: RopeSpec, periods: Tensor) -> Tensor:
    """Interpolate the dimensions that turn less than beta_slow times, keep those above beta_fast.

    Source: Peng et al. 2023, arXiv:2309.00071.
    """
    dim = spec.rotary_dim

    def dimension_of(turns: float) -> float:
        return (
            dim
            * math.log(spec.original_positions / (turns * 2 * math.pi))
            / (2 * math.log(spec.theta))
        )

    low, high = dimension_of(spec.beta_fast), dimension_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    slow = ((torch.arange(dim // 2).float() - low) / (high - low)).clamp(0, 1)
    return slow / (spec.factor * periods) + (1 - slow) / periods
