"""Where on the device an adapter's run of pages can be, and whom it displaces. Pure planning."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.pool import PagePool

_YES = b"\x01"
_NO = b"\x00"


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


def find_among_idle(pages: int, pool: PagePool, idle: Iterable[Adapter]) -> Room | None:
    """The lowest run that is left if all the `idle` go, whose runs the pool has on offer.

    It displaces those inside it. What it costs hardly grows with how many are idle.
    """
    first = pool.find_clearable(pages)
    if first is None:
        return None
    stop = first + pages
    return Room(first, tuple([a for a in idle if a.first_page < stop and a.stop_page > first]))


def _displacing(pages: int, loose: bytearray, candidates: Iterable[Adapter]) -> Room | None:
    """A run of `loose` pages, in which there is none as it is, and of the candidates'.

    `loose` is the caller's to give away: the candidates' pages are marked in it, one by one.
    """
    chosen: dict[int, Adapter] = {}
    for one in candidates:
        chosen[one.first_page] = one
        loose[one.first_page : one.stop_page] = _YES * one.pages
        # Only around these pages can a run have grown as long, and none was before them.
        start = loose.rfind(_NO, 0, one.first_page) + 1
        above = loose.find(_NO, one.stop_page)
        stop = above if above >= 0 else len(loose)
        if stop - start >= pages:
            return _fewest_victims(start, stop, pages, chosen)
    return None


def _fewest_victims(start: int, stop: int, pages: int, chosen: dict[int, Adapter]) -> Room:
    """The window of `pages` in the run [start, stop) that touches the fewest, the lowest of equals.

    `chosen` are adapters by their first page; those within the run make it up with loose pages.
    """
    firsts = sorted(first for first in chosen if start <= first < stop)
    stops = [chosen[first].stop_page for first in firsts]

    def touched(low: int) -> slice:
        return slice(bisect_right(stops, low), bisect_left(firsts, low + pages))

    best, fewest = start, len(firsts) + 1
    # As the window goes up, it touches fewer only where it leaves one behind.
    for low in (start, *stops):
        count = touched(low).stop - touched(low).start
        if count < fewest and low + pages <= stop:
            best, fewest = low, count
    return Room(best, tuple([chosen[first] for first in firsts[touched(best)]]))
