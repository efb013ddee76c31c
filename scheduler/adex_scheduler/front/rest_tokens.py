"""Routes from text to tokens and back: /tokenize, /detokenize and /chat_tokenize."""

from collections.abc import Mapping

from aiohttp import web

from adex_scheduler.front.asking import listed_tokens
from adex_scheduler.front.generation import total_tokens_max
from adex_scheduler.front.prompts import beside_if_long, rendered, token_ids_of
from adex_scheduler.front.schema import CountRequest
from adex_scheduler.front.schema_openai import (
    parse_chat_tokenize,
    parse_count_chat,
    parse_count_text,
    parse_detokenize,
)
from adex_scheduler.front.schema_tgi import parse_tokenize
from adex_scheduler.front.sse import json_bytes, json_list
from adex_scheduler.front.visit import (
    SERVING,
    body_of_request,
    json_reply,
    visit_of,
    written_reply,
)


async def tokenize(request: web.Request) -> web.StreamResponse:
    """POST /tokenize: TGI's answer to `inputs`, vLLM's to `prompt` and to `messages`."""
    serving, body = request.app[SERVING], await body_of_request(request)
    limits = serving.options.limits
    if body.get("messages") is not None:
        return await _counted(request, parse_count_chat(body, limits))
    if body.get("prompt") is not None:
        return await _counted(request, parse_count_text(body, limits))
    asked = parse_tokenize(body, limits)
    visit_of(request).ignored = asked.ignored
    tokens = await listed_tokens(serving, asked.text, asked.add_special_tokens)
    return written_reply(await beside_if_long(len(asked.text), lambda: json_list(tokens)))


async def chat_tokenize(request: web.Request) -> web.StreamResponse:
    """POST /chat_tokenize: the prompt that a conversation makes, and its tokens."""
    serving, body = request.app[SERVING], await body_of_request(request)
    asked = parse_chat_tokenize(body, serving.options.limits)
    visit_of(request).ignored = asked.ignored
    text = await rendered(serving.tokenizer, asked.conversation)
    tokens = await listed_tokens(serving, text, asked.conversation.add_special_tokens)
    listed = await beside_if_long(len(text), lambda: json_list(tokens))
    return written_reply(
        b'{"tokenize_response":' + listed + b',"templated_text":' + json_bytes(text) + b"}"
    )


async def detokenize(request: web.Request) -> web.StreamResponse:
    """POST /detokenize: the text of token ids."""
    tokenizer, body = request.app[SERVING].tokenizer, await body_of_request(request)
    asked = parse_detokenize(body, request.app[SERVING].options.limits)
    visit_of(request).ignored = asked.ignored

    def text_of() -> str:
        return tokenizer.decode_raw([one for one in asked.token_ids if tokenizer.is_known(one)])

    text = await beside_if_long(len(asked.token_ids), text_of)
    return json_reply({"prompt": text})


async def _counted(request: web.Request, asked: CountRequest) -> web.StreamResponse:
    """How many tokens it has, and which."""
    serving = request.app[SERVING]
    visit_of(request).ignored = asked.ignored
    tokenizer, worker = serving.tokenizer, serving.engine.info
    text = asked.source
    if not isinstance(text, str):
        text = await rendered(tokenizer, text)
    ids = await token_ids_of(tokenizer, text, asked.add_special_tokens)

    def words() -> list[str] | None:
        return [tokenizer.token_text(token_id) for token_id in ids] if asked.words else None

    reply: Mapping[str, object] = {
        "count": len(ids),
        "max_model_len": None if worker is None else total_tokens_max(serving, worker),
        "tokens": ids,
        "token_strs": await beside_if_long(len(ids), words),
    }
    return written_reply(await beside_if_long(len(ids), lambda: json_bytes(reply)))
