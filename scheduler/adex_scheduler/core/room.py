"""Where on the device an adapter's run of pages can be, and whom it displaces. Pure planning."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.pool import PagePool

_YES = b"\x01"
_NO = b"\x00"
# Candidates that are tried together at first.
_FIRST_CHOSEN = 8


@dataclass(frozen=True, slots=True)
class Room:
    """Pages [first, first + pages) once `victims` are gone; the rest of them is loose now."""

    first: int
    victims: tuple[Adapter, ...]


def find_room(
    pages: int, pool: PagePool, candidates: Iterable[Adapter], sooner: Iterable[Adapter] = ()
) -> Room | None:
    """A run of `pages` pages, displacing as few and as early `candidates` as will do.

    Prefers the lowest free run; then one of free pages and of those `sooner`, who leave before what
    is loose; then the lowest among loose pages. Otherwise adds candidates in the order given until
    those chosen and the loose pages between them make a run, and then displaces only the ones
    inside it. None where even all candidates together leave no such run.
    """
    first = pool.find_free(pages)
    if first is not None:
        return Room(first, ())
    room = _displacing(pages, pool.free_pages(), sooner)
    if room is not None:
        return room
    first = pool.find_loose(pages)
    if first is not None:
        return Room(first, ())
    return _displacing(pages, pool.loose_pages(), candidates)


def _displacing(pages: int, loose: bytearray, candidates: Iterable[Adapter]) -> Room | None:
    """A run of `loose` pages, in which there is none as it is, and of the candidates'."""
    run = _YES * pages
    chosen: list[Adapter] = []
    # More at a time as it goes on: a search of the map costs as much as many candidates.
    rest, count = iter(candidates), _FIRST_CHOSEN
    while some := list(islice(rest, count)):
        with_some = _with(loose, some)
        if with_some.find(run) >= 0:
            # The run needs the last of the fewest that make it, and it is the only one so far.
            fewest = bisect_left(
                range(1, len(some)), x=True, key=lambda k: _with(loose, some[:k]).find(run) >= 0
            )
            chosen += some[: fewest + 1]
            return _fewest_victims(_with(loose, some[: fewest + 1]), pages, chosen)
        loose = with_some
        chosen += some
        count *= 2
    return None


def _with(loose: bytearray, adapters: list[Adapter]) -> bytearray:
    """The map of loose pages if these adapters' were too."""
    wider = bytearray(loose)
    for adapter in adapters:
        wider[adapter.first_page : adapter.stop_page] = _YES * adapter.pages
    return wider


def _fewest_victims(loose: bytearray, pages: int, adapters: list[Adapter]) -> Room:
    """The window of `pages` in the first run as long that touches the fewest, the lowest of equals.

    `loose` are the pages that are loose once `adapters` are gone.
    """
    start = loose.find(_YES * pages)
    above = loose.find(_NO, start)
    stop = above if above >= 0 else len(loose)
    chosen = {one.first_page: one for one in adapters if start <= one.first_page < stop}
    inside = sorted(chosen)
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
