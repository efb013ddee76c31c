"""Resident adapters by slot: what the step thread reads while other threads page in and evict."""

from typing import NamedTuple

import torch

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import GroupWeights, LoraRecord
from adex_kernels.layout import BundleLayout, Group, GroupExtent
from adex_kernels.native.lora import record_of
from adex_proto.errors import ProtocolViolation

GROUPS = len(Group)


class _Resident(NamedTuple):
    """A bundle where it lies, and the views of it that were asked for, by place in the layout."""

    elements: torch.Tensor
    layout: BundleLayout
    record: LoraRecord | None
    views: dict[int, GroupWeights]


class ResidentSlots:
    """slot -> the views of its adapter, one per (layer, group). The step side of the adapter store.

    A whole adapter appears and disappears in one dictionary assignment, so a reader without a lock
    sees all of it or none. A slot without an adapter raises: it never reads as the base model.
    `table` tells kernels on the device the same, where such kernels serve.
    """

    def __init__(self, table: AdapterTable | None = None) -> None:
        self.table = table
        self._by_slot: dict[int, _Resident] = {}

    def __contains__(self, slot: int) -> bool:
        return slot in self._by_slot

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        """The weights of `slot` at (layer, group), None where the adapter has nothing there.

        Raises ProtocolViolation when no adapter is resident in `slot`.
        """
        try:
            resident = self._by_slot[slot]
        except KeyError:
            raise _absent(slot) from None
        place = layer * GROUPS + group
        extent = resident.layout.groups[place]
        if extent is None:
            return None
        # Made where they are needed: the compiled paths read the record or the table instead.
        weights = resident.views.get(place)
        if weights is None:
            weights = resident.views[place] = group_weights(resident.elements, extent)
        return weights

    def record(self, slot: int) -> LoraRecord | None:
        """The whole adapter for the compiled path, None where that cannot serve it.

        Raises ProtocolViolation when no adapter is resident in `slot`.
        """
        try:
            return self._by_slot[slot].record
        except KeyError:
            raise _absent(slot) from None

    def publish(self, slot: int, elements: torch.Tensor, layout: BundleLayout) -> None:
        """Make the adapter whose bundle is `elements` visible to the next step."""
        self._by_slot[slot] = _Resident(elements, layout, record_of(elements, layout), {})

    def withdraw(self, slot: int) -> None:
        """Hide the adapter from the next step."""
        del self._by_slot[slot]

    def withdraw_all(self) -> None:
        self._by_slot = {}


def _absent(slot: int) -> ProtocolViolation:
    return ProtocolViolation(f"no adapter is resident in slot {slot}", field="slot")


def group_weights(elements: torch.Tensor, extent: GroupExtent) -> GroupWeights:
    """Views of one group's matrices over `elements`, the bundle where it lies."""
    a = _matrix(elements, extent.a_offset, extent.rank_total, extent.in_features)
    slices = tuple(
        (
            part.rank_start,
            part.rank_start + part.rank,
            part.out_start,
            part.out_start + part.out_features,
            _matrix(elements, part.b_offset, part.rank, part.out_features),
        )
        for part in extent.slices
    )
    return GroupWeights(a, slices)


def _matrix(elements: torch.Tensor, offset: int, rows: int, columns: int) -> torch.Tensor:
    return elements[offset : offset + rows * columns].view(rows, columns)
