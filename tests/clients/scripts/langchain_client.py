"""langchain-openai: chats and texts, whole, streamed, batched, structured, with tools."""

import asyncio
import json
from typing import Any

from langchain_openai import ChatOpenAI, OpenAI
from sheet import ADAPTER, BASE, PROMPT, RENDERED, SCHEMA, TOOL, URL, raised, tell

CONNECT: dict[str, Any] = {
    "base_url": f"{URL}/v1",
    "api_key": "EMPTY",
    "max_retries": 0,
    "timeout": 120,
    "temperature": 0,
}


def chatted(message: Any) -> dict[str, Any]:
    return {
        "text": message.content,
        "finish_reason": message.response_metadata.get("finish_reason"),
        "completion_tokens": (message.usage_metadata or {}).get("output_tokens"),
        "calls": [[call["name"], json.dumps(call["args"])] for call in message.tool_calls],
    }


def chat(model: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, **(CONNECT | {"max_tokens": 64} | options))


def in_turn() -> dict[str, Any]:
    base, adapter = chat(BASE), chat(ADAPTER)
    longer = chat(ADAPTER, max_tokens=200)
    schema = {"title": "person", "description": "A person.", **SCHEMA}
    chunks = list(adapter.stream(PROMPT, stream_usage=True))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return {
        "base": chatted(base.invoke(PROMPT)),
        "adapter": chatted(adapter.invoke(PROMPT)),
        "streamed": chatted(whole),
        "chunks": len(chunks),
        "batched": [chatted(one) for one in adapter.batch([PROMPT, PROMPT])],
        "json": json.dumps(
            longer.with_structured_output(schema, method="json_schema").invoke(PROMPT)
        ),
        "structured_by_call": json.dumps(
            longer.with_structured_output(schema, method="function_calling").invoke(PROMPT)
        ),
        "tool": chatted(longer.bind_tools([TOOL], tool_choice="required").invoke(PROMPT)),
        "text": OpenAI(model=ADAPTER, max_tokens=64, **CONNECT).invoke(RENDERED),
        "missing": raised(lambda: chat("missing").invoke(PROMPT)),
        "missing_streamed": raised(lambda: list(chat("missing").stream(PROMPT))),
        "too_long": raised(lambda: chat(ADAPTER, max_tokens=10**6).invoke(PROMPT)),
    }


async def at_once() -> dict[str, Any]:
    adapter = chat(ADAPTER)

    async def stream() -> str:
        return "".join([str(chunk.content) async for chunk in adapter.astream(PROMPT)])

    whole, streamed = await asyncio.gather(adapter.ainvoke(PROMPT), stream())
    return {"adapter": chatted(whole), "streamed": streamed}


tell(sync=in_turn(), asynchronous=asyncio.run(at_once()))
