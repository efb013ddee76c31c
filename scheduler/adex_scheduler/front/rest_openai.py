"""Routes of OpenAI: /v1/completions and /v1/chat/completions, whole and streamed."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from time import monotonic

from aiohttp import web

from adex_scheduler.engine import EngineRequest, Piece
from adex_scheduler.front import replies_openai
from adex_scheduler.front.generation import (
    CHAT_FIELDS,
    COMPLETION_FIELDS,
    INLINE_CHARACTERS_MAX,
    choices_of,
    gather,
    merged,
    prepare,
)
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.replies_openai import Envelope, Json
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
    # Characters sent of each choice, for the text offsets of log probabilities.
    sent: dict[int, int] = field(default_factory=dict[int, int])
    begun: set[int] = field(default_factory=set[int])


async def completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/completions."""
    serving = request.app[SERVING]
    body = await body_of_request(request)
    asked = parse_completion(body, serving.options.limits, seed=secrets.randbits(63))
    answering = await _begin(request, asked, "cmpl")
    if asked.wish.stream:
        return await _streamed(request, answering, _completion_chunks)
    texts = await gather(serving, answering.sequences, answering.visit.timeline)
    answering.visit.new_tokens = sum(len(text.pieces) for text in texts)
    reply = replies_openai.completion(
        serving.tokenizer,
        answering.envelope,
        texts,
        prompt_tokens=answering.prompt_tokens,
        logprobs=asked.logprobs,
    )
    return json_reply(reply, _headers(answering))


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """POST /v1/chat/completions."""
    serving = request.app[SERVING]
    body = await body_of_request(request)
    asked = parse_chat(body, serving.options.limits, seed=secrets.randbits(63))
    answering = await _begin(request, asked, "chatcmpl")
    if asked.wish.stream:
        return await _streamed(request, answering, _chat_chunks)
    texts = await gather(serving, answering.sequences, answering.visit.timeline)
    answering.visit.new_tokens = sum(len(text.pieces) for text in texts)
    reply = replies_openai.chat(
        serving.tokenizer,
        answering.envelope,
        texts,
        prompt_tokens=answering.prompt_tokens,
        logprobs=asked.logprobs,
    )
    return json_reply(reply, _headers(answering))


async def rendered(serving: Serving, asked: ChatRequest) -> str:
    """The prompt the chat template makes; long conversations are rendered beside the loop."""

    def render() -> str:
        return serving.tokenizer.render_chat(
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt,
            template_values=asked.template_values,
        )

    if sum(len(str(message["content"])) for message in asked.messages) <= INLINE_CHARACTERS_MAX:
        return render()
    return await asyncio.to_thread(render)


async def _begin(request: web.Request, asked: Asked, prefix: str) -> Answering:
    """Resolve the adapter, render, tokenise and check; nothing is computed yet."""
    serving, visit = request.app[SERVING], visit_of(request)
    visit.ignored = asked.wish.ignored
    tenant = tenant_of(request.headers.get("authorization"))
    adapter = serving.directory.adapter_of_model(asked.model, asked.source)
    key = serving.directory.key_of(adapter, tenant, asked.wish.credential)
    prompts: Sequence[Prompt]
    if isinstance(asked, ChatRequest):
        # A chat template writes its special tokens itself.
        prompts, names, add_special_tokens = [await rendered(serving, asked)], CHAT_FIELDS, False
    else:
        prompts, names, add_special_tokens = asked.prompts, COMPLETION_FIELDS, True
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
            add_special_tokens=add_special_tokens,
        )
        prompt_tokens += len(sequence.token_ids)
        sequences += choices_of(sequence, asked.choices)
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
    request: web.Request,
    answering: Answering,
    chunks_of: Callable[[Answering, int, Piece], Sequence[Json]],
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
                for choice in chunks_of(answering, index, piece):
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


def _completion_chunks(answering: Answering, index: int, piece: Piece) -> list[Json]:
    """The chunk of one piece; none while its text is still held back."""
    logprobs = answering.asked.logprobs
    if not piece.text and piece.finish is None and logprobs is None:
        return []
    offset = answering.sent.get(index, 0)
    answering.sent[index] = offset + len(piece.text)
    return [
        replies_openai.text_choice(
            answering.serving.tokenizer, index, [piece], piece.text, logprobs, offset=offset
        )
    ]


def _chat_chunks(answering: Answering, index: int, piece: Piece) -> list[Json]:
    """The role once, then texts, then an empty delta with the reason of the end."""
    chunks: list[Json] = []
    if index not in answering.begun:
        answering.begun.add(index)
        opening: Json = {"role": "assistant", "content": ""}
        chunks.append(replies_openai.chat_delta(index, opening, None, None))
    logprobs: Json | None = None
    if answering.asked.logprobs is not None:
        logprobs = replies_openai.chat_logprobs(answering.serving.tokenizer, [piece])
    if piece.text or logprobs is not None:
        delta: Json = {"content": piece.text}
        chunks.append(replies_openai.chat_delta(index, delta, logprobs, None))
    if piece.finish is not None:
        chunks.append(replies_openai.chat_delta(index, {}, None, piece.finish))
    return chunks


def _headers(answering: Answering) -> Mapping[str, str]:
    """Which model answered, and with which adapter."""
    key = answering.sequences[0].key
    headers = {"x-model-id": header_text(answering.serving.directory.base_name)}
    if key is not None:
        headers["x-adapter-id"] = header_text(answering.visit.adapter)
        headers["x-adapter-source"] = key.source
    return headers
