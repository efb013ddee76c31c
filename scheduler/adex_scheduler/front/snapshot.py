"""What the page at /ui is told: a scene as JSON, whole or as what changed since another; pure.

It names what /v1/models names too, and nothing else: an adapter without a public name appears by
the beginning of its digest, and a name that neither is listed nor has meant anything not at all,
for it may be a private one that was asked for without its credential. Texts, tokens and tenants do
not appear either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from adex_proto.adapter import AdapterKey
from adex_scheduler.core.page_map import PageMap
from adex_scheduler.core.picture import AdapterView, QueueView
from adex_scheduler.engine import Entry, Scene, Second
from adex_scheduler.front.tenants import Directory

# Enough of a digest to tell two adapters apart, as in the logs.
_ID_CHARACTERS = 12
# Names of adapters that nobody has asked for, shown at their source.
SOURCE_NAMES_MAX = 60
# A second goes on changing until it is over, and a snapshot may come a little late.
_SECONDS_AGAIN = 3
_SIXTEENTHS = "0123456789abcdefg"

Json = dict[str, object]


class Labels:
    """The name a public key is shown by: its alias, its place below a root, or what it is."""

    def __init__(self, directory: Directory, roots: Sequence[str]) -> None:
        """`roots` are absolute, also in the form without links."""
        self._aliases = {key: alias for alias, key in directory.aliases.items()}
        self._roots = tuple(f"{root.rstrip('/')}/" for root in roots)

    def of(self, key: AdapterKey) -> str:
        """The key's label."""
        alias = self._aliases.get(key)
        if alias is not None:
            return alias
        if key.source == "local":
            for root in self._roots:
                if key.name.startswith(root):
                    return key.name.removeprefix(root)
        return f"{key.name}@{key.revision}" if key.revision else key.name


@dataclass(frozen=True)
class Snapshot:
    """One moment. `scene` is None until a worker has said hello; `known` are listed adapters.

    `model` is the base model's public name.
    """

    scene: Scene | None
    model: str
    labels: Labels
    known: tuple[str, ...]

    @cached_property
    def tiles(self) -> Mapping[str, Json]:
        """The adapters used last, by id."""
        if self.scene is None:
            return {}
        views = self.scene.picture.adapters
        named = [(view, self.name(view.key, view.digest)) for view in views]
        tiles = [_tile(view, name) for view, name in named if view.digest or name]
        return {str(tile["id"]): tile for tile in tiles}

    def name(self, key: AdapterKey | None, digest: str) -> str | None:
        """The key's label, where anybody may read it; `digest` is what it has come to mean."""
        if key is None:
            return None
        label = self.labels.of(key)
        return label if digest or label in self._listed else None

    @cached_property
    def _listed(self) -> frozenset[str]:
        return frozenset(self.known)

    @cached_property
    def whole(self) -> Json:
        """Everything, for one who has seen nothing."""
        told: Json = {"whole": True, "source": self._source()}
        if self.scene is None:
            return told | {"connected": False}
        return told | {
            **self._state(self.scene),
            "server": _server(self.scene, self.model),
            "tiles": list(self.tiles.values()),
            "gone": [],
            "map": _map(self.scene.picture.map),
            "log": [self._entry(entry) for entry in self.scene.entries],
            "seconds": [_second(second) for second in self.scene.seconds],
        }

    def since(self, before: "Snapshot") -> Json:
        """What one who has seen `before` needs to know."""
        scene, old = self.scene, before.scene
        if scene is None or old is None or scene.info != old.info:
            return self.whole
        told = self._state(scene)
        told["tiles"] = [t for key, t in self.tiles.items() if before.tiles.get(key) != t]
        told["gone"] = [key for key in before.tiles if key not in self.tiles]
        if scene.picture.map != old.picture.map:
            told["map"] = _map(scene.picture.map)
        if self.known is not before.known:
            told["source"] = self._source()
        seen = old.entries[-1].number if old.entries else 0
        told["log"] = [self._entry(entry) for entry in scene.entries if entry.number > seen]
        again = old.picture.at - _SECONDS_AGAIN
        told["seconds"] = [_second(second) for second in scene.seconds if second.at >= again]
        return told

    def _source(self) -> Json:
        return {"count": len(self.known), "names": self.known[:SOURCE_NAMES_MAX]}

    def _state(self, scene: Scene) -> Json:
        queues = [_queue(one, self.name(one.key, one.digest)) for one in scene.picture.queues]
        return {**_state(scene), "queues": queues}

    def _entry(self, entry: Entry) -> Json:
        return _entry(entry, self.name(entry.key, entry.digest))


def _server(scene: Scene, model: str) -> Json:
    info = scene.info
    return {
        "model": model,
        "architecture": info.architecture,
        "dtype": info.dtype,
        "device": info.device,
        "pages": info.pages,
        "page_bytes": info.page_bytes,
        "slots": info.slots_max,
        "host_bytes": info.host_bytes,
        "disk_bytes": info.disk_bytes,
        "sequences": info.step_sequences_max,
    }


def _state(scene: Scene) -> Json:
    """What is small or changes all the time."""
    picture = scene.picture
    return {
        "at": round(picture.at, 3),
        "connected": picture.connected,
        "draining": scene.draining,
        "step": picture.step,
        "running": picture.running,
        "waiting": picture.waiting,
        "waiting_for_adapter": picture.waiting_for_adapter,
        "preemptions": picture.preemptions,
        "pages": {
            "adapters": picture.pages_adapters,
            "kv": picture.pages_kv,
            "prefix": picture.pages_prefix,
            "free": picture.pages_free,
        },
        "tiers": {
            "device": {"count": picture.on_device},
            "host": {"count": picture.in_host, "bytes": picture.host_bytes},
            "disk": {"count": picture.on_disk, "bytes": picture.disk_bytes},
        },
        "names": picture.names,
        "segments": [
            [_id(segment.digest), segment.decode_rows, segment.prefill_rows]
            for segment in picture.segments
        ],
        "sequences": [
            [_id(one.digest), one.prompt, one.computed, one.written, one.written_max]
            for one in picture.sequences
        ],
    }


def _queue(queue: QueueView, name: str | None) -> Json:
    return {
        "tenant": queue.tenant,
        "id": _id(queue.digest),
        "name": name,
        "base": queue.base,
        "waiting": queue.waiting,
        "for_adapter": queue.for_adapter,
        "since": round(queue.since, 3),
    }


def _id(digest: str) -> str:
    return digest[:_ID_CHARACTERS]


def _tile(view: AdapterView, name: str | None) -> Json:
    return {
        # A name without a version has nothing else to be told apart by.
        "id": _id(view.digest) or f"?{name}",
        "name": name,
        "state": view.state,
        "tier": view.tier.name.lower(),
        "code": view.code,
        "in_host": view.in_host,
        "bytes": view.bundle_bytes,
        "rank": view.rank,
        "pages": view.pages,
        "page": view.first_page,
        "running": view.running,
        "waiting": view.waiting,
    }


def _map(drawn: PageMap) -> Json:
    """Each cell as three characters: sixteenths of adapters, of KV, of prefixes kept for reuse."""
    cell_pages = drawn.cell_pages
    return {
        "cell_pages": cell_pages,
        "stretches": [
            {
                "start": stretch.start,
                "stop": stretch.stop,
                "cells": "".join(
                    _sixteenths(pages, cell_pages)
                    for cell in stretch.cells
                    for pages in (cell.adapters, cell.kv, cell.prefix)
                ),
            }
            for stretch in drawn.stretches
        ],
    }


def _sixteenths(pages: int, cell_pages: int) -> str:
    """Rounded up, so that a single page of many can be seen."""
    return _SIXTEENTHS[-(-pages * 16 // cell_pages)]


def _entry(entry: Entry, name: str | None) -> Json:
    return {
        "n": entry.number,
        "at": round(entry.at, 3),
        "what": entry.what.value,
        "name": name,
        "id": _id(entry.digest),
        "tier": entry.tier.name.lower(),
        "code": entry.code,
        # It may hold the name.
        "reason": entry.reason if name or entry.key is None else "",
        "seconds": round(entry.seconds, 4),
        "times": entry.times,
    }


def _second(second: Second) -> list[float]:
    """[second, tokens, steps, arrived, refused, seconds of a step, seconds to a first token]."""
    step_s = second.step_s / second.steps if second.steps else 0.0
    first_s = second.first_s / second.firsts if second.firsts else 0.0
    return [
        second.at,
        second.tokens,
        second.steps,
        second.arrived,
        second.refused,
        round(step_s, 5),
        round(first_s, 5),
    ]
