"""The generation that the gRPC door has in common with /generate, and with chats."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from adex_proto.adapter import AdapterKey
from adex_scheduler.engine import EngineRequest
from adex_scheduler.front import replies_tgi
from adex_scheduler.front.callers import EVERYONE, payer_of
from adex_scheduler.front.generation import (
    CHAT_FIELDS,
    TGI_FIELDS,
    Timeline,
    choices_of,
    gather,
    most_probable,
    pieces_of,
    prepare,
)
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.prompts import beside_if_long, rendered
from adex_scheduler.front.replies_openai import finish_name
from adex_scheduler.front.replies_tgi import Told
from adex_scheduler.front.schema import AdapterName, ChatRequest, GenerateRequest


@dataclass(frozen=True, slots=True)
class Ask:
    """A request ready for the engine: as it was asked, with the adapter its name stands for."""

    asked: GenerateRequest
    request: EngineRequest
    key: AdapterKey | None


async def ask_of(
    serving: Serving, asked: GenerateRequest, *, request_id: str, credential: str | None
) -> Ask:
    """The engine's request for `asked`. Raises ValidationError where it does not fit."""
    tenant = payer_of(serving.options, credential)
    key = serving.directory.key_of(asked.wish.adapter, EVERYONE, asked.wish.credential)
    request = await prepare(
        serving,
        asked.wish,
        asked.prompt,
        TGI_FIELDS,
        request_id=request_id,
        tenant=tenant,
        key=key,
    )
    return Ask(asked, request, key)


async def events(
    serving: Serving, ask: Ask, timeline: Timeline
) -> AsyncGenerator[dict[str, object], None]:
    """The events of a stream, one for each token."""
    asked, sampling = ask.asked, ask.request.sampling
    prompt_tokens = len(ask.request.token_ids)
    text = asked.prompt if asked.return_full_text else ""
    index = 0
    async with aclosing(pieces_of(serving, ask.request, timeline)) as pieces:
        async for piece in pieces:
            index += 1
            text += piece.text
            last = piece.finish is not None
            details = None
            if last and asked.details:
                details = replies_tgi.stream_details(
                    piece, index=index, prompt_tokens=prompt_tokens, sampling=sampling
                )
            yield replies_tgi.event(
                serving.tokenizer,
                piece,
                index=index,
                alternatives=asked.alternatives,
                generated_text=text if last else None,
                details=details,
            )


async def whole(serving: Serving, ask: Ask, timeline: Timeline) -> tuple[dict[str, object], int]:
    """The reply that is not streamed, and how many tokens were generated for it."""
    asked = ask.asked
    requests = choices_of(ask.request, asked.best_of)
    texts = await gather(serving, requests, timeline)
    told = [
        Told(text, request.sampling, request.token_ids if asked.prefill else ())
        for text, request in zip(texts, requests, strict=True)
    ]
    [most] = most_probable(texts, 1)
    told.sort(key=lambda one: one.text is not most)
    reply = replies_tgi.reply(
        serving.tokenizer,
        told,
        prefix=asked.prompt if asked.return_full_text else "",
        prompt_tokens=len(ask.request.token_ids),
        details=asked.details,
        alternatives=asked.alternatives,
    )
    return reply, sum(len(text.pieces) for text in texts)


async def chat_events(
    serving: Serving, request: EngineRequest, timeline: Timeline
) -> AsyncGenerator[dict[str, object], None]:
    """The answer to a conversation as its text comes; the last event says why it ended."""
    count = 0
    async with aclosing(pieces_of(serving, request, timeline)) as pieces:
        async for piece in pieces:
            count += 1
            last = piece.finish is not None
            if piece.text or last:
                yield {
                    "content": piece.text,
                    "finish_reason": finish_name(piece.finish, None) if piece.finish else None,
                    "usage": _usage(request, count) if last else None,
                }


def _usage(request: EngineRequest, generated: int) -> dict[str, object]:
    prompt = len(request.token_ids)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


async def chat_request_of(
    serving: Serving, asked: ChatRequest, *, request_id: str, credential: str | None
) -> tuple[AdapterName | None, EngineRequest]:
    """The adapter a chat names, and the engine's request. Raises as `ask_of` does."""
    tenant = payer_of(serving.options, credential)
    adapter = serving.directory.adapter_of_model(asked.model, asked.source)
    request = await prepare(
        serving,
        asked.wish,
        await rendered(serving.tokenizer, asked.conversation),
        CHAT_FIELDS,
        request_id=request_id,
        tenant=tenant,
        key=serving.directory.key_of(adapter, EVERYONE, asked.wish.credential),
        add_special_tokens=asked.conversation.add_special_tokens,
    )
    return adapter, request


async def listed_tokens(
    serving: Serving, text: str, add_special_tokens: bool
) -> list[dict[str, object]]:
    """Each token with its own part of the text."""

    def tokens() -> list[dict[str, object]]:
        spans = serving.tokenizer.encode_with_offsets(text, add_special_tokens)
        return replies_tgi.tokenized(text, spans)

    return await beside_if_long(len(text), tokens)
