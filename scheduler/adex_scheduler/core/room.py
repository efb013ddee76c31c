"""Where on the device an adapter's run of pages can be, and whom it displaces. Pure planning."""

from collections.abc import Iterable
from dataclasses import dataclass

from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.pool import PagePool


@dataclass(frozen=True, slots=True)
class Room:
    """Pages [first, first + pages) once `victims` are gone; the rest of them is loose now."""

    first: int
    victims: tuple[Adapter, ...]


def find_room(pages: int, pool: PagePool, candidates: Iterable[Adapter]) -> Room | None:
    """A run of `pages` pages, displacing as few and as early `candidates` as will do.

    Prefers the lowest free run, then the lowest among loose pages. Otherwise adds candidates in the
    order given until those chosen and the loose pages between them make a run, and then displaces
    only the ones inside it. None where even all candidates together leave no such run.
    """
    first = pool.find_free(pages)
    if first is None:
        first = pool.find_loose(pages)
    if first is not None:
        return Room(first, ())
    chosen: dict[int, Adapter] = {}
    start_of: dict[int, int] = {}
    for candidate in candidates:
        chosen[candidate.first_page] = candidate
        start_of[candidate.stop_page] = candidate.first_page
        start, stop = _widen(candidate, pool, chosen, start_of)
        if stop - start >= pages:
            return _fewest_victims(start, stop, pages, chosen)
    return None


def _widen(
    candidate: Adapter, pool: PagePool, chosen: dict[int, Adapter], start_of: dict[int, int]
) -> tuple[int, int]:
    """The run of loose pages and chosen adapters that `candidate` lies in."""
    start, stop = candidate.first_page, candidate.stop_page
    while True:
        wider_start, wider_stop = pool.widen(start, stop)
        wider_start = start_of.get(wider_start, wider_start)
        if wider_stop in chosen:
            wider_stop = chosen[wider_stop].stop_page
        if (wider_start, wider_stop) == (start, stop):
            return start, stop
        start, stop = wider_start, wider_stop


def _fewest_victims(start: int, stop: int, pages: int, chosen: dict[int, Adapter]) -> Room:
    """The window of `pages` within [start, stop) that touches the fewest, the lowest of equals."""
    inside = sorted(first for first in chosen if start <= first < stop)
    edges = {start, stop - pages}
    for first in inside:
        edges |= {first, chosen[first].stop_page, first - pages, chosen[first].stop_page - pages}
    best: Room | None = None
    for low in sorted(edge for edge in edges if start <= edge <= stop - pages):
        victims = tuple(
            chosen[first]
            for first in inside
            if first < low + pages and chosen[first].stop_page > low
        )
        if best is None or len(victims) < len(best.victims):
            best = Room(low, victims)
    assert best is not None
    return best
