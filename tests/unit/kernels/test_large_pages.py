"""Memory that is to lie in large pages."""

import pytest

from adex_kernels.native import memory

LARGE_PAGE = 1 << 21


@pytest.mark.parametrize("size", [LARGE_PAGE // 2, LARGE_PAGE, 3 * LARGE_PAGE + 64])
def test_much_memory_begins_at_the_border_of_a_large_page(size: int) -> None:
    found = memory.zeros(size)
    assert found.data_ptr() % LARGE_PAGE == 0
    assert len(found) == size
    assert not found.any()
    found.fill_(7)
    assert int(found[-1]) == 7


def test_memory_that_cannot_be_had_is_an_error_of_memory() -> None:
    with pytest.raises(MemoryError):
        memory.zeros(1 << 60)


def test_little_memory_takes_no_large_page() -> None:
    found = [memory.zeros(64) for _ in range(3)]
    assert any(each.data_ptr() % LARGE_PAGE for each in found)
    assert not any(each.any() for each in found)
