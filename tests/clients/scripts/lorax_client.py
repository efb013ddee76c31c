"""lorax-client: its sync and its async client, every method that generates text."""

import asyncio
from typing import Any

from lorax import AsyncClient, Client, MergedAdapters
from sheet import ADAPTER, RENDERED, SCHEMA, URL, raised, raised_async, tell

LENGTHS = {"max_new_tokens": 64}
DETAILED: dict[str, Any] = {
    "adapter_id": ADAPTER,
    "adapter_source": "local",
    "details": True,
    "decoder_input_details": True,
    "return_k_alternatives": 2,
    **LENGTHS,
}
SAMPLED: dict[str, Any] = {
    "do_sample": True,
    "temperature": 3.0,
    "top_k": 50,
    "top_p": 0.95,
    "typical_p": 0.9,
    "repetition_penalty": 1.1,
    "seed": 7,
    "max_new_tokens": 12,
    "ignore_eos_token": True,
}
JSON: dict[str, Any] = {
    "response_format": {"type": "json_object", "schema": SCHEMA},
    "max_new_tokens": 200,
}
MISSING: dict[str, Any] = {"adapter_id": "missing", "max_new_tokens": 4}
MERGED: dict[str, Any] = {
    "merged_adapters": MergedAdapters(ids=["sql", "redact"], weights=[0.5, 0.5], density=0.5)
}


def whole(reply: Any) -> dict[str, Any]:
    details = reply.details
    return {
        "text": reply.generated_text,
        "finish_reason": details.finish_reason.value,
        "generated_tokens": details.generated_tokens,
        "prompt_tokens": details.prompt_tokens,
        "tokens": [token.text for token in details.tokens if not token.special],
        "token_count": len(details.tokens),
        "prefill_count": len(details.prefill),
        "alternatives": [len(token.alternative_tokens or []) for token in details.tokens],
        "seed": details.seed,
        "best_of": len(details.best_of_sequences or []),
    }


def streamed(events: list[Any]) -> dict[str, Any]:
    last = events[-1]
    return {
        "text": last.generated_text,
        "joined": "".join(event.token.text for event in events if not event.token.special),
        "finish_reason": last.details.finish_reason.value,
        "generated_tokens": last.details.generated_tokens,
        "events": len(events),
        "seed": last.details.seed,
    }


def in_turn() -> dict[str, Any]:
    client = Client(URL, headers={"X-Request-Id": "lorax-client"}, timeout=120)
    return {
        "base": whole(client.generate(RENDERED, **LENGTHS)),
        "adapter": whole(client.generate(RENDERED, **DETAILED)),
        "without_details": client.generate(RENDERED, details=False, **LENGTHS).details,
        "streamed": streamed(list(client.generate_stream(RENDERED, adapter_id=ADAPTER, **LENGTHS))),
        "streamed_base": streamed(list(client.generate_stream(RENDERED, **LENGTHS))),
        "sampled": [whole(client.generate("The", **SAMPLED)) for _ in range(2)],
        "sampled_stream": streamed(list(client.generate_stream("The", **SAMPLED))),
        "other_seed": whole(client.generate("The", **(SAMPLED | {"seed": 8}))),
        "best_of": whole(client.generate(RENDERED, do_sample=True, best_of=2, max_new_tokens=6)),
        "stopped": whole(
            client.generate(RENDERED, adapter_id=ADAPTER, stop_sequences=["FROM"], **LENGTHS)
        ),
        "full_text": client.generate(RENDERED, return_full_text=True, **LENGTHS).generated_text,
        "truncated": whole(client.generate(RENDERED, truncate=5, **LENGTHS)),
        "json": client.generate(RENDERED, **JSON).generated_text,
        "json_with_adapter": client.generate(RENDERED, adapter_id=ADAPTER, **JSON).generated_text,
        "missing": raised(lambda: client.generate("x", **MISSING)),
        "missing_streamed": raised(lambda: list(client.generate_stream("x", **MISSING))),
        "too_long": raised(lambda: client.generate("x", max_new_tokens=10**6)),
        "merged": raised(lambda: client.generate("x", **MERGED)),
        "watermark": raised(lambda: client.generate("x", watermark=True)),
        "embed": raised(lambda: client.embed("x")),
        "classify": raised(lambda: client.classify("x")),
        "classify_batch": raised(lambda: client.classify_batch(["x"])),
    }


async def at_once() -> dict[str, Any]:
    client = AsyncClient(URL, headers={"X-Request-Id": "lorax-client"}, timeout=2)

    async def stream(**parameters: Any) -> dict[str, Any]:
        events = [event async for event in client.generate_stream(RENDERED, **parameters)]
        return streamed(events)

    base, adapter, base_stream, adapter_stream = await asyncio.gather(
        client.generate(RENDERED, **LENGTHS),
        client.generate(RENDERED, **DETAILED),
        stream(**LENGTHS),
        stream(adapter_id=ADAPTER, **LENGTHS),
    )
    return {
        "base": whole(base),
        "adapter": whole(adapter),
        "streamed_base": base_stream,
        "streamed": adapter_stream,
        "sampled": [whole(await client.generate("The", **SAMPLED))],
        "missing": await raised_async(lambda: client.generate("x", **MISSING)),
        "missing_streamed": await raised_async(lambda: stream(**MISSING)),
        "too_long": await raised_async(lambda: client.generate("x", max_new_tokens=10**6)),
        "merged": await raised_async(lambda: client.generate("x", **MERGED)),
        "embed": await raised_async(lambda: client.embed("x")),
        "classify": await raised_async(lambda: client.classify("x")),
    }


tell(sync=in_turn(), asynchronous=asyncio.run(at_once()))
