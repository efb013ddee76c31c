"""A machine with a model on it, as numbers: how long steps and moves take, and what fits.

Read from TOML files, some of which are shipped in the folder `hardware`; `adex calibrate` writes
one for the machine it runs on.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from adex_proto.errors import ValidationError


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds a step takes, as a sum of what it must do; every coefficient is seconds per unit.

    The weights are read, or the tokens multiplied through them, whichever takes longer; the rest
    adds up. `adapter_byte_s` counts each distinct adapter of the step once.
    """

    fixed_s: float
    weights_s: float
    token_s: float
    sequence_s: float
    kv_token_s: float
    adapter_fixed_s: float
    adapter_byte_s: float

    def seconds(
        self, *, tokens: int, sequences: int, kv_tokens: int, adapters: int, adapter_bytes: float
    ) -> float:
        """`kv_tokens` are the positions read by all sequences together."""
        return (
            self.fixed_s
            + max(self.weights_s, tokens * self.token_s)
            + sequences * self.sequence_s
            + kv_tokens * self.kv_token_s
            + (self.adapter_fixed_s if adapters else 0.0)
            + adapter_bytes * self.adapter_byte_s
        )


@dataclass(frozen=True, slots=True)
class LinkCost:
    """A way for bytes: transfers share its rate one after the other, and each waits `fixed_s`."""

    fixed_s: float
    bytes_per_s: float

    def seconds(self, size: float) -> float:
        """How long one transfer takes when nothing else is under way."""
        return self.fixed_s + size / self.bytes_per_s


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes for KV cache and adapters together, and for adapters in host memory and on disk."""

    device_bytes: float
    host_bytes: float
    disk_bytes: float


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a token's keys and values take, and what an adapter takes for each of its ranks."""

    kv_token_bytes: float
    adapter_rank_bytes: float
    positions_max: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class StepLimits:
    """The most one step computes."""

    tokens_max: int
    sequences_max: int


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything the modelled worker knows. `resolve` is what asking for a known name takes."""

    name: str
    model: ModelSize
    memory: Memory
    limits: StepLimits
    step: StepCost
    resolve: LinkCost
    fetch: LinkCost
    stage: LinkCost
    page_in: LinkCost

    @property
    def page_bytes(self) -> int:
        return int(self.model.kv_token_bytes * self.model.block_tokens)

    def adapter_bytes(self, rank: int) -> int:
        """What an adapter of this rank takes in any tier."""
        return int(rank * self.model.adapter_rank_bytes)


_PARTS: Mapping[str, type[Any]] = {
    "model": ModelSize,
    "memory": Memory,
    "limits": StepLimits,
    "step": StepCost,
    "resolve": LinkCost,
    "fetch": LinkCost,
    "stage": LinkCost,
    "page_in": LinkCost,
}


def shipped_machines() -> tuple[str, ...]:
    """Names that `read_machine` knows without a file."""
    folder = resources.files("adex_scheduler.simulate").joinpath("hardware")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir()))


def read_machine(where: str) -> Machine:
    """A machine from a file, or by the name of a shipped one.

    Raises ValidationError that names what is missing or wrong.
    """
    if where.removesuffix(".toml") in shipped_machines():
        folder = resources.files("adex_scheduler.simulate").joinpath("hardware")
        text = folder.joinpath(f"{where.removesuffix('.toml')}.toml").read_text("utf-8")
    else:
        try:
            text = Path(where).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            known = ", ".join(shipped_machines())
            raise ValidationError(
                f"{where} cannot be read: {error}",
                field="hardware",
                remedy=f"Give a file of `adex calibrate`, or one of {known}",
            ) from error
    try:
        told = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValidationError(f"{where} is not TOML: {error}", field="hardware") from error
    parts = {name: _part(where, name, kind, told.get(name)) for name, kind in _PARTS.items()}
    return Machine(name=str(told.get("name", where)), **parts)


def machine_text(machine: Machine, remarks: tuple[str, ...] = ()) -> str:
    """The machine as TOML."""
    lines = [f"# {remark}" for remark in remarks]
    lines.append(f'name = "{machine.name}"')
    for name in _PARTS:
        part = getattr(machine, name)
        lines += ["", f"[{name}]"]
        lines += [f"{one.name} = {getattr(part, one.name)!r}" for one in fields(part)]
    return "\n".join(lines) + "\n"


def _part(where: str, name: str, kind: type[Any], told: object) -> Any:
    wanted = {one.name: one.type for one in fields(kind)}
    if not isinstance(told, dict) or set(told) != set(wanted):
        raise ValidationError(
            f"{where}: [{name}] must hold exactly {', '.join(wanted)}",
            field=name,
            remedy="See docs/simulate.md for the format",
        )
    values: dict[str, float] = {}
    for field, value in told.items():
        whole = wanted[field] is int
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValidationError(f"{where}: {name}.{field} must be 0 or more", field=field)
        values[field] = int(value) if whole else float(value)
        if value == 0 and (whole or field == "bytes_per_s" or field.endswith("_bytes")):
            raise ValidationError(f"{where}: {name}.{field} must be above 0", field=field)
    return kind(**values)
