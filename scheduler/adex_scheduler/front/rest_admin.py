"""Routes that ask about the server: /v1/models, /info, /health, /metrics."""

import asyncio
from time import monotonic

from aiohttp import web

from adex_proto.errors import AdapterNotFound
from adex_proto.outcome import WorkerInfo
from adex_scheduler.front.catalogue import AdapterCard, find_local_adapters, known_adapters
from adex_scheduler.front.generation import total_tokens_max
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.visit import SERVING, json_reply

# Folders are looked through again at most this often, however many ask.
LISTING_SECONDS = 5.0


class LocalListing:
    """The adapters found under the local roots, looked up beside the loop and kept for a while."""

    def __init__(self, roots: tuple[str, ...]) -> None:
        self._roots = roots
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


LISTING: web.AppKey[LocalListing] = web.AppKey("listing", LocalListing)


async def health(request: web.Request) -> web.StreamResponse:
    """GET /health: 200 once requests can be served, else 503."""
    if request.app[SERVING].engine.ready:
        return json_reply({"status": "ready"})
    return json_reply({"error": "unhealthy", "error_type": "healthcheck"}, status=503)


async def metrics(request: web.Request) -> web.StreamResponse:
    """GET /metrics, for Prometheus."""
    return web.Response(
        body=request.app[SERVING].meters.exposition(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


async def info(request: web.Request) -> web.StreamResponse:
    """GET /info: the model and the server's limits; null for what no worker has told yet."""
    serving = request.app[SERVING]
    return json_reply(info_of(serving, serving.engine.info))


def info_of(serving: Serving, worker: WorkerInfo | None) -> dict[str, object]:
    """The reply of /info, in the fields of LoRAX and TGI; what has no meaning here is null."""
    total = None if worker is None else total_tokens_max(serving, worker)
    options = serving.options
    return {
        "model_id": serving.directory.base_name,
        "model_sha": None,
        "model_dtype": None if worker is None else worker.dtype,
        "model_device_type": None if worker is None else worker.device.split(":")[0],
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": options.requests_max,
        "max_best_of": 1,
        "max_stop_sequences": options.limits.stops_max,
        "max_input_length": None if total is None else total - 1,
        "max_input_tokens": None if total is None else total - 1,
        "max_total_tokens": total,
        "waiting_served_ratio": None,
        "max_batch_total_tokens": None if worker is None else worker.pages * worker.block_tokens,
        "max_waiting_tokens": None,
        "max_client_batch_size": options.limits.sequences_max,
        "validation_workers": 1,
        "eager_prefill": True,
        "router": "adex",
        "version": options.version,
        "sha": None,
        "docker_label": None,
        "request_logger_url": None,
        "architecture": None if worker is None else worker.architecture,
        "max_rank": None if worker is None else worker.rank_max,
        "max_adapters_resident": None if worker is None else worker.slots_max,
    }


async def models(request: web.Request) -> web.StreamResponse:
    """GET /v1/models: the base model, then every adapter known."""
    serving = request.app[SERVING]
    cards = await _cards(request)
    return json_reply(
        {
            "object": "list",
            "data": [base_card(serving), *(adapter_card(serving, card) for card in cards)],
        }
    )


async def model(request: web.Request) -> web.StreamResponse:
    """GET /v1/models/{name}; adapter names may hold slashes."""
    serving, name = request.app[SERVING], request.match_info["name"]
    if name in serving.directory.base_names and name not in serving.directory.aliases:
        return json_reply({**base_card(serving), "id": name})
    for card in await _cards(request):
        if card.name == name:
            return json_reply(adapter_card(serving, card))
    raise AdapterNotFound(
        f"no model or adapter named {name!r} is known here",
        field="model",
        remedy="See /v1/models; an adapter that was never asked for may still be served",
    )


async def _cards(request: web.Request) -> list[AdapterCard]:
    serving = request.app[SERVING]
    paths = await request.app[LISTING].paths()
    return known_adapters(
        serving.directory, serving.options.adapter_roots, paths, serving.engine.adapters()
    )


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
