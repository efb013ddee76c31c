"""text-generation, TGI's own client: its sync and its async client, texts and chats."""

import asyncio
from typing import Any

from sheet import ADAPTER, MESSAGES, RENDERED, SCHEMA, TOOL, URL, raised, raised_async, tell
from text_generation import AsyncClient, Client
from text_generation.types import Grammar, GrammarType, Message, Tool

LENGTH = {"max_new_tokens": 64}
# It has no word for an adapter. SageMaker's header names one, at the route that reads it.
WITH_ADAPTER: dict[str, Any] = {
    "base_url": f"{URL}/invocations",
    "headers": {"X-Amzn-SageMaker-Adapter-Identifier": ADAPTER},
    "timeout": 120,
}
WITHOUT: dict[str, Any] = {"base_url": URL, "timeout": 120}
WITH_MISSING = WITH_ADAPTER | {"headers": {"X-Amzn-SageMaker-Adapter-Identifier": "missing"}}
GRAMMAR = Grammar(type=GrammarType.Json, value=SCHEMA)
REGEX = Grammar(type=GrammarType.Regex, value="[0-9]{3}-[a-f]{2}")
CHAT: dict[str, Any] = {
    "messages": [Message(**message) for message in MESSAGES],
    "max_tokens": 64,
    "temperature": 0.0,
}
CALLED: dict[str, Any] = CHAT | {
    "max_tokens": 200,
    "tools": [Tool(**TOOL)],
    "tool_choice": "required",
}


def whole(reply: Any) -> dict[str, Any]:
    details = reply.details
    return {
        "text": reply.generated_text,
        "finish_reason": details.finish_reason.value,
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
        "finish_reason": last.details.finish_reason.value,
        "generated_tokens": last.details.generated_tokens,
        "events": len(events),
    }


def chatted(reply: Any) -> dict[str, Any]:
    [choice] = reply.choices
    return {
        "text": choice.message.content,
        "finish_reason": choice.finish_reason,
        "usage": reply.usage,
        "tool_calls": choice.message.tool_calls,
    }


def in_turn() -> dict[str, Any]:
    client, adapted = Client(**WITHOUT), Client(**WITH_ADAPTER)
    detailed: dict[str, Any] = {"decoder_input_details": True, "top_n_tokens": 2, **LENGTH}
    sampled: dict[str, Any] = {"do_sample": True, "seed": 7, "temperature": 3.0, **LENGTH}
    return {
        "base": whole(client.generate(RENDERED, **LENGTH)),
        "adapter": whole(adapted.generate(RENDERED, **detailed)),
        "streamed": streamed(list(adapted.generate_stream(RENDERED, **LENGTH))),
        "streamed_base": streamed(list(client.generate_stream(RENDERED, **LENGTH))),
        "sampled": [whole(client.generate("The", **sampled)) for _ in range(2)],
        "stopped": whole(adapted.generate(RENDERED, stop_sequences=["FROM"], **LENGTH)),
        "json": client.generate(RENDERED, grammar=GRAMMAR, max_new_tokens=200).generated_text,
        "json_with_adapter": adapted.generate(
            RENDERED, grammar=GRAMMAR, max_new_tokens=200
        ).generated_text,
        "regex": client.generate(RENDERED, grammar=REGEX, max_new_tokens=200).generated_text,
        "chat": chatted(client.chat(**CHAT)),
        "tool": chatted(client.chat(**CALLED)),
        "streamed_chat": raised(lambda: list(client.chat(stream=True, **CHAT))),
        "missing": raised(lambda: Client(**WITH_MISSING).generate("x")),
        "missing_streamed": raised(lambda: list(Client(**WITH_MISSING).generate_stream("x"))),
        "too_long": raised(lambda: client.generate("x", max_new_tokens=10**6)),
        "too_long_chat": raised(lambda: client.chat(**(CHAT | {"max_tokens": 10**6}))),
    }


async def at_once() -> dict[str, Any]:
    client, adapted = AsyncClient(**WITHOUT), AsyncClient(**WITH_ADAPTER)

    async def stream(of: AsyncClient, prompt: str = RENDERED) -> dict[str, Any]:
        return streamed([event async for event in of.generate_stream(prompt, **LENGTH)])

    base, adapter, streamed_base, streamed_adapter, chat = await asyncio.gather(
        client.generate(RENDERED, **LENGTH),
        adapted.generate(RENDERED, **LENGTH),
        stream(client),
        stream(adapted),
        client.chat(**CHAT),
    )
    return {
        "base": whole(base),
        "adapter": whole(adapter),
        "streamed": streamed_adapter,
        "streamed_base": streamed_base,
        "chat": chatted(chat),
        "missing": await raised_async(lambda: AsyncClient(**WITH_MISSING).generate("x")),
        "missing_streamed": await raised_async(lambda: stream(AsyncClient(**WITH_MISSING), "x")),
    }


tell(sync=in_turn(), asynchronous=asyncio.run(at_once()))
