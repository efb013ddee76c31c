"""The models and adapters of this server as both doors list them."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_scheduler.front.callers import EVERYONE
from adex_scheduler.front.catalogue import LISTED_MAX, AdapterCard, known_adapters
from adex_scheduler.front.generation import total_tokens_max
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.tenants import Directory


async def adapter_cards(serving: Serving) -> list[dict[str, object]]:
    """Every adapter known, as /v1/models lists it."""
    cards = await known_cards(serving)
    return await asyncio.to_thread(lambda: [adapter_card(serving, card) for card in cards])


async def known_cards(serving: Serving, token: str = "") -> list[AdapterCard]:
    """Every adapter known, those of the caller's `token` included."""
    own_tenant = credential_tenant(EVERYONE, token) if token else ""
    paths = await serving.local_adapters.paths()
    # Each name is looked up on the disk: thousands of them must not hold up the streams.
    return await asyncio.to_thread(
        known_adapters,
        # Names may be given and taken meanwhile.
        replace(serving.directory, aliases=dict(serving.directory.aliases)),
        serving.options.adapter_roots,
        paths,
        serving.engine.adapters(LISTED_MAX),
        own_tenant,
    )


def public_names(directory: Directory, keys: Iterable[AdapterKey]) -> list[str]:
    """What callers write for these adapters: every alias, else the adapter's own name.

    Those that belong to a credential have no public name.
    """
    aliases: dict[AdapterKey, list[str]] = {}
    for name, key in directory.aliases.items():
        aliases.setdefault(key, []).append(name)
    names: dict[str, None] = {}
    for key in keys:
        if key.tenant == "":
            revision = f"@{key.revision}" if key.revision else ""
            names.update(dict.fromkeys(aliases.get(key, [f"{key.name}{revision}"])))
    return list(names)


def base_card(serving: Serving) -> dict[str, object]:
    """The base model as /v1/models lists it."""
    worker = serving.engine.info
    return {
        "id": serving.directory.base_name,
        "object": "model",
        "created": serving.options.started_at_s,
        "owned_by": "adex",
        "root": serving.options.model_id,
        "parent": None,
        "max_model_len": None if worker is None else total_tokens_max(serving, worker),
    }


def adapter_card(serving: Serving, card: AdapterCard) -> dict[str, object]:
    """One adapter as /v1/models lists it; `bytes` and `rank` are null until it was read."""
    return {
        **base_card(serving),
        "id": card.name,
        "root": card.root,
        "parent": serving.directory.base_name,
        "source": card.source,
        "tier": card.tier,
        "bytes": card.bundle_bytes,
        "rank": card.rank,
    }
