"""Bytes between tensors: all of them, and by the thread that asks."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from adex_worker.adapters.byte_views import copy_bytes

# Far more than torch shares out among threads.
SIZE = 4 << 20


def test_a_copy_has_all_bytes() -> None:
    source = torch.randint(256, (SIZE + 3,), dtype=torch.uint8)
    to = torch.zeros_like(source)
    copy_bytes(to, source)
    assert torch.equal(to, source)


def test_bytes_of_another_number_are_not_copied() -> None:
    with pytest.raises(AssertionError, match="2 bytes into 3"):
        copy_bytes(torch.zeros(3, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_a_copy_brings_no_threads_with_it() -> None:
    source, to = torch.ones(SIZE, dtype=torch.uint8), torch.zeros(SIZE, dtype=torch.uint8)

    def threads_brought() -> int:
        torch.set_num_threads(2)
        before = set(os.listdir("/proc/self/task"))
        copy_bytes(to, source)
        return len(set(os.listdir("/proc/self/task")) - before)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(threads_brought).result() == 0
    finally:
        torch.set_num_threads(threads)
