"""Small products are computed by one thread, and whatever follows has all of them again."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from adex_kernels.batch import GroupWeights, LoraBatch
from adex_kernels.dispatch import lora_add_


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Slots:
    """Adapters of growing size by slot, the first below and the last above what one thread does."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def record(self, slot: int) -> None:
        """Torch's path is what is looked at here."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        self.threads.append(torch.get_num_threads())
        if slot == 9:
            raise LookupError("no adapter is resident in slot 9")
        a = torch.full((8 * slot, 8192), 0.01, dtype=torch.bfloat16)
        b = torch.full((8 * slot, 64), 0.01, dtype=torch.bfloat16)
        return GroupWeights(a, ((0, 8 * slot, 0, 64, b),))


@pytest.mark.parametrize("segments", [[(0, 1, 1)], [(0, 1, 1), (1, 2, 4)], [(0, 1, 1), (1, 2, 9)]])
def test_the_number_of_threads_is_what_it_was(segments: list[tuple[int, int, int]]) -> None:
    slots = Slots()
    x, y = torch.ones(2, 8192, dtype=torch.bfloat16), torch.zeros(2, 64, dtype=torch.bfloat16)
    try:
        lora_add_(y, x, LoraBatch(segments, slots), 0, 0)
    except LookupError:
        assert segments[-1][2] == 9
    assert torch.get_num_threads() == 2
    mkldnn: Any = torch.backends.mkldnn
    assert mkldnn.enabled
    # The second adapter is looked for while one thread computes, as the first has just been.
    assert slots.threads[:2] == [2, 1][: len(slots.threads)]
    assert y[0].count_nonzero() == 64
