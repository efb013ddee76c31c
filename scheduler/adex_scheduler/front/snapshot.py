"""What the page at /ui is told: a scene as JSON, whole or as what changed since another; pure.

It names what /v1/models names too, and nothing else: an adapter without a public name appears by
the beginning of its digest. Texts, tokens and tenants do not appear at all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from adex_proto.adapter import AdapterKey
from adex_scheduler.core.page_map import PageMap
from adex_scheduler.core.picture import AdapterView, Picture
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
        tiles = [_tile(view, self.labels) for view in self.scene.picture.adapters]
        return {str(tile["id"]): tile for tile in tiles}

    @cached_property
    def whole(self) -> Json:
        """Everything, for one who has seen nothing."""
        told: Json = {"whole": True, "source": self._source()}
        if self.scene is None:
            return told | {"connected": False}
        return told | {
            **_state(self.scene, self.labels),
            "server": _server(self.scene, self.model),
            "tiles": list(self.tiles.values()),
            "gone": [],
            "map": _map(self.scene.picture.map),
            "log": [_entry(entry, self.labels) for entry in self.scene.entries],
            "seconds": [_second(second) for second in self.scene.seconds],
        }

    def since(self, before: "Snapshot") -> Json:
        """What one who has seen `before` needs to know."""
        scene, old = self.scene, before.scene
        if scene is None or old is None or scene.info != old.info:
            return self.whole
        told = _state(scene, self.labels)
        told["tiles"] = [t for key, t in self.tiles.items() if before.tiles.get(key) != t]
        told["gone"] = [key for key in before.tiles if key not in self.tiles]
        if scene.picture.map != old.picture.map:
            told["map"] = _map(scene.picture.map)
        if self.known is not before.known:
            told["source"] = self._source()
        seen = old.entries[-1].number if old.entries else 0
        told["log"] = [_entry(e, self.labels) for e in scene.entries if e.number > seen]
        again = old.picture.at - _SECONDS_AGAIN
        told["seconds"] = [_second(second) for second in scene.seconds if second.at >= again]
        return told

    def _source(self) -> Json:
        return {"count": len(self.known), "names": self.known[:SOURCE_NAMES_MAX]}


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


def _state(scene: Scene, labels: Labels) -> Json:
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
        "queues": _queues(picture, labels),
    }


def _queues(picture: Picture, labels: Labels) -> list[Json]:
    return [
        {
            "tenant": queue.tenant,
            "id": _id(queue.digest),
            "name": labels.of(queue.key) if queue.key else None,
            "base": queue.base,
            "waiting": queue.waiting,
            "for_adapter": queue.for_adapter,
            "since": round(queue.since, 3),
        }
        for queue in picture.queues
    ]


def _id(digest: str) -> str:
    return digest[:_ID_CHARACTERS]


def _tile(view: AdapterView, labels: Labels) -> Json:
    name = labels.of(view.key) if view.key else None
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


def _entry(entry: Entry, labels: Labels) -> Json:
    return {
        "n": entry.number,
        "at": round(entry.at, 3),
        "what": entry.what.value,
        "name": labels.of(entry.key) if entry.key else None,
        "id": _id(entry.digest),
        "tier": entry.tier.name.lower(),
        "code": entry.code,
        "reason": entry.reason,
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
