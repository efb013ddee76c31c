"""LiteLLM, by the two prefixes that its users give such a server."""

import asyncio
from typing import Any

import litellm
from sheet import ADAPTER, BASE, MESSAGES, RENDERED, RESPONSE_FORMAT, TOOL, URL, raised, tell

PREFIXES = ("openai", "hosted_vllm")
CONNECT: dict[str, Any] = {
    "api_base": f"{URL}/v1",
    "api_key": "EMPTY",
    "num_retries": 0,
    "timeout": 120,
}
CHAT: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 64, "temperature": 0, **CONNECT}
LONG: dict[str, Any] = CHAT | {"max_tokens": 200}


def chatted(reply: Any) -> dict[str, Any]:
    [choice] = reply.choices
    calls = choice.message.tool_calls or []
    return {
        "text": choice.message.content,
        "finish_reason": choice.finish_reason,
        "completion_tokens": reply.usage.completion_tokens,
        "calls": [[call.function.name, call.function.arguments] for call in calls],
    }


def chunked(chunks: list[Any]) -> dict[str, Any]:
    choices = [choice for chunk in chunks for choice in chunk.choices]
    return {
        "text": "".join(choice.delta.content or "" for choice in choices),
        "finish_reason": choices[-1].finish_reason,
    }


def in_turn(prefix: str) -> dict[str, Any]:
    base, adapter, missing = (f"{prefix}/{name}" for name in (BASE, ADAPTER, "missing"))
    called = {"tools": [TOOL], "tool_choice": "required", **LONG}
    return {
        "base": chatted(litellm.completion(model=base, **CHAT)),
        "adapter": chatted(litellm.completion(model=adapter, **CHAT)),
        "streamed": chunked(list(litellm.completion(model=adapter, stream=True, **CHAT))),
        "json": chatted(litellm.completion(model=adapter, response_format=RESPONSE_FORMAT, **LONG)),
        "tool": chatted(litellm.completion(model=adapter, **called)),
        "missing": raised(lambda: litellm.completion(model=missing, **CHAT)),
        "missing_streamed": raised(
            lambda: list(litellm.completion(model=missing, stream=True, **CHAT))
        ),
        "too_long": raised(
            lambda: litellm.completion(model=adapter, **(CHAT | {"max_tokens": 10**6}))
        ),
    }


async def at_once() -> dict[str, Any]:
    model = f"openai/{ADAPTER}"

    async def stream() -> dict[str, Any]:
        chunks = await litellm.acompletion(model=model, stream=True, **CHAT)
        return chunked([chunk async for chunk in chunks])

    whole, streamed = await asyncio.gather(litellm.acompletion(model=model, **CHAT), stream())
    return {"adapter": chatted(whole), "streamed": streamed}


def texts() -> str:
    reply = litellm.text_completion(
        model=f"text-completion-openai/{ADAPTER}",
        prompt=RENDERED,
        max_tokens=64,
        temperature=0,
        **CONNECT,
    )
    return str(reply.choices[0].text)


litellm.suppress_debug_info = True
tell(
    sync={prefix: in_turn(prefix) for prefix in PREFIXES},
    asynchronous=asyncio.run(at_once()),
    text=texts(),
)
