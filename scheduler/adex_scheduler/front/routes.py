"""Every route of the REST door, declared once: for serving and for the description of it."""

from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from aiohttp import web

from adex_scheduler.engine import Action
from adex_scheduler.front import reply_shapes as shapes
from adex_scheduler.front import (
    rest_adapters,
    rest_admin,
    rest_openai,
    rest_runtime,
    rest_tgi,
    rest_tokens,
)
from adex_scheduler.front.fields import Table
from adex_scheduler.front.openapi import Operation, document
from adex_scheduler.front.schema_control import CONTROL, LOAD, SAGEMAKER
from adex_scheduler.front.schema_openai import (
    CHAT,
    COMPLETION,
    COUNT_CHAT,
    COUNT_TEXT,
    DETOKENIZE,
)
from adex_scheduler.front.schema_tgi import GENERATE, TOKENIZE
from adex_scheduler.front.statuses import Family
from adex_scheduler.front.visit import SERVING, body_of_request, json_reply, visit_of

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SAGEMAKER_ADAPTER = "X-Amzn-SageMaker-Adapter-Identifier"
PROBES = ("/", "/health", "/ping", "/startup")


async def invocations(request: web.Request) -> web.StreamResponse:
    """POST /invocations: what the body is decides which route it is meant for."""
    body = _with_adapter(request, await body_of_request(request))
    if body.get("inputs") is not None:
        return await rest_tgi.answer_generate(request, body)
    visit = visit_of(request)
    if body.get("messages") is not None:
        visit.family = Family.OPENAI
        return await rest_openai.answer_chat(request, body)
    if body.get("prompt") is not None:
        visit.family = Family.OPENAI
        return await rest_openai.answer_completion(request, body)
    return await rest_tgi.answer_generate(request, body)


def _with_adapter(request: web.Request, body: Mapping[str, object]) -> Mapping[str, object]:
    """The body with the adapter that SageMaker names in a header, where it does."""
    name = request.headers.get(SAGEMAKER_ADAPTER)
    if not name:
        return body
    if body.get("messages") is not None or body.get("prompt") is not None:
        return {**body, "model": name}
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        return body
    named: dict[str, object] = {"adapter_id": name}
    return {**body, "parameters": {**cast("dict[str, object]", parameters or {}), **named}}


async def openapi(request: web.Request) -> web.StreamResponse:
    """GET /openapi.json: every route and field of this server."""
    serving = request.app[SERVING]
    return json_reply(
        document(
            [operation for operation, _ in ROUTES],
            serving.options.limits,
            title="Adex",
            version=serving.options.version,
        )
    )


def _probe(path: str) -> tuple[Operation, Handler]:
    summary = "Whether requests can be served now."
    return Operation("GET", path, summary, reply=shapes.HEALTH, statuses=(503,)), rest_admin.health


_CONTROL_SUMMARIES = {
    Action.PRELOAD: "Bring an adapter near.",
    Action.PREFETCH: "Hint that an adapter will be wanted.",
    Action.PIN: "Keep an adapter near.",
    Action.UNPIN: "Let an adapter go where others would have it go.",
    Action.RELOAD: "Resolve a name again now.",
    Action.UNLOAD: "Forget a name, and let its version leave.",
}


def _runtime(
    method: str, path: str, table: Table | None, handler: Handler
) -> tuple[Operation, Handler]:
    bodies = () if table is None else (table,)
    summary = "Give or take an adapter's name."
    operation = Operation(method, path, summary, bodies, plain="text/plain", statuses=RUNTIME)
    return operation, rest_runtime.for_operators(handler)


# What the runtime routes answer that have no body.
RUNTIME = (400, 401, 404, 429, 503)
CONTROL_ROUTES: tuple[tuple[Operation, Handler], ...] = (
    (
        Operation(
            "GET",
            "/v1/adapters",
            "Adapters, with all that is known of them.",
            reply=shapes.ADAPTERS,
            statuses=(400,),
            query=(("id", "Only the adapter of this name."),),
        ),
        rest_adapters.adapters,
    ),
    *(
        (
            Operation(
                "POST",
                f"/v1/adapters/{action.value}",
                _CONTROL_SUMMARIES[action],
                (CONTROL[action],),
                shapes.ADAPTER,
                streams=True,
            ),
            rest_adapters.doing(action),
        )
        for action in Action
    ),
    _runtime("POST", "/v1/load_lora_adapter", LOAD, rest_runtime.load),
    _runtime("POST", "/v1/unload_lora_adapter", LOAD, rest_runtime.unload),
    _runtime("POST", "/v1/lora_adapter/load", LOAD, rest_runtime.load),
    _runtime("POST", "/v1/lora_adapter/unload", LOAD, rest_runtime.unload),
    _runtime("POST", "/adapters", SAGEMAKER, rest_runtime.sagemaker_load),
    _runtime("DELETE", "/adapters/{name:.+}", None, rest_runtime.sagemaker_unload),
    (
        Operation("GET", "/adapters", "Names given.", reply=shapes.RUNTIME_NAMES, statuses=(401,)),
        rest_runtime.for_operators(rest_runtime.sagemaker_list),
    ),
)

# Every route there is: what it is told to be, and what answers it.
ROUTES: tuple[tuple[Operation, Handler], ...] = (
    (
        Operation("POST", "/generate", "One text, whole.", (GENERATE,), shapes.GENERATED),
        rest_tgi.generate,
    ),
    (
        Operation("POST", "/generate_stream", "One text, by tokens.", (GENERATE,), streams=True),
        rest_tgi.generate_stream,
    ),
    # Clients take the address with /v1 for the whole server too.
    *(
        (
            Operation(
                "POST",
                path,
                "One text, whole in a list of one or by tokens.",
                (GENERATE,),
                shapes.GENERATED_LIST,
                streams=True,
            ),
            rest_tgi.compatible,
        )
        for path in ("/", "/v1")
    ),
    (
        Operation(
            "POST",
            "/invocations",
            "Whatever the body is: a text, a chat or a completion.",
            (GENERATE, CHAT, COMPLETION),
            {"anyOf": [shapes.GENERATED_LIST, shapes.CHAT, shapes.COMPLETION]},
            streams=True,
        ),
        invocations,
    ),
    (
        Operation(
            "POST",
            "/v1/completions",
            "OpenAI's completions.",
            (COMPLETION,),
            shapes.COMPLETION,
            streams=True,
        ),
        rest_openai.completions,
    ),
    (
        Operation(
            "POST",
            "/v1/chat/completions",
            "OpenAI's chat, through the model's own template.",
            (CHAT,),
            shapes.CHAT,
            streams=True,
        ),
        rest_openai.chat_completions,
    ),
    (
        Operation(
            "POST",
            "/tokenize",
            "The tokens of a text or a chat.",
            (TOKENIZE, COUNT_TEXT, COUNT_CHAT),
            shapes.TOKENIZED,
        ),
        rest_tokens.tokenize,
    ),
    (
        Operation("POST", "/detokenize", "The text of tokens.", (DETOKENIZE,), shapes.DETOKENIZED),
        rest_tokens.detokenize,
    ),
    (
        Operation("POST", "/chat_tokenize", "A chat's prompt.", (CHAT,), shapes.CHAT_TOKENIZED),
        rest_tokens.chat_tokenize,
    ),
    *CONTROL_ROUTES,
    *(_probe(path) for path in PROBES),
    (
        Operation("GET", "/version", "This server's version.", reply=shapes.VERSION),
        rest_admin.version,
    ),
    (
        Operation("GET", "/info", "The model and the limits.", reply=shapes.INFO),
        rest_admin.info,
    ),
    (
        Operation("GET", "/metrics", "For Prometheus.", plain="text/plain"),
        rest_admin.metrics,
    ),
    (
        Operation("GET", "/v1/models", "The base model and its adapters.", reply=shapes.MODELS),
        rest_admin.models,
    ),
    (
        Operation(
            "GET", "/v1/models/{name:.+}", "One of them.", reply=shapes.MODEL, statuses=(404,)
        ),
        rest_admin.model,
    ),
    (
        Operation("GET", "/openapi.json", "This document.", reply=shapes.DESCRIPTION),
        openapi,
    ),
)
