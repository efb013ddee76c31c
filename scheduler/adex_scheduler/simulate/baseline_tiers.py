"""Where a baseline's adapters are: plain byte counts, and one rule for who must leave.

No pages, no fragments, no failures: what a baseline is compared for is its policy, and everything
else is made as kind to it as can be.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from adex_proto.adapter import AdapterKey, Tier
from adex_proto.outcome import Fetched, Held, Moved, WorkerInfo
from adex_proto.plan import AdapterCommand, Evict, Fetch, PageIn, Stage

FETCHES_MAX = 32
STAGES_MAX = 8
PAGE_INS_MAX = 4


class Copy(IntEnum):
    """Whether a tier holds the adapter."""

    NONE = 0
    COMING = 1
    HELD = 2


@dataclass(slots=True, eq=False)
class Record:
    """One adapter as a baseline knows it. `future` are its requests still to come, if foreseen."""

    name: str
    size: int
    slot: int
    device: Copy = Copy.NONE
    host: Copy = Copy.NONE
    disk: Copy = Copy.NONE
    pins: int = 0
    waiting: int = 0
    used_at: float = 0.0
    uses: deque[float] = field(default_factory=deque[float])
    future: deque[int] = field(default_factory=deque[int])


# Who of these leaves, now.
Victim = Callable[[Sequence[Record], float], Record]


def least_recent(records: Sequence[Record], now: float) -> Record:
    """LRU."""
    return min(records, key=lambda record: (record.used_at, record.slot))


def farthest_next(records: Sequence[Record], now: float) -> Record:
    """The one whose next request comes last, as only foresight can tell."""
    return max(records, key=lambda one: (one.future[0] if one.future else 2**60, -one.slot))


def least_score(records: Sequence[Record], now: float) -> Record:
    """Chameleon's: 0.45 frequency + 0.10 recency + 0.45 size, each as a percentile of these.

    Frequency counts the last five minutes.
    """
    for record in records:
        while record.uses and record.uses[0] < now - 300.0:
            record.uses.popleft()
    score = dict.fromkeys((record.slot for record in records), 0.0)
    terms: tuple[tuple[float, Callable[[Record], float]], ...] = (
        (0.45, lambda record: len(record.uses)),
        (0.10, lambda record: record.used_at),
        (0.45, lambda record: record.size),
    )
    for weight, term in terms:
        below, place, last = 0, 0, -1.0
        for place, record in enumerate(sorted(records, key=term)):
            value = term(record)
            below = place if value != last else below
            last = value
            score[record.slot] += weight * below
    return min(records, key=lambda record: (score[record.slot], record.slot))


@dataclass(slots=True)
class _Shelf:
    """One tier below the device: so many bytes, and who leaves when they are short."""

    bytes_max: float
    victim: Victim
    records: dict[str, Record] = field(default_factory=dict[str, Record])
    bytes_held: float = 0.0

    def add(self, record: Record) -> None:
        self.records[record.name] = record
        self.bytes_held += record.size

    def make_room(
        self, size: float, now: float, ahead: set[str], may: Callable[[Record], bool]
    ) -> list[Record] | None:
        """Those who have left for `size` bytes, or None and no change."""
        short = self.bytes_held + size - self.bytes_max
        if short <= 0:
            return []
        coming = Copy.COMING
        idle = [
            one
            for one in self.records.values()
            if one.name not in ahead and may(one) and coming not in (one.host, one.disk)
        ]
        leaving: list[Record] = []
        while short > 0:
            if not idle:
                return None
            leaving.append(self.victim(idle, now))
            idle.remove(leaving[-1])
            short -= leaving[-1].size
        for one in leaving:
            del self.records[one.name]
            self.bytes_held -= one.size
        return leaving


class BaselineTiers:
    """All adapters of one run, and the moves under way."""

    def __init__(self, sizes: Mapping[str, int], victim: Victim, info: WorkerInfo) -> None:
        self.records = {
            name: Record(name, size, slot)
            for slot, (name, size) in enumerate(sizes.items(), start=1)
        }
        self.resident: dict[str, Record] = {}
        self.device_bytes = 0
        self.gone: list[AdapterCommand] = []
        """Evictions from disk that the worker has not been told of yet."""
        self._host = _Shelf(info.host_bytes, victim)
        self._disk = _Shelf(info.disk_bytes, victim)
        self._victim = victim
        self._moving = {Tier.DISK: 0, Tier.HOST: 0, Tier.DEVICE: 0}

    def touch(self, record: Record, now: float) -> None:
        """The adapter is asked for."""
        record.used_at = now
        record.uses.append(now)

    @property
    def idle_links(self) -> bool:
        """Whether any link could take one more."""
        moving = self._moving
        return (
            moving[Tier.DISK] < FETCHES_MAX
            or moving[Tier.HOST] < STAGES_MAX
            or moving[Tier.DEVICE] < PAGE_INS_MAX
        )

    def hold(self, held: Held) -> None:
        """The worker has this copy from the start."""
        record = self.records[held.version.digest]
        record.disk = Copy.HELD
        self._disk.add(record)
        if held.tier is Tier.HOST:
            record.host = Copy.HELD
            self._host.add(record)

    def fetch(self, record: Record, now: float, ahead: set[str]) -> AdapterCommand | None:
        """Bring it to the disk, if a link is free and others may leave for it."""
        if record.disk is not Copy.NONE or self._moving[Tier.DISK] >= FETCHES_MAX:
            return None
        # What is held nearer stays on disk too.
        leaving = self._disk.make_room(record.size, now, ahead, lambda one: one.host is Copy.NONE)
        if leaving is None:
            return None
        for victim in leaving:
            victim.disk = Copy.NONE
            self.gone.append(Evict(victim.name, Tier.DISK))
        record.disk = Copy.COMING
        self._disk.add(record)
        self._moving[Tier.DISK] += 1
        return Fetch(AdapterKey("", "local", record.name))

    def stage(self, record: Record, now: float, ahead: set[str]) -> AdapterCommand | None:
        """Bring it to host memory, if a link is free and others may leave for it."""
        if record.host is not Copy.NONE or self._moving[Tier.HOST] >= STAGES_MAX:
            return None
        leaving = self._host.make_room(record.size, now, ahead, lambda _: True)
        if leaving is None:
            return None
        for victim in leaving:
            victim.host = Copy.NONE
        record.host = Copy.COMING
        self._host.add(record)
        self._moving[Tier.HOST] += 1
        return Stage(record.name)

    def page_in(self, record: Record) -> AdapterCommand | None:
        """Bring it to the device, where room has been made, if a link is free."""
        if self._moving[Tier.DEVICE] >= PAGE_INS_MAX:
            return None
        record.device = Copy.COMING
        self.device_bytes += record.size
        self._moving[Tier.DEVICE] += 1
        return PageIn(record.name, record.slot, 0, 1)

    def make_room(self, size: float, now: float, ahead: set[str], slots: int | None) -> bool:
        """Let adapters leave the device until `size` bytes, and a slot, are gained; or none leave.

        Those pinned and those of `ahead`, whom earlier requests wait for, stay.
        """
        idle = [one for one in self.resident.values() if not one.pins and one.name not in ahead]
        gained, leaving = 0.0, list[Record]()
        count = len(self.resident) + self._moving[Tier.DEVICE]
        while gained < size or (slots is not None and count - len(leaving) >= slots):
            if not idle:
                return False
            victim = self._victim(idle, now)
            idle.remove(victim)
            leaving.append(victim)
            gained += victim.size
        for victim in leaving:
            self.drop(victim)
        return True

    def drop(self, record: Record) -> None:
        """The device copy goes."""
        del self.resident[record.name]
        record.device = Copy.NONE
        self.device_bytes -= record.size

    def on_event(self, event: Fetched | Moved) -> None:
        """A move has ended; the modelled worker's never fail."""
        match event:
            case Fetched(key):
                self.records[key.name].disk = Copy.HELD
                self._moving[Tier.DISK] -= 1
            case Moved(digest, tier):
                record = self.records[digest]
                self._moving[tier] -= 1
                if tier is Tier.HOST:
                    record.host = Copy.HELD
                else:
                    record.device = Copy.HELD
                    self.resident[digest] = record
