"""The adapters this server can name: aliases, folders under its roots, and those already met."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic

from adex_proto.adapter import AdapterKey, Tier
from adex_scheduler.engine import AdapterStatus
from adex_scheduler.front.tenants import Directory

CONFIG_NAME = "adapter_config.json"
# A listing is for people and dashboards: beyond this many nobody reads it.
LISTED_MAX = 10_000
# How deep below a root adapters are looked for: root/adapter and root/owner/adapter.
DEPTH_MAX = 2

# Folders are looked through again at most this often, however many ask.
LISTING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """One adapter as a listing shows it; None where nobody has read it yet."""

    name: str
    source: str
    root: str
    tier: str
    bundle_bytes: int | None = None
    rank: int | None = None
    status: AdapterStatus | None = None


def find_local_adapters(roots: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths of folders that hold an adapter, sorted; unreadable ones are passed over."""
    found: list[str] = []
    for root in roots:
        waiting = [(os.path.realpath(root), 0)]
        while waiting and len(found) < LISTED_MAX:
            folder, depth = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    below = [entry for entry in entries if not entry.name.startswith(".")]
                    names = [entry.name for entry in below]
                    folders = [entry.path for entry in below if entry.is_dir()]
            except OSError:
                continue
            if CONFIG_NAME in names:
                found.append(folder)
            elif depth < DEPTH_MAX:
                waiting += [(path, depth + 1) for path in folders]
    return tuple(sorted(set(found)))


class LocalAdapters:
    """The adapters found under the local roots, looked up beside the loop and kept for a while."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = tuple(roots)
        self._lock = asyncio.Lock()
        self._found: tuple[str, ...] = ()
        self._looked_at_s: float | None = None

    async def paths(self) -> tuple[str, ...]:
        """Absolute paths of the adapters' folders, sorted."""
        async with self._lock:
            looked = self._looked_at_s
            if looked is None or monotonic() - looked > LISTING_SECONDS:
                self._found = await asyncio.to_thread(find_local_adapters, self._roots)
                self._looked_at_s = monotonic()
            return self._found


def known_adapters(
    directory: Directory,
    roots: Sequence[str],
    paths: Sequence[str],
    statuses: Sequence[AdapterStatus],
    own_tenant: str = "",
) -> list[AdapterCard]:
    """Each adapter once, by its alias if it has one: aliases first, then the others by name.

    Names that belong to a credential are listed for its holder only, `own_tenant`.
    """
    statuses = [
        status
        for status in statuses
        if not status.key.credentialed or status.key.tenant == own_tenant
    ]
    places = [Path(os.path.realpath(root)) for root in roots]
    met = {_identity(status.key, places): status for status in statuses}
    cards: dict[str, AdapterCard] = {}
    named: set[str] = set()
    for alias, key in islice(directory.aliases.items(), LISTED_MAX):
        identity = _identity(key, places)
        named.add(identity)
        cards[alias] = card_of(alias, key, met.get(identity))
    if len(cards) == LISTED_MAX:
        return list(cards.values())
    others: dict[str, AdapterCard] = {}
    for status in statuses:
        identity = _identity(status.key, places)
        if identity not in named:
            name = _name_of(status.key, places)
            others.setdefault(name, card_of(name, status.key, status))
            named.add(identity)
    for path in paths:
        if path not in named:
            key = AdapterKey("", "local", path)
            name = _name_of(key, places)
            others.setdefault(name, card_of(name, key, None))
    cards.update((name, others[name]) for name in sorted(others) if name not in cards)
    return list(cards.values())[:LISTED_MAX]


def card_of(name: str, key: AdapterKey, status: AdapterStatus | None) -> AdapterCard:
    """One adapter, with what is known of it."""
    if status is None:
        return AdapterCard(name, key.source, key.name, Tier.ABSENT.name.lower())
    return AdapterCard(
        name,
        key.source,
        key.name,
        status.tier.name.lower(),
        status.bundle_bytes or None,
        status.rank_max or None,
        status,
    )


def _identity(key: AdapterKey, places: Sequence[Path]) -> str:
    """What two names of one adapter share: the folder for a local one."""
    if key.source != "local":
        return f"{key.source}:{key.name}@{key.revision}"
    for place in places:
        candidate = place / key.name
        if os.path.isabs(key.name) or candidate.exists():
            return os.path.realpath(candidate)
    return key.name


def _name_of(key: AdapterKey, places: Sequence[Path]) -> str:
    """The short name by which the same adapter can be asked for."""
    if key.source == "local" and os.path.isabs(key.name):
        for place in places:
            real = Path(os.path.realpath(key.name))
            if real.is_relative_to(place) and real != place:
                return str(real.relative_to(place))
    return f"{key.name}@{key.revision}" if key.revision else key.name
