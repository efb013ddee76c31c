"""The low-rank terms of whole segments as plain products over views of the adapters' matrices."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from adex_kernels.batch import SlotViews


def add_dense_(
    y: Tensor,
    x: Tensor,
    slots: SlotViews,
    segments: Sequence[tuple[int, int, int]],
    layer: int,
    group: int,
) -> None:
    """Add the terms of `segments` (row_start, row_stop, slot) to y [rows, out] in place.

    x is [rows, in]. One product for the group's stacked A, one more for each module's B.
    """
    for start, stop, slot in segments:
        weights = slots.group(slot, layer, group)
        if weights is None:
            continue
        shrunk = functional.linear(x[start:stop], weights.a)
        target = y[start:stop]
        for rank_start, rank_stop, out_start, out_stop, b in weights.slices:
            target[:, out_start:out_stop].addmm_(shrunk[:, rank_start:rank_stop], b)
