"""Where the kernels find the resident adapters: one table on the device, a line for each slot."""

import torch

from adex_kernels.layout import GROUP_MODULES, BundleLayout, Group, GroupExtent, ModelShape

# (offset of A, rank of the group, then for up to three modules: offset of B, rank).
WORDS = 8


class AdapterTable:
    """The matrices of each slot's adapter: `words` [slots, layers * groups, 8] int64.

    Offsets count from the start of `elements`, the arena in the serving dtype. A slot without an
    adapter has rank 0 everywhere; that no step names one is the caller's to check.
    """

    def __init__(self, shape: ModelShape, slots: int, elements: torch.Tensor) -> None:
        self.shape = shape
        self.elements = elements
        self._groups = shape.layers * len(Group)
        size = (slots, self._groups, WORDS)
        self.words = torch.zeros(size, dtype=torch.int64, device=elements.device)
        self._rank_totals = [1] * slots

    def publish(self, slot: int, layout: BundleLayout, first_element: int) -> None:
        """Write the slot's line, enqueued on the current stream."""
        # Page-ins wait for this and steps share its interpreter: plain lists, one tensor.
        lines = [_line(index, extent, first_element) for index, extent in enumerate(layout.groups)]
        self._rank_totals[slot] = max(line[1] for line in lines)
        line = torch.tensor(lines, dtype=torch.int64)
        if self.words.is_cuda:
            line = line.pin_memory()
        self.words[slot].copy_(line, non_blocking=True)

    def rank_total_max(self, slot: int) -> int:
        """The ranks of the slot's widest group together."""
        return self._rank_totals[slot]


def _line(index: int, extent: GroupExtent | None, first_element: int) -> list[int]:
    words = [0] * WORDS
    if extent is None:
        return words
    words[0] = first_element + extent.a_offset
    words[1] = extent.rank_total
    modules = GROUP_MODULES[index % len(Group)]
    for part in extent.slices:
        place = 2 + 2 * modules.index(part.module)
        words[place] = first_element + part.b_offset
        words[place + 1] = part.rank
    return words
