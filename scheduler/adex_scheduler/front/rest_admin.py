"""Routes that ask about the server: /v1/models, /info, /health, /metrics."""

from aiohttp import web

from adex_proto.errors import AdapterNotFound
from adex_proto.outcome import WorkerInfo
from adex_scheduler.front.generation import total_tokens_max
from adex_scheduler.front.listing import adapter_cards, base_card
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.visit import SERVING, json_reply


async def health(request: web.Request) -> web.StreamResponse:
    """GET /health: 200 once requests can be served, else 503."""
    if request.app[SERVING].engine.ready:
        return json_reply({"status": "ready"})
    return json_reply({"error": "unhealthy", "error_type": "healthcheck"}, status=503)


async def version(request: web.Request) -> web.StreamResponse:
    """GET /version."""
    return json_reply({"version": request.app[SERVING].options.version})


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
        "max_best_of": options.limits.sequences_max,
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
    cards = [base_card(serving), *await adapter_cards(serving)]
    return json_reply({"object": "list", "data": cards})


async def model(request: web.Request) -> web.StreamResponse:
    """GET /v1/models/{name}; adapter names may hold slashes."""
    serving, name = request.app[SERVING], request.match_info["name"]
    if name in serving.directory.base_names and name not in serving.directory.aliases:
        return json_reply({**base_card(serving), "id": name})
    for card in await adapter_cards(serving):
        if card["id"] == name:
            return json_reply(card)
    raise AdapterNotFound(
        f"no model or adapter named {name!r} is known here",
        field="model",
        remedy="See /v1/models; an adapter that was never asked for may still be served",
    )
