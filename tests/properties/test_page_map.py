"""However a pool is used, its map shows every page that is not free, in few cells."""

from hypothesis import given
from hypothesis import strategies as st

from adex_scheduler.core.page_map import PageMap, page_map
from adex_scheduler.core.pool import PagePool

Runs = list[tuple[int, int]]


@st.composite
def pools(draw: st.DrawFn) -> tuple[PagePool, Runs, list[int]]:
    """A pool with adapters at its low end, blocks at its high one, and some blocks loose."""
    pool = PagePool(draw(st.integers(16, 3000)))
    runs: Runs = []
    for _ in range(draw(st.integers(0, 12))):
        count = draw(st.integers(1, 1 + pool.pages // 8))
        start = pool.find_free(count)
        if start is not None:
            pool.take_exact(start, start + count)
            runs.append((start, start + count))
    blocks = pool.take_pages(draw(st.integers(0, pool.pages_free))) or []
    given_back = draw(st.lists(st.sampled_from(blocks), unique=True)) if blocks else []
    pool.give(given_back)
    kept = [page for page in blocks if page not in set(given_back)]
    loose = kept[: draw(st.integers(0, len(kept)))]
    pool.loosen(loose)
    return pool, runs, loose


def drawn(shown: PageMap) -> tuple[int, int, int]:
    cells = [cell for stretch in shown.stretches for cell in stretch.cells]
    return (
        sum(cell.adapters for cell in cells),
        sum(cell.kv for cell in cells),
        sum(cell.prefix for cell in cells),
    )


@given(pools(), st.integers(8, 600))
def test_every_owned_page_is_in_a_cell_and_there_are_no_more_cells_than_allowed(
    made: tuple[PagePool, Runs, list[int]], cells_max: int
) -> None:
    pool, runs, loose = made
    shown = page_map(pool, runs, cells_max)
    adapters = sum(stop - start for start, stop in runs)
    owned = pool.pages - pool.pages_free
    assert drawn(shown) == (adapters, owned - adapters - len(loose), len(loose))
    assert sum(len(stretch.cells) for stretch in shown.stretches) <= cells_max


@given(pools(), st.integers(8, 600))
def test_stretches_are_in_order_begin_at_cells_and_leave_out_free_pages_only(
    made: tuple[PagePool, Runs, list[int]], cells_max: int
) -> None:
    pool, runs, _ = made
    shown = page_map(pool, runs, cells_max)
    before = 0
    for stretch in shown.stretches:
        assert before <= stretch.start < stretch.stop <= pool.pages
        assert stretch.start % shown.cell_pages == 0
        assert pool.count(before, stretch.start) == (stretch.start - before, 0)
        assert len(stretch.cells) == -(-(stretch.stop - stretch.start) // shown.cell_pages)
        before = stretch.stop
    assert pool.count(before, pool.pages) == (pool.pages - before, 0)
