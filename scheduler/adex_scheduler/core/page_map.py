"""The device pool drawn small: who owns the pages, a cell for every so many of them.

A pool may have a hundred thousand pages of which nearly all are free. Long free runs are left out,
so that what is there can be seen; cells lie at multiples of their size, so that they keep their
place while things come and go around them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from adex_scheduler.core.pool import PagePool

# A free run of at least this part of the pool is left out of the map.
_GAP_PART = 16


@dataclass(frozen=True, slots=True)
class Cell:
    """Pages of one cell by owner; the rest of them is free."""

    adapters: int
    kv: int
    prefix: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Neighbouring cells; the first begins at page `start`, the last ends at `stop`."""

    start: int
    stop: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class PageMap:
    """The pool in cells of `cell_pages` pages each; between two stretches all pages are free."""

    pages: int
    cell_pages: int
    stretches: tuple[Stretch, ...]


def page_map(pool: PagePool, runs: Iterable[tuple[int, int]], cells_max: int) -> PageMap:
    """The map of a pool in which adapters own the `runs` [start, stop); at most `cells_max` cells.

    Costs one look at each page, by the interpreter's own counting, and one at each run.
    """
    cell_pages, bounds = _scaled(pool, cells_max)
    adapters: dict[int, int] = {}
    for start, stop in runs:
        for cell in range(start // cell_pages, -(-stop // cell_pages)):
            inside = min(stop, (cell + 1) * cell_pages) - max(start, cell * cell_pages)
            adapters[cell] = adapters.get(cell, 0) + inside
    stretches = tuple(
        Stretch(
            first * cell_pages,
            min(last * cell_pages, pool.pages),
            tuple([_cell(pool, n, cell_pages, adapters.get(n, 0)) for n in range(first, last)]),
        )
        for first, last in bounds
    )
    return PageMap(pool.pages, cell_pages, stretches)


def _cell(pool: PagePool, number: int, cell_pages: int, adapters: int) -> Cell:
    start, stop = number * cell_pages, min((number + 1) * cell_pages, pool.pages)
    free, prefix = pool.count(start, stop)
    owned = stop - start - free - prefix
    # A run that is being cleared counts for its old and its new owner.
    adapters = min(adapters, owned)
    return Cell(adapters, owned - adapters, prefix)


def _scaled(pool: PagePool, cells_max: int) -> tuple[int, list[tuple[int, int]]]:
    """Pages in a cell, a power of two, and the cells [first, last) of each stretch."""
    gaps = pool.gaps(pool.pages // _GAP_PART) if pool.pages > cells_max else []
    cell_pages = 1
    while True:
        bounds: list[tuple[int, int]] = []
        first = 0
        for start, stop in gaps:
            # A cell that the gap covers in part belongs to the stretch beside it.
            last, after = -(-start // cell_pages), stop // cell_pages
            if after > last:
                bounds.append((first, last))
                first = after
        bounds.append((first, -(-pool.pages // cell_pages)))
        if sum(last - first for first, last in bounds) <= cells_max:
            return cell_pages, [(first, last) for first, last in bounds if last > first]
        cell_pages *= 2
