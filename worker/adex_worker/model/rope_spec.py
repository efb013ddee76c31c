"""Which rotary embedding a config.json asks for, with every default resolved. Pure.

Both spellings are read: `rope_parameters` (one dictionary, theta within) and the older pair
`rope_theta` and `rope_scaling`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from adex_proto.errors import ValidationError
from adex_worker.model.families import Family

KINDS = ("default", "linear", "dynamic", "llama3", "yarn", "longrope")

_KEYS = frozenset(
    {
        "rope_type",
        "type",
        "rope_theta",
        "partial_rotary_factor",
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
        "short_factor",
        "long_factor",
        "low_freq_factor",
        "high_freq_factor",
        # Only a hint for training code; the served mathematics does not read it.
        "finetuned",
    }
)


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """One rotary embedding.

    `rotary_dim` leading elements of a head rotate. `positions_max` is the config's
    max_position_embeddings, `original_positions` the length before any extension, and
    `positions_served` the longest sequence that the scaling is meant for. `attention_factor`
    multiplies cos and sin.
    """

    kind: str
    theta: float
    rotary_dim: int
    positions_max: int
    original_positions: int
    positions_served: int
    factor: float = 1.0
    attention_factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    @property
    def depends_on_length(self) -> bool:
        """Whether the frequencies of a row depend on how long its sequence is."""
        return self.kind in ("dynamic", "longrope")


def rope_spec(
    config: Mapping[str, Any], family: Family, head_dim: int, positions_max: int
) -> RopeSpec:
    """Read the rope keys of a config.json. Raises ValidationError for what is not implemented."""
    given: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type") or given.get("type") or "default"
    if family.model_type == "phi3" and kind in ("su", "yarn"):
        # Early Phi-3 configs name the same scaling so.
        kind = "longrope"
    if kind not in KINDS:
        raise _refused("type", kind, f"known types are {', '.join(KINDS)}")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        raise _refused(unknown[0], given[unknown[0]], "this key is not known")
    theta = _positive(given, "rope_theta", config.get("rope_theta") or 10000.0)
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if partial != 1.0 and not family.partial_rotary:
        raise _refused("partial_rotary_factor", partial, f"{family.architecture} has none")
    rotary_dim = int(head_dim * partial)
    if rotary_dim % 2:
        raise _refused("partial_rotary_factor", partial, f"it rotates {rotary_dim} elements")
    original = _original_positions(config, family, given, positions_max)
    spec = RopeSpec(kind, theta, rotary_dim, positions_max, original, positions_max)
    return _SCALINGS[kind](spec, given) if kind in _SCALINGS else spec


def _original_positions(
    config: Mapping[str, Any], family: Family, given: Mapping[str, Any], positions_max: int
) -> int:
    """A top-level key wins over the one within; without either it is max_position_embeddings."""
    key = "original_max_position_embeddings"
    value = config.get(key, family.defaults.get(key)) or given.get(key) or positions_max
    if not isinstance(value, int) or value < 1:
        raise _refused(key, value, "it must be a positive whole number")
    return value


def _linear(spec: RopeSpec, given: Mapping[str, Any]) -> RopeSpec:
    factor = _positive(given, "factor")
    return replace(spec, factor=factor, positions_served=int(spec.positions_max * factor))


def _llama3(spec: RopeSpec, given: Mapping[str, Any]) -> RopeSpec:
    low, high = _positive(given, "low_freq_factor"), _positive(given, "high_freq_factor")
    if high <= low:
        raise _refused("high_freq_factor", high, f"it must exceed low_freq_factor = {low}")
    return replace(
        spec, factor=_positive(given, "factor"), low_freq_factor=low, high_freq_factor=high
    )


def _yarn(spec: RopeSpec, given: Mapping[str, Any]) -> RopeSpec:
    factor = given.get("factor") or spec.positions_max / spec.original_positions
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        mscale, all_dim = given.get("mscale"), given.get("mscale_all_dim")
        if mscale and all_dim:
            attention_factor = _mscale(factor, mscale) / _mscale(factor, all_dim)
        else:
            attention_factor = _mscale(factor, 1.0)
    return replace(
        spec,
        factor=float(factor),
        attention_factor=float(attention_factor),
        beta_fast=float(given.get("beta_fast") or 32),
        beta_slow=float(given.get("beta_slow") or 1),
        truncate=bool(given.get("truncate", True)),
        positions_served=max(spec.positions_max, int(spec.original_positions * factor)),
    )


def _mscale(scale: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(scale) + 1.0 if scale > 1 else 1.0


def _longrope(spec: RopeSpec, given: Mapping[str, Any]) -> RopeSpec:
    factor = given.get("factor") or spec.positions_max / spec.original_positions
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        stretch = math.log(factor) / math.log(spec.original_positions) if factor > 1 else 0.0
        attention_factor = math.sqrt(1 + stretch)
    factors: dict[str, tuple[float, ...]] = {}
    for key in ("short_factor", "long_factor"):
        values = given.get(key)
        if not isinstance(values, list) or len(values) != spec.rotary_dim // 2:
            raise _refused(key, values, f"it must list {spec.rotary_dim // 2} numbers")
        factors[key] = tuple(float(value) for value in values)
    return replace(
        spec,
        factor=float(factor),
        attention_factor=float(attention_factor),
        short_factor=factors["short_factor"],
        long_factor=factors["long_factor"],
    )


_SCALINGS = {
    "linear": _linear,
    "dynamic": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _positive(given: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = given.get(key, default)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
        raise _refused(key, value, "it must be a positive number")
    return float(value)


def _refused(key: str, value: object, reason: str) -> ValidationError:
    return ValidationError(
        f"the model's rope parameters say {key} = {value!r}: {reason}",
        field=f"rope_parameters.{key}",
        remedy="Serve another model or correct its config.json",
    )
