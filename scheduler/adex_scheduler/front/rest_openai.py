"""Routes of OpenAI: /v1/completions and /v1/chat/completions, whole and streamed."""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic

from aiohttp import web

from adex_scheduler.engine import EngineRequest
from adex_scheduler.front import replies_openai
from adex_scheduler.front.chunks_openai import ChatChoice, Choice, CompletionChoice
from adex_scheduler.front.generation import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    FieldNames,
    Gathered,
    choices_of,
    gather,
    merged,
    most_probable,
    prepare,
)
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.prompts import rendered
from adex_scheduler.front.replies_openai import Envelope
from adex_scheduler.front.schema import ChatRequest, CompletionRequest, Prompt
from adex_scheduler.front.schema_openai import parse_chat, parse_completion
from adex_scheduler.front.sse import DONE, frame
from adex_scheduler.front.tenants import tenant_of
from adex_scheduler.front.visit import (
    SERVING,
    Visit,
    body_of_request,
    header_text,
    json_reply,
    stream_reply,
    visit_of,
)
from adex_scheduler.text.tool_calls import ToolCallReader

Asked = CompletionRequest | ChatRequest


@dataclass(slots=True)
class Answering:
    """One request under way: its sequences, and what stands on each of its chunks."""

    serving: Serving
    visit: Visit
    asked: Asked
    envelope: Envelope
    sequences: list[EngineRequest]
    prompt_tokens: int


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    return await answer_completion(request, await body_of_request(request))


async def answer_completion(request: web.Request, body: Mapping[str, object]) -> web.StreamResponse:
    """The answer to a completion's body."""
    serving = request.app[SERVING]
    asked = parse_completion(body, serving.options.limits, seed=secrets.randbits(63))
    answering = await _begin(request, asked, asked.prompts, COMPLETION_FIELDS, "cmpl")
    if asked.wish.stream:
        choices = [
            CompletionChoice(serving.tokenizer, index, asked.logprobs)
            for index in range(len(answering.sequences))
        ]
        return await _streamed(request, answering, choices)
    texts = await _gathered(answering)
    best = [
        text
        for start in range(0, len(texts), asked.best_of)
        for text in most_probable(texts[start : start + asked.best_of], asked.choices)
    ]
    reply = replies_openai.completion(
        serving.tokenizer,
        answering.envelope,
        best,
        prompt_tokens=answering.prompt_tokens,
        generated=answering.visit.new_tokens,
        logprobs=asked.logprobs,
    )
    return json_reply(reply, _headers(answering))


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    return await answer_chat(request, await body_of_request(request))


async def answer_chat(request: web.Request, body: Mapping[str, object]) -> web.StreamResponse:
    """The answer to a chat's body."""
    serving = request.app[SERVING]
    asked = parse_chat(body, serving.options.limits, seed=secrets.randbits(63))
    prompt = await rendered(serving.tokenizer, asked.conversation)
    answering = await _begin(request, asked, [prompt], CHAT_FIELDS, "chatcmpl")
    readers = [_reader(serving, asked) for _ in answering.sequences]
    if asked.wish.stream:
        choices = [
            ChatChoice(
                serving.tokenizer,
                index,
                answering.envelope.id,
                logprobs=asked.logprobs is not None,
                reader=reader,
            )
            for index, reader in enumerate(readers)
        ]
        return await _streamed(request, answering, choices)
    reply = replies_openai.chat(
        serving.tokenizer,
        answering.envelope,
        await _gathered(answering),
        readers,
        prompt_tokens=answering.prompt_tokens,
        logprobs=asked.logprobs,
    )
    return json_reply(reply, _headers(answering))


def _reader(serving: Serving, asked: ChatRequest) -> ToolCallReader | None:
    """What reads tool calls from one text, where any may be made."""
    if not asked.calls_max:
        return None
    names = asked.conversation.tool_names
    return ToolCallReader(serving.tokenizer.call_form, names, calls_max=asked.calls_max)


async def _gathered(answering: Answering) -> list[Gathered]:
    texts = await gather(answering.serving, answering.sequences, answering.visit.timeline)
    answering.visit.new_tokens = sum(len(text.pieces) for text in texts)
    return texts


async def _begin(
    request: web.Request, asked: Asked, prompts: Sequence[Prompt], names: FieldNames, prefix: str
) -> Answering:
    """Resolve the adapter, tokenise and check; nothing is computed yet."""
    serving, visit = request.app[SERVING], visit_of(request)
    visit.ignored = asked.wish.ignored
    tenant = tenant_of(request.headers.get("authorization"))
    adapter = serving.directory.adapter_of_model(asked.model, asked.source)
    key = serving.directory.key_of(adapter, tenant, asked.wish.credential)
    if isinstance(asked, ChatRequest):
        texts, special = asked.choices, asked.conversation.add_special_tokens
    else:
        texts, special = asked.best_of, asked.add_special_tokens
    sequences: list[EngineRequest] = []
    prompt_tokens = 0
    for index, prompt in enumerate(prompts):
        sequence = await prepare(
            serving,
            asked.wish,
            prompt,
            names,
            request_id=visit.request_id if index == 0 else f"{visit.request_id}.{index}",
            tenant=tenant,
            key=key,
            add_special_tokens=special,
        )
        prompt_tokens += len(sequence.token_ids)
        sequences += choices_of(sequence, texts)
    visit.adapter = adapter.name if adapter else ""
    visit.prompt_tokens = prompt_tokens
    visit.timeline.submitted_s = monotonic()
    envelope = Envelope(
        id=f"{prefix}-{visit.request_id}",
        created=int(time.time()),
        model=adapter.name if adapter else asked.model or serving.directory.base_name,
        fingerprint=f"adex-{serving.options.version}",
    )
    return Answering(serving, visit, asked, envelope, sequences, prompt_tokens)


async def _streamed(
    request: web.Request, answering: Answering, choices: Sequence[Choice]
) -> web.StreamResponse:
    """Chunks as the pieces come, then the usage where asked for, then [DONE]."""
    asked, kind = answering.asked, _chunk_kind(answering.asked)

    async def frames() -> AsyncGenerator[bytes, None]:
        generated = 0
        pieces = merged(answering.serving, answering.sequences, answering.visit.timeline)
        async with aclosing(pieces):
            async for index, piece in pieces:
                generated += 1
                answering.visit.new_tokens = generated
                for choice in choices[index].push(piece):
                    chunk = {**answering.envelope.fields(kind), "choices": [choice]}
                    if asked.continuous_usage:
                        chunk["usage"] = replies_openai.usage(answering.prompt_tokens, generated)
                    elif asked.include_usage:
                        chunk["usage"] = None
                    yield frame(chunk)
        if asked.include_usage:
            usage = replies_openai.usage(answering.prompt_tokens, generated)
            yield frame({**answering.envelope.fields(kind), "choices": [], "usage": usage})
        yield DONE

    return await stream_reply(request, frames(), _headers(answering))


def _chunk_kind(asked: Asked) -> str:
    return "chat.completion.chunk" if isinstance(asked, ChatRequest) else "text_completion"


def _headers(answering: Answering) -> Mapping[str, str]:
    """Which model answered, and with which adapter."""
    key = answering.sequences[0].key
    headers = {"x-model-id": header_text(answering.serving.directory.base_name)}
    if key is not None:
        headers["x-adapter-id"] = header_text(answering.visit.adapter)
        headers["x-adapter-source"] = key.source
    return headers
