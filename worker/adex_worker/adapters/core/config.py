"""adapter_config.json of a PEFT LoRA, read into a type that cannot be wrong."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.core.config_keys import (
    BASE_CHANGING_INITS,
    HARMLESS,
    INIT_REMEDY,
    PLAIN_INITS,
    READ,
    UNSUPPORTED,
)
from adex_worker.adapters.core.json_text import parse_object
from adex_worker.adapters.core.pattern_table import PatternTable, pattern_numbers

CONFIG_FILE = "adapter_config.json"
CONFIG_BYTES_MAX = 1 << 20
# Patterns may name thousands of modules; nothing else is long.
_MEMBERS_MAX = 1 << 16
# Above any rank a device could hold; it keeps arithmetic on declared ranks small.
DECLARED_RANK_MAX = 1 << 24

_SAVE_AGAIN = "Save the adapter again with PEFT"


@dataclass(frozen=True, slots=True)
class ModuleScale:
    """What the config says of one module: its rank, and the factor on its delta B A."""

    rank: int
    scale: float


class LoraConfig:
    """Rank and scale of every module, resolved as PEFT resolves them.

    Two pattern tables, each first match wins: rank_pattern over `r`, alpha_pattern over
    `lora_alpha`; the scale is alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.
    """

    def __init__(self, members: Mapping[str, Any]) -> None:
        self._rank = _rank("r", members.get("r"))
        self._alpha = _alpha("lora_alpha", members.get("lora_alpha"))
        self._rank_stabilised = _boolean("use_rslora", members.get("use_rslora"))
        ranks = pattern_numbers(members.get("rank_pattern"), field="rank_pattern", file=CONFIG_FILE)
        alphas = pattern_numbers(
            members.get("alpha_pattern"), field="alpha_pattern", file=CONFIG_FILE
        )
        self._ranks = {key: _rank("rank_pattern", value) for key, value in ranks.items()}
        self._alphas = {key: _alpha("alpha_pattern", value) for key, value in alphas.items()}
        self._rank_table = PatternTable(self._ranks, field="rank_pattern", file=CONFIG_FILE)
        self._alpha_table = PatternTable(self._alphas, field="alpha_pattern", file=CONFIG_FILE)

    def module_scale(self, path: str) -> ModuleScale:
        """Rank and scale of the module at `path`, such as "model.layers.0.self_attn.q_proj"."""
        rank_key, alpha_key = self._rank_table.key_for(path), self._alpha_table.key_for(path)
        rank = self._rank if rank_key is None else self._ranks[rank_key]
        alpha = self._alpha if alpha_key is None else self._alphas[alpha_key]
        return ModuleScale(rank, alpha / (math.sqrt(rank) if self._rank_stabilised else rank))


def parse_config(text: bytes) -> LoraConfig:
    """The config in `text`.

    Raises AdapterMalformed (not JSON, wrong types, too large) or AdapterUnsupported (another type
    of adapter, an option that is not served, an unknown option that is on).
    """
    check_config_bytes(len(text))
    members = parse_object(text, CONFIG_FILE, _SAVE_AGAIN, members_max=_MEMBERS_MAX)
    _check_kind(members.get("peft_type"))
    _check_options(members)
    _check_bias(members.get("bias"))
    _check_initialisation(members.get("init_lora_weights"))
    return LoraConfig(members)


def check_config_bytes(size: int) -> None:
    """Raise AdapterMalformed for a config too large to be one, before it is read."""
    if size > CONFIG_BYTES_MAX:
        raise AdapterMalformed(
            f"`{CONFIG_FILE}` has {size} bytes, the limit is {CONFIG_BYTES_MAX}",
            field=CONFIG_FILE,
            remedy=_SAVE_AGAIN,
        )


def _check_kind(kind: object) -> None:
    # Files of early 2023 have no peft_type; their tensors prove that they are LoRA.
    if kind is None or kind == "LORA":
        return
    raise AdapterUnsupported(
        f"`{CONFIG_FILE}` says peft_type {kind!r:.100}, only LORA is served",
        field="peft_type",
        remedy="Convert it to LoRA (peft.convert_to_lora, save_as_lora) and serve the result",
    )


def _check_options(members: Mapping[str, Any]) -> None:
    for key, value in members.items():
        if not value or key in READ or key in HARMLESS:
            continue
        if key in UNSUPPORTED:
            raise AdapterUnsupported(
                f"`{CONFIG_FILE}` sets {key} = {value!r:.100}, which is not served",
                field=key,
                remedy=UNSUPPORTED[key],
            )
        raise AdapterUnsupported(
            f"`{CONFIG_FILE}` sets the unknown option {key[:100]!r} = {value!r:.100},"
            " which may change what the adapter computes",
            field=key[:100],
            remedy="Remove it from the file if it has no effect on inference, or train without it",
        )


def _check_bias(bias: object) -> None:
    if bias not in (None, "none"):
        raise AdapterUnsupported(
            f"`{CONFIG_FILE}` sets bias = {bias!r:.100}, only 'none' is served",
            field="bias",
            remedy='Train with bias="none"',
        )


def _check_initialisation(init: object) -> None:
    if init is None or isinstance(init, bool):
        return
    name = init.lower() if isinstance(init, str) else ""
    if name in PLAIN_INITS:
        return
    if name.startswith(BASE_CHANGING_INITS):
        raise AdapterUnsupported(
            f"`{CONFIG_FILE}` sets init_lora_weights = {init!r:.100}, which changes the base model",
            field="init_lora_weights",
            remedy=INIT_REMEDY,
        )
    raise AdapterUnsupported(
        f"`{CONFIG_FILE}` sets the unknown init_lora_weights = {init!r:.100}",
        field="init_lora_weights",
        remedy=INIT_REMEDY,
    )


def _rank(field: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= DECLARED_RANK_MAX:
        return value
    raise _wrong(field, value, f"a whole number of 1 to {DECLARED_RANK_MAX}")


def _alpha(field: str, value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            alpha = float(value)
        except OverflowError:
            alpha = math.inf
        if math.isfinite(alpha) and alpha != 0.0:
            return alpha
    # Zero would load and then silently answer as the base model.
    raise _wrong(field, value, "a finite number other than 0")


def _boolean(field: str, value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(field, value, "true or false")


def _wrong(field: str, value: object, wanted: str) -> AdapterMalformed:
    return AdapterMalformed(
        f"`{field}` in `{CONFIG_FILE}` must be {wanted}, got {value!r:.100}",
        field=field,
        remedy=_SAVE_AGAIN,
    )
