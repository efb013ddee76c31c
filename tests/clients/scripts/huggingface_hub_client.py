"""huggingface_hub's InferenceClient and AsyncInferenceClient: texts and chats."""

import asyncio
from typing import Any

import huggingface_hub
from huggingface_hub import AsyncInferenceClient, InferenceClient
from sheet import (
    ADAPTER,
    MESSAGES,
    RENDERED,
    RESPONSE_FORMAT,
    SCHEMA,
    TOOL,
    URL,
    raised,
    raised_async,
    tell,
)

LENGTH = {"max_new_tokens": 64}
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 64, "temperature": 0.0}
LONG: dict[str, Any] = CHAT | {"max_tokens": 200}
GRAMMAR: Any = {"type": "json", "value": SCHEMA}


def whole(reply: Any) -> dict[str, Any]:
    details = reply.details
    return {
        "text": reply.generated_text,
        "finish_reason": details.finish_reason,
        "generated_tokens": details.generated_tokens,
        "token_count": len(details.tokens),
        "prefill_count": len(details.prefill),
        "top_tokens": [len(tops) for tops in details.top_tokens or []],
        "seed": details.seed,
    }


def streamed(events: list[Any]) -> dict[str, Any]:
    last = events[-1]
    return {
        "text": last.generated_text,
        "joined": "".join(event.token.text for event in events if not event.token.special),
        "finish_reason": last.details.finish_reason,
        "generated_tokens": last.details.generated_tokens,
        "events": len(events),
    }


def chatted(reply: Any) -> dict[str, Any]:
    [choice] = reply.choices
    calls = choice.message.tool_calls or []
    return {
        "text": choice.message.content,
        "finish_reason": choice.finish_reason,
        "model": reply.model,
        "completion_tokens": reply.usage.completion_tokens,
        "calls": [[call.function.name, call.function.arguments] for call in calls],
        "logprobs": len(choice.logprobs.content) if choice.logprobs else 0,
    }


def chunked(chunks: list[Any]) -> dict[str, Any]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish_reason": choices[-1].finish_reason,
    }


def in_turn() -> dict[str, Any]:
    client = InferenceClient(base_url=URL, timeout=120)
    versioned = InferenceClient(base_url=f"{URL}/v1", timeout=120)
    adapted: dict[str, Any] = {"adapter_id": ADAPTER, **LENGTH}
    detailed = {"details": True, **adapted, "top_n_tokens": 2, "decoder_input_details": True}
    sampled: dict[str, Any] = {"do_sample": True, "seed": 7, "temperature": 3.0, **LENGTH}
    return {
        "base": client.text_generation(RENDERED, **LENGTH),
        "adapter": whole(client.text_generation(RENDERED, **detailed)),
        "streamed": streamed(
            list(client.text_generation(RENDERED, stream=True, details=True, **adapted))
        ),
        "streamed_texts": "".join(client.text_generation(RENDERED, stream=True, **adapted)),
        "sampled": [client.text_generation("The", **sampled) for _ in range(2)],
        "stopped": client.text_generation(RENDERED, stop=["FROM"], **adapted),
        "json": client.text_generation(
            RENDERED, grammar=GRAMMAR, adapter_id=ADAPTER, max_new_tokens=200
        ),
        "chat": chatted(client.chat_completion(**CHAT)),
        "chat_adapter": chatted(
            client.chat_completion(model=ADAPTER, logprobs=True, top_logprobs=2, **CHAT)
        ),
        "chat_versioned": chatted(versioned.chat_completion(model=ADAPTER, **CHAT)),
        "chat_streamed": chunked(
            list(client.chat.completions.create(model=ADAPTER, stream=True, **CHAT))
        ),
        "chat_json": chatted(client.chat_completion(response_format=RESPONSE_FORMAT, **LONG)),
        "tool": chatted(client.chat_completion(tools=[TOOL], tool_choice="required", **LONG)),
        "missing": raised(lambda: client.text_generation("x", adapter_id="missing")),
        "missing_streamed": raised(
            lambda: list(client.text_generation("x", adapter_id="missing", stream=True))
        ),
        "missing_chat": raised(lambda: client.chat_completion(model="missing", **CHAT)),
        "too_long": raised(lambda: client.text_generation("x", max_new_tokens=10**6)),
    }


async def at_once() -> dict[str, Any]:
    client = AsyncInferenceClient(base_url=URL, timeout=120)
    adapted: dict[str, Any] = {"adapter_id": ADAPTER, **LENGTH}

    async def stream() -> dict[str, Any]:
        events = await client.text_generation(RENDERED, stream=True, details=True, **adapted)
        return streamed([event async for event in events])

    async def stream_chat() -> dict[str, Any]:
        chunks = await client.chat_completion(model=ADAPTER, stream=True, **CHAT)
        return chunked([chunk async for chunk in chunks])

    base, texts, chat, chunks = await asyncio.gather(
        client.text_generation(RENDERED, **LENGTH),
        stream(),
        client.chat_completion(model=ADAPTER, **CHAT),
        stream_chat(),
    )
    missing = await raised_async(lambda: client.text_generation("x", adapter_id="missing"))
    return {
        "base": base,
        "streamed": texts,
        "chat_adapter": chatted(chat),
        "chat_streamed": chunks,
        "missing": missing,
    }


tell(version=huggingface_hub.__version__, sync=in_turn(), asynchronous=asyncio.run(at_once()))
