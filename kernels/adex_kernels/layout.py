"""Where every matrix of an adapter lies in its packed bundle: the one form it has in every tier.

A bundle is one run of elements of the serving dtype. For each layer, and within it for each group
of linears that share their input (q|k|v, o, gate|up, down), it holds first the A matrices of the
group's modules stacked along the rank, [sum of ranks, in], then one B matrix per module, stored
[rank, out]. So one product with the stacked A serves the whole group, and both matrices stream
along their long side. Only ranks that exist take room; a module an adapter lacks takes none. The
LoRA scale is folded into B in float32 before the cast.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

# Matrices start on 64-byte lines for elements of two bytes or more, so vector loads are aligned.
ALIGN_ELEMENTS = 32
# Layouts remembered: as many forms of adapters as are in use at a time, and some.
_REMEMBERED_MAX = 64


class Module(IntEnum):
    """The linears of one decoder layer that an adapter may change, in bundle order."""

    Q = 0
    K = 1
    V = 2
    O = 3  # noqa: E741 -- the field's name for the attention output projection
    GATE = 4
    UP = 5
    DOWN = 6


class Group(IntEnum):
    """Modules that read the same input and so share one shrink product."""

    QKV = 0
    O = 1  # noqa: E741
    GATE_UP = 2
    DOWN = 3


GROUP_MODULES: tuple[tuple[Module, ...], ...] = (
    (Module.Q, Module.K, Module.V),
    (Module.O,),
    (Module.GATE, Module.UP),
    (Module.DOWN,),
)
MODULES_PER_GROUP_MAX = max(map(len, GROUP_MODULES))


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Features in and out of one linear."""

    in_features: int
    out_features: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The linears of a base model: the same seven shapes in each of `layers` layers."""

    layers: int
    linears: tuple[LinearShape, ...]

    def __post_init__(self) -> None:
        if len(self.linears) != len(Module):
            raise ValueError(f"a layer has {len(Module)} linears, got {len(self.linears)} shapes")

    def linear(self, module: Module) -> LinearShape:
        return self.linears[module]

    def group_out_starts(self, group: Group) -> tuple[int, ...]:
        """First output column of each module of `group` in the group's fused output."""
        starts: list[int] = []
        column = 0
        for module in GROUP_MODULES[group]:
            starts.append(column)
            column += self.linears[module].out_features
        return tuple(starts)


@dataclass(frozen=True, slots=True)
class Slice:
    """One module's part of a group, in elements from the start of the bundle.

    The rows [rank_start, rank_start + rank) of the group's stacked A are this module's; its B is
    [rank, out] at `b_offset`; its result adds to columns [out_start, out_start + out).
    """

    module: Module
    rank: int
    rank_start: int
    b_offset: int
    out_start: int
    out_features: int


@dataclass(frozen=True, slots=True)
class GroupExtent:
    """One group of one layer: its slices, and its stacked A [rank_total, in_features]."""

    a_offset: int
    rank_total: int
    in_features: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class BundleLayout:
    """The whole bundle; `groups[layer * len(Group) + group]` is None where nothing is adapted."""

    groups: tuple[GroupExtent | None, ...]
    elements: int
    rank_max: int

    def __hash__(self) -> int:
        # Whoever keeps something by layout asks often, and layouts hold hundreds of numbers.
        return self.elements

    def group(self, layer: int, group: Group) -> GroupExtent | None:
        return self.groups[layer * len(Group) + group]


def _aligned(offset: int) -> int:
    return -(-offset // ALIGN_ELEMENTS) * ALIGN_ELEMENTS


def bundle_layout(shape: ModelShape, ranks: Mapping[tuple[int, Module], int]) -> BundleLayout:
    """Lay out an adapter that has the given rank for each (layer, module); absent means rank 0.

    Adapters that were trained alike share one layout, and what it takes to work it out.
    Raises ValueError for a layer outside the model or a negative rank: the caller has checked both.
    """
    return _laid_out(shape, frozenset(ranks.items()))


@lru_cache(_REMEMBERED_MAX)
def _laid_out(shape: ModelShape, places: frozenset[tuple[tuple[int, Module], int]]) -> BundleLayout:
    ranks = dict(places)
    for (layer, module), rank in ranks.items():
        if not 0 <= layer < shape.layers or rank < 0:
            raise ValueError(f"no room for rank {rank} at layer {layer}, module {module.name}")
    groups: list[GroupExtent | None] = []
    offset = 0
    for layer in range(shape.layers):
        for group in Group:
            extent, offset = _group_extent(shape, ranks, layer, group, offset)
            groups.append(extent)
    return BundleLayout(tuple(groups), offset, max(ranks.values(), default=0))


def _group_extent(
    shape: ModelShape,
    ranks: Mapping[tuple[int, Module], int],
    layer: int,
    group: Group,
    offset: int,
) -> tuple[GroupExtent | None, int]:
    modules = [m for m in GROUP_MODULES[group] if ranks.get((layer, m), 0) > 0]
    if not modules:
        return None, offset
    rank_total = sum(ranks[layer, m] for m in modules)
    in_features = shape.linear(modules[0]).in_features
    a_offset = offset
    offset = _aligned(offset + rank_total * in_features)
    starts = dict(zip(GROUP_MODULES[group], shape.group_out_starts(group), strict=True))
    slices: list[Slice] = []
    rank_start = 0
    for module in modules:
        rank, out_features = ranks[layer, module], shape.linear(module).out_features
        slices.append(Slice(module, rank, rank_start, offset, starts[module], out_features))
        rank_start += rank
        offset = _aligned(offset + rank * out_features)
    return GroupExtent(a_offset, rank_total, in_features, tuple(slices)), offset
