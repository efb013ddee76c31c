"""What moving adapters costs on each link, learned from commands sent and answers come.

A link is one way towards the device: from one kind of source to the disk, from the disk to host
memory, from there to the device. Its cost is a fixed time and a time per byte, fitted to what has
been observed, the latest counting most. What stands in the way of a transfer is told apart from the
transfer: its time begins when the one before it on the same link has ended.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import AdapterEvent, Evicted, Fetched, FetchFailed, Moved, MoveFailed
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage
from adex_scheduler.core.adapters import Adapter
from adex_scheduler.core.fit import CostFit

# Names wait, and links are told apart, by source.
OTHER = ""
SOURCES = ("local", "hub", "s3", OTHER)

# Utilisation is that of about so many seconds, and never counted as more than this.
_UTILISATION_S = 20.0
_UTILISATION_MAX = 0.95
# A small and a large bundle.
_TYPICAL = (1e6, 256e6)


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """One link as it is now. `price_s_per_byte` is what a byte on it keeps others waiting."""

    fixed_s: float
    bytes_per_s: float
    utilisation: float
    backlog_s: float
    price_s_per_byte: float


@dataclass(slots=True)
class Link:
    """One link: what a transfer costs on it, and how busy it is."""

    cost: CostFit
    under_way: int = 0
    under_way_bytes: int = 0
    _done_at: float = -math.inf
    _busy: float = 0.0
    _busy_at: float = 0.0

    @classmethod
    def assumed(cls, fixed_s: float, bytes_per_s: float) -> Self:
        """A link of which nothing has been seen yet."""
        return cls(CostFit(fixed_s, 1.0 / bytes_per_s, _TYPICAL))

    def seconds(self, size: float) -> float:
        """How long a transfer of `size` bytes takes on the link alone."""
        return self.cost.seconds(size)

    @property
    def backlog_s(self) -> float:
        """How long until what is under way has come."""
        cost = self.cost
        return self.under_way * cost.fixed_s + self.under_way_bytes * cost.s_per_unit

    def utilisation(self, now: float) -> float:
        """The share of the last seconds in which something was under way."""
        kept = math.exp(-(now - self._busy_at) / _UTILISATION_S)
        return self._busy * kept + (1.0 - kept) * (self.under_way > 0)

    def price(self, now: float) -> float:
        """Seconds that one more byte on the link costs those behind it: the queue's length grows
        with utilisation u as u / (1 - u).
        """
        busy = min(self.utilisation(now), _UTILISATION_MAX)
        return busy / (1.0 - busy) * self.cost.s_per_unit

    def begin(self, size: int, now: float) -> None:
        """A transfer is asked for; size 0 where nobody knows it yet."""
        self._note_time(now)
        self.under_way += 1
        self.under_way_bytes += size

    def end(self, asked_size: int, size: int, sent_at: float, now: float) -> None:
        """It has been answered; `size` 0 where it moved nothing that tells of the link."""
        self._note_time(now)
        self.under_way -= 1
        self.under_way_bytes -= asked_size
        if size:
            self.cost.observe(float(size), now - max(sent_at, self._done_at))
        self._done_at = now

    def statistics(self, now: float) -> LinkStatistics:
        """All of it."""
        utilisation, price = self.utilisation(now), self.price(now)
        return LinkStatistics(
            self.cost.fixed_s, 1.0 / self.cost.s_per_unit, utilisation, self.backlog_s, price
        )

    def _note_time(self, now: float) -> None:
        self._busy, self._busy_at = self.utilisation(now), now


def _links() -> dict[str, Link]:
    """Every link by name, as it may be before anything is known of it."""
    links = {f"fetch_{source or 'other'}": Link.assumed(0.1, 1e9) for source in SOURCES}
    return links | {"stage": Link.assumed(0.005, 3e9), "page_in": Link.assumed(0.0005, 20e9)}


class Links:
    """All links of one worker, and the transfers under way on them."""

    def __init__(self) -> None:
        self._links = _links()
        # By what was moved: the link, the size as it was asked for, and when.
        self._under_way: dict[tuple[Tier, AdapterKey | str], tuple[Link, int, float]] = {}

    def clear(self, now: float) -> None:
        """Nothing is under way any more; what the links cost stays known."""
        for link, size, sent_at in self._under_way.values():
            link.end(size, 0, sent_at, now)
        self._under_way.clear()

    def into(self, tier: Tier, source: str = OTHER) -> Link:
        """The link by which a copy comes to `tier`, to the disk from `source`."""
        match tier:
            case Tier.DEVICE:
                return self._links["page_in"]
            case Tier.HOST:
                return self._links["stage"]
            case _:
                return self._links[f"fetch_{(source if source in SOURCES else OTHER) or 'other'}"]

    def note_sent(
        self, command: AdapterCommand, adapters: Mapping[str, Adapter], now: float
    ) -> None:
        """The command leaves now."""
        match command:
            case Fetch(key):
                # How large it is will only be known when it has come.
                self._begin((Tier.DISK, key), self.into(Tier.DISK, key.source), 0, now)
            case Stage(digest):
                size = _bundle_bytes(adapters, digest)
                self._begin((Tier.HOST, digest), self.into(Tier.HOST), size, now)
            case PageIn(digest):
                size = _bundle_bytes(adapters, digest)
                self._begin((Tier.DEVICE, digest), self.into(Tier.DEVICE), size, now)
            case Evict():
                pass

    def _begin(
        self, moved: tuple[Tier, AdapterKey | str], link: Link, size: int, now: float
    ) -> None:
        link.begin(size, now)
        self._under_way[moved] = link, size, now

    def note_answer(self, event: AdapterEvent, adapters: Mapping[str, Adapter], now: float) -> None:
        """A command has been answered; called before what it changes is entered in the books."""
        moved: tuple[Tier, AdapterKey | str]
        moved_bytes = 0
        match event:
            case Fetched(key, version):
                moved = Tier.DISK, key
                # A version that is there already has only been looked up.
                moved_bytes = 0 if version.digest in adapters else version.bundle_bytes
            case Moved(digest, tier):
                moved = tier, digest
                moved_bytes = _bundle_bytes(adapters, digest)
            case FetchFailed(key):
                moved = Tier.DISK, key
            case MoveFailed(digest, tier):
                moved = tier, digest
            case Evicted():
                return
        known = self._under_way.pop(moved, None)
        if known is not None:
            link, asked_size, sent_at = known
            link.end(asked_size, moved_bytes, sent_at, now)

    def statistics(self, now: float) -> Mapping[str, LinkStatistics]:
        """Every link by name."""
        return {name: link.statistics(now) for name, link in self._links.items()}


def _bundle_bytes(adapters: Mapping[str, Adapter], digest: str) -> int:
    adapter = adapters.get(digest)
    return adapter.version.bundle_bytes if adapter else 0
