"""Adapters by name and by content: what is known of each, and where its bytes are."""

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from itertools import islice

from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import AdexError
from adex_scheduler.core.sequence import Sequence


class Residence(Enum):
    """Where an adapter version is on its way between the tiers.

    The disk always has it (a version that leaves the disk is forgotten). STAGING, PLACING (room is
    being made), PAGING_IN and the LEAVING ones are moves that the worker has not answered yet.
    DRAINING is on the device for those who use it and for nobody else, and leaves after them.
    """

    DISK = "disk"
    STAGING = "staging"
    HOST = "host"
    PLACING = "placing"
    PAGING_IN = "paging_in"
    DEVICE = "device"
    DRAINING = "draining"
    LEAVING_DEVICE = "leaving_device"
    LEAVING_HOST = "leaving_host"
    LEAVING_DISK = "leaving_disk"

    # Each is one object, and looked up at every turn.
    __hash__ = object.__hash__


MOVES: dict[Residence, frozenset[Residence]] = {
    Residence.DISK: frozenset({Residence.STAGING, Residence.LEAVING_DISK}),
    Residence.STAGING: frozenset({Residence.HOST, Residence.DISK}),
    Residence.HOST: frozenset({Residence.PLACING, Residence.LEAVING_HOST}),
    Residence.PLACING: frozenset({Residence.PAGING_IN}),
    Residence.PAGING_IN: frozenset({Residence.DEVICE, Residence.HOST}),
    Residence.DEVICE: frozenset({Residence.DRAINING, Residence.LEAVING_DEVICE}),
    Residence.DRAINING: frozenset({Residence.LEAVING_DEVICE}),
    Residence.LEAVING_DEVICE: frozenset({Residence.HOST, Residence.LEAVING_HOST, Residence.DISK}),
    Residence.LEAVING_HOST: frozenset({Residence.DISK}),
    Residence.LEAVING_DISK: frozenset(),
}

_TIERS = {
    Residence.HOST: Tier.HOST,
    Residence.PLACING: Tier.HOST,
    Residence.PAGING_IN: Tier.HOST,
    Residence.LEAVING_HOST: Tier.HOST,
    Residence.DEVICE: Tier.DEVICE,
    Residence.DRAINING: Tier.DEVICE,
    Residence.LEAVING_DEVICE: Tier.DEVICE,
    Residence.LEAVING_DISK: Tier.ABSENT,
}


AT_REST = frozenset({Residence.DISK, Residence.HOST, Residence.DEVICE})
"""Where nothing is under way."""


class HostCopy(Enum):
    """Whether host memory holds the bundle; beside a device copy it may go on its own."""

    NONE = "none"
    HELD = "held"
    LEAVING = "leaving"


@dataclass(slots=True, eq=False)
class Adapter:
    """One version: its bytes, its place, its pins, and who waits for it.

    `pins` counts the sequences whose steps may use the device copy. `waiting` holds the others that
    are bound to this version, by number. While PLACING, `missing` counts the evictions whose pages
    it still waits for.
    """

    version: AdapterVersion
    pages: int
    residence: Residence = Residence.DISK
    host: HostCopy = HostCopy.NONE
    slot: int = 0
    first_page: int = -1
    pins: int = 0
    missing: int = 0
    claimed_by: "Adapter | None" = None
    """The adapter whose room this one's eviction makes."""
    drained_for: int = -1
    """The sequence for whose adapter this one drains."""
    placed_at: float = 0.0
    placed_after: int = 0
    """When its turn on the device began: the time, and the admissions before."""
    retries: int = 0
    used_at: float = 0.0
    waiting: dict[int, Sequence] = field(default_factory=dict[int, Sequence])
    names: dict[AdapterKey, None] = field(default_factory=dict[AdapterKey, None])
    keepers: dict[AdapterKey, Tier] = field(default_factory=dict[AdapterKey, Tier])
    """The names an operator has pinned, with the tier each is kept in."""
    kept: Tier = Tier.ABSENT
    """The nearest of these tiers."""
    groups: int = 0
    """Where `tiers` has it among others, as bits."""

    @property
    def digest(self) -> str:
        return self.version.digest

    @property
    def users(self) -> int:
        """Living sequences bound to this version."""
        return self.pins + len(self.waiting)

    @property
    def tier(self) -> Tier:
        """The nearest tier that holds it for certain."""
        return _TIERS.get(self.residence, Tier.DISK)

    @property
    def at_hand(self) -> Tier:
        """Where one more sequence finds it: a copy that leaves serves nobody new."""
        if self.residence is Residence.DEVICE:
            return Tier.DEVICE
        if self.residence is Residence.LEAVING_DISK:
            return Tier.ABSENT
        return Tier.HOST if self.host is HostCopy.HELD else Tier.DISK

    @property
    def stop_page(self) -> int:
        return self.first_page + self.pages

    def first_waiting(self) -> int:
        """The number of the oldest sequence that waits for it."""
        return min(self.waiting)

    def keep(self, key: AdapterKey, tier: Tier) -> None:
        """A pinned name keeps it in `tier` from now on; ABSENT: no longer."""
        self.keepers[key] = tier
        if tier is Tier.ABSENT:
            del self.keepers[key]
        self.kept = max(self.keepers.values(), default=Tier.ABSENT)

    def move(self, to: Residence) -> None:
        """Go on to another residence; only what MOVES allows."""
        assert to in MOVES[self.residence], f"{self.digest}: {self.residence} -> {to}"
        self.residence = to


@dataclass(slots=True, eq=False)
class Alias:
    """A name: what it was last resolved to, or why it could not be, and who waits to learn it."""

    key: AdapterKey
    digest: str | None = None
    resolved_at: float = 0.0
    fetching: bool = False
    error: AdexError | None = None
    failed_until: float = 0.0
    found_full: int = 0
    """How often in a row copies had to leave a full disk for what it means."""
    pinned: bool = False
    """An operator has pinned it: it is not forgotten."""
    asked_by: Sequence | None = None
    """For whom it is being fetched, if not only to be known anew."""
    waiting: dict[int, Sequence] = field(default_factory=dict[int, Sequence])


class Names:
    """All names requests have used lately. Bounded: the longest unused are forgotten first."""

    def __init__(self, aliases_max: int) -> None:
        self._aliases_max = aliases_max
        self._aliases: OrderedDict[AdapterKey, Alias] = OrderedDict()

    def __len__(self) -> int:
        return len(self._aliases)

    def get(self, key: AdapterKey) -> Alias | None:
        """The name as it is known, if it is."""
        return self._aliases.get(key)

    def all(self) -> list[Alias]:
        """Every name, the longest unused first."""
        return list(self._aliases.values())

    def forget(self, alias: Alias) -> None:
        """Know nothing of the name any more; nobody waits for it."""
        assert not alias.fetching
        assert not alias.waiting
        del self._aliases[alias.key]

    def latest(self, count: int) -> list[Alias]:
        """The `count` names used last, the latest first."""
        return list(islice(reversed(self._aliases.values()), count))

    def use(self, key: AdapterKey) -> tuple[Alias, list[Alias]]:
        """The name, known from now on, and the names forgotten in its favour.

        Names that are pinned or that somebody waits for stay, so there may be as many more than
        `aliases_max`.
        """
        alias = self._aliases.get(key)
        if alias is not None:
            self._aliases.move_to_end(key)
            return alias, []
        alias = self._aliases[key] = Alias(key)
        forgotten: list[Alias] = []
        for _ in range(len(self._aliases) - 1):
            if len(self._aliases) <= self._aliases_max:
                break
            oldest_key, oldest = next(iter(self._aliases.items()))
            if oldest.fetching or oldest.waiting or oldest.pinned:
                self._aliases.move_to_end(oldest_key)
            else:
                del self._aliases[oldest_key]
                forgotten.append(oldest)
        return alias, forgotten
