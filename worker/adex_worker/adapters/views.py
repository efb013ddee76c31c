"""Resident adapters by slot: what the step thread reads while other threads page in and evict."""

from typing import NamedTuple

import torch

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import GroupWeights, LoraRecord
from adex_kernels.layout import BundleLayout, Group
from adex_kernels.native.lora import record_of
from adex_proto.errors import ProtocolViolation

GROUPS = len(Group)


class _Resident(NamedTuple):
    views: tuple[GroupWeights | None, ...]
    record: LoraRecord | None


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
            return self._by_slot[slot].views[layer * GROUPS + group]
        except KeyError:
            raise _absent(slot) from None

    def record(self, slot: int) -> LoraRecord | None:
        """The whole adapter for the compiled path, None where that cannot serve it.

        Raises ProtocolViolation when no adapter is resident in `slot`.
        """
        try:
            return self._by_slot[slot].record
        except KeyError:
            raise _absent(slot) from None

    def publish(self, slot: int, views: tuple[GroupWeights | None, ...]) -> None:
        """Make the adapter visible to the next step."""
        self._by_slot[slot] = _Resident(views, record_of(views))

    def withdraw(self, slot: int) -> None:
        """Hide the adapter from the next step."""
        del self._by_slot[slot]

    def withdraw_all(self) -> None:
        self._by_slot = {}


def _absent(slot: int) -> ProtocolViolation:
    return ProtocolViolation(f"no adapter is resident in slot {slot}", field="slot")


def group_views(elements: torch.Tensor, layout: BundleLayout) -> tuple[GroupWeights | None, ...]:
    """Views of a bundle's matrices over `elements`, the bundle where it lies, in layout order."""
    views: list[GroupWeights | None] = []
    for extent in layout.groups:
        if extent is None:
            views.append(None)
            continue
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
        views.append(GroupWeights(a, slices))
    return tuple(views)


def _matrix(elements: torch.Tensor, offset: int, rows: int, columns: int) -> torch.Tensor:
    return elements[offset : offset + rows * columns].view(rows, columns)
