"""The openai package: its sync and its async client, completions, chats, tools, errors."""

import asyncio
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI
from sheet import (
    ADAPTER,
    BASE,
    MESSAGES,
    RENDERED,
    RESPONSE_FORMAT,
    TOOL,
    URL,
    raised,
    raised_async,
    tell,
)

CONNECT: dict[str, Any] = {
    "base_url": f"{URL}/v1",
    "api_key": "EMPTY",
    "max_retries": 0,
    "timeout": 120,
}
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 64, "temperature": 0}
TEXT: dict[str, Any] = {"prompt": RENDERED, "max_tokens": 64, "temperature": 0}
SAMPLED: dict[str, Any] = {"prompt": "The", "max_tokens": 12, "temperature": 2, "seed": 7}
LONG: dict[str, Any] = {"max_tokens": 200}
CALLED: dict[str, Any] = CHAT | LONG | {"tools": [TOOL], "tool_choice": "required"}
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def chatted(reply: Any) -> dict[str, Any]:
    choice = reply.choices[0]
    calls = choice.message.tool_calls or []
    return {
        "texts": [one.message.content for one in reply.choices],
        "finish_reason": choice.finish_reason,
        "model": reply.model,
        "completion_tokens": reply.usage.completion_tokens,
        "total_tokens": reply.usage.total_tokens,
        "calls": [[call.function.name, call.function.arguments] for call in calls],
        "top_logprobs": [
            len(token.top_logprobs)
            for token in (choice.logprobs.content if choice.logprobs else [])
        ],
    }


def written(reply: Any) -> dict[str, Any]:
    return {
        "texts": [choice.text for choice in reply.choices],
        "finish_reason": reply.choices[0].finish_reason,
        "model": reply.model,
        "completion_tokens": reply.usage.completion_tokens,
    }


def chunked(chunks: list[Any]) -> dict[str, Any]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    calls = [call for choice in choices for call in choice.delta.tool_calls or []]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish_reason": choices[-1].finish_reason,
        "completion_tokens": chunks[-1].usage.completion_tokens,
        "call_names": [call.function.name for call in calls if call.function.name],
        "call_arguments": "".join(call.function.arguments or "" for call in calls),
    }


def refused(call: Any) -> dict[str, Any]:
    """What a refusal says where the client looks for it."""
    try:
        call()
    except openai.APIStatusError as error:
        return {
            "type": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "param": error.param,
            "request_id": error.request_id is not None,
        }
    return {"type": "nothing"}


def in_turn() -> dict[str, Any]:
    client = OpenAI(**CONNECT)
    chat, text = client.chat.completions.create, client.completions.create
    streamed_texts = list(text(model=ADAPTER, stream=True, **TEXT))
    missing: dict[str, Any] = {"model": "missing", **CHAT}
    return {
        "models": [card.id for card in client.models.list()],
        "model": client.models.retrieve(ADAPTER).id,
        "base": chatted(chat(model=BASE, **CHAT)),
        "adapter": chatted(chat(model=ADAPTER, logprobs=True, top_logprobs=2, n=2, **CHAT)),
        "streamed": chunked(list(chat(model=ADAPTER, **STREAM, **CHAT))),
        "json": chatted(chat(model=ADAPTER, response_format=RESPONSE_FORMAT, **(CHAT | LONG))),
        "tool": chatted(chat(model=ADAPTER, **CALLED)),
        "tool_base": chatted(chat(model=BASE, **CALLED)),
        "tool_streamed": chunked(list(chat(model=ADAPTER, **STREAM, **CALLED))),
        "stopped": chatted(chat(model=ADAPTER, stop=["FROM"], **CHAT)),
        "completion": written(text(model=ADAPTER, **TEXT)),
        "completion_base": written(text(model=BASE, **TEXT)),
        "completion_streamed": "".join(one.choices[0].text for one in streamed_texts),
        "completions": written(text(model=ADAPTER, **(TEXT | {"prompt": [RENDERED, RENDERED]}))),
        "sampled": [written(text(model=BASE, **SAMPLED)) for _ in range(2)],
        "other_seed": written(text(model=BASE, **(SAMPLED | {"seed": 8}))),
        "missing": refused(lambda: chat(**missing)),
        "missing_streamed": refused(lambda: chat(stream=True, **missing)),
        "missing_model": refused(lambda: client.models.retrieve("missing")),
        "bad_temperature": refused(lambda: chat(model=ADAPTER, **(CHAT | {"temperature": -1}))),
        "too_long": refused(lambda: text(model=ADAPTER, **(TEXT | {"max_tokens": 10**6}))),
        "embeddings": raised(lambda: client.embeddings.create(model=ADAPTER, input="x")),
    }


async def at_once() -> dict[str, Any]:
    async with AsyncOpenAI(**CONNECT) as client:
        chat = client.chat.completions.create

        async def stream() -> dict[str, Any]:
            chunks = await chat(model=ADAPTER, **STREAM, **CHAT)
            return chunked([chunk async for chunk in chunks])

        base, adapter, streamed, written_text = await asyncio.gather(
            chat(model=BASE, **CHAT),
            chat(model=ADAPTER, **CHAT),
            stream(),
            client.completions.create(model=ADAPTER, **TEXT),
        )
        return {
            "base": chatted(base),
            "adapter": chatted(adapter),
            "streamed": streamed,
            "completion": written(written_text),
            "missing": await raised_async(lambda: chat(model="missing", **CHAT)),
        }


tell(version=openai.__version__, sync=in_turn(), asynchronous=asyncio.run(at_once()))
