"""One arena, seen as KV blocks and as runs of adapter pages."""

from pathlib import Path
from typing import Any

import pytest
import torch

from adex_kernels.layout import Group
from adex_worker.adapters.arena import Arena, kv_page_bytes


def test_views_lie_in_the_arena_at_the_pages_that_were_given(world: Any) -> None:
    world.write("a")
    digest = world.page_in("a", slot=1, first_page=11)
    version = world.store.fetch(world.key("a"))
    start = world.arena.bytes.data_ptr() + 11 * world.arena.page_bytes
    stop = start + version.bundle_bytes
    for layer in range(2):
        for group in Group:
            weights = world.store.slots.group(1, layer, group)
            for matrix in (weights.a, *(part[4] for part in weights.slices)):
                assert start <= matrix.data_ptr() < stop
                assert matrix.data_ptr() % 64 == 0
                assert matrix.is_contiguous()
    assert not world.arena.holds_adapter(10)
    assert world.arena.holds_adapter(11)
    assert not world.arena.holds_adapter(11 + world.arena.pages_for(version.bundle_bytes))
    assert digest == version.digest


def test_arena_gives_the_same_memory_as_pages_and_as_kv_blocks() -> None:
    page_bytes = kv_page_bytes(16, 2, 2, 16, torch.bfloat16)
    assert page_bytes == 16 * 2 * 2 * 2 * 16 * 2
    arena = Arena(pages=5, page_bytes=page_bytes, dtype=torch.bfloat16, device="cpu")
    kv = arena.kv(layers=2, block_tokens=16, kv_heads=2, head_dim=16)
    assert kv.shape == (5, 2, 2, 16, 2, 16)
    kv[3].fill_(1.5)
    assert (arena.run_elements(3, page_bytes // 2) == 1.5).all()
    assert kv.data_ptr() == arena.bytes.data_ptr()
    assert not kv[2].any()


def test_an_arena_of_unaligned_pages_or_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 64"):
        Arena(pages=1, page_bytes=100, dtype=torch.float32, device="cpu")
    arena = Arena(pages=1, page_bytes=8192, dtype=torch.float32, device="cpu")
    with pytest.raises(ValueError, match="4096 bytes, a page has 8192"):
        arena.kv(layers=1, block_tokens=16, kv_heads=2, head_dim=16)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's map of the process")
def test_the_pool_on_a_cpu_is_memory_of_this_process_alone() -> None:
    """Only such memory is given huge pages without the operator's leave."""
    arena = Arena(pages=64, page_bytes=1 << 16, dtype=torch.float32, device="cpu")
    address = arena.bytes.data_ptr()
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, rights = line.split()[:2]
        start, stop = (int(bound, 16) for bound in bounds.split("-"))
        if start <= address < stop:
            assert rights == "rw-p"
            break
    else:
        raise AssertionError("the pool is mapped nowhere")
