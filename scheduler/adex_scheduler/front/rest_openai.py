"""Routes of OpenAI: /v1/completions and /v1/chat/completions, whole and streamed."""

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic

from aiohttp import web

from adex_scheduler.engine import EngineRequest
from adex_scheduler.front import replies_openai
from adex_scheduler.front.callers import EVERYONE, payer_of
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
from adex_scheduler.front.prompts import beside_if_long, rendered
from adex_scheduler.front.replies_openai import Echo, Envelope, Json
from adex_scheduler.front.schema import ChatRequest, CompletionRequest, Prompt
from adex_scheduler.front.schema_openai import parse_chat, parse_completion
from adex_scheduler.front.sse import DONE, frame, json_bytes
from adex_scheduler.front.visit import (
    SERVING,
    Visit,
    body_of_request,
    header_text,
    stream_reply,
    visit_of,
    written_reply,
)
from adex_scheduler.text.tool_calls import CallForm, ToolCallReader

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
    texts: int
    """How many sequences each prompt has; those of a prompt are neighbours."""

    def usage(self, generated: int) -> Json:
        """Tokens read, each prompt once, and tokens written."""
        firsts = {request.request_id for request in self.sequences[:: self.texts]}
        runs = self.visit.timeline.runs
        cached = sum(run.journey.cached_tokens for run in runs if run.request.request_id in firsts)
        return replies_openai.usage(self.prompt_tokens, generated, cached)

    def echo(self, sequence: int) -> Echo | None:
        """What the text of the sequence at this place begins with."""
        asked = self.asked
        if isinstance(asked, ChatRequest) or not asked.echo:
            return None
        prompt, ids = asked.prompts[sequence // self.texts], self.sequences[sequence].token_ids
        if not isinstance(prompt, str) or asked.wish.truncate is not None:
            prompt = self.serving.tokenizer.decode(ids)
        return Echo(prompt, ids, asked.echo_only)


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
            CompletionChoice(serving.tokenizer, index, asked.logprobs, answering.echo(index))
            for index in range(len(answering.sequences))
        ]
        return await _streamed(request, answering, choices)
    texts = await _gathered(answering)

    def reply() -> Json:
        told: list[Json] = []
        for first in range(0, len(texts), asked.best_of):
            for text in most_probable(texts[first : first + asked.best_of], asked.choices):
                told.append(_completion_choice(answering, asked, len(told), first, text))
        return {"choices": told}

    return await _whole(answering, "text_completion", reply)


def _completion_choice(
    answering: Answering, asked: CompletionRequest, index: int, sequence: int, text: Gathered
) -> Json:
    tokenizer, echo = answering.serving.tokenizer, answering.echo(sequence)
    choice = replies_openai.text_choice(
        tokenizer, index, text.pieces, text.text, asked.logprobs, echo=echo
    )
    if asked.prompt_logprobs is not None:
        ids, scores = answering.sequences[sequence].token_ids, text.prompt_scores
        told = replies_openai.prompt_logprobs(tokenizer, ids, scores, asked.prompt_logprobs)
        choice["prompt_logprobs"] = told
    return choice


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
    texts = await _gathered(answering)

    def reply() -> Json:
        told: Json = {}
        if asked.prompt_logprobs is not None:
            ids, scores = answering.sequences[0].token_ids, texts[0].prompt_scores
            told["prompt_logprobs"] = replies_openai.prompt_logprobs(
                serving.tokenizer, ids, scores, asked.prompt_logprobs
            )
        told["choices"] = replies_openai.chat_choices(
            serving.tokenizer, answering.envelope.id, texts, readers, logprobs=asked.logprobs
        )
        return told

    return await _whole(answering, "chat.completion", reply)


async def _whole(answering: Answering, kind: str, told: Callable[[], Json]) -> web.Response:
    """The reply that is not streamed. Many scores are put into words beside the loop."""
    usage = answering.usage(answering.visit.new_tokens)

    def body() -> bytes:
        return json_bytes({**answering.envelope.fields(kind), **told(), "usage": usage})

    scores = sum(
        len(one.token_ids) * (1 + one.sampling.prompt_logprobs)
        for one in answering.sequences
        if one.sampling.prompt_logprobs is not None
    )
    return written_reply(await beside_if_long(scores, body), _headers(answering))


def _reader(serving: Serving, asked: ChatRequest) -> ToolCallReader | None:
    """What reads tool calls from one text, where any may be made."""
    if not asked.calls_max:
        return None
    names = asked.conversation.tool_names
    form = CallForm.BARE if asked.calls_demanded else serving.tokenizer.call_form
    return ToolCallReader(form, names, calls_max=asked.calls_max)


async def _gathered(answering: Answering) -> list[Gathered]:
    texts = await gather(answering.serving, answering.sequences, answering.visit.timeline)
    silent = isinstance(answering.asked, CompletionRequest) and answering.asked.echo_only
    answering.visit.new_tokens = 0 if silent else sum(len(text.pieces) for text in texts)
    return texts


async def _begin(
    request: web.Request, asked: Asked, prompts: Sequence[Prompt], names: FieldNames, prefix: str
) -> Answering:
    """Resolve the adapter, tokenise and check; nothing is computed yet."""
    serving, visit = request.app[SERVING], visit_of(request)
    visit.ignored = asked.wish.ignored
    tenant = payer_of(serving.options, request.headers.get("authorization"))
    adapter = serving.directory.adapter_of_model(asked.model, asked.source)
    visit.adapter = adapter.name if adapter else ""
    key = serving.directory.key_of(adapter, EVERYONE, asked.wish.credential)
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
    visit.prompt_tokens = prompt_tokens
    visit.timeline.submitted_s = monotonic()
    envelope = Envelope(
        id=f"{prefix}-{visit.request_id}",
        created=int(time.time()),
        model=adapter.name if adapter else asked.model or serving.directory.base_name,
        fingerprint=f"adex-{serving.options.version}",
    )
    return Answering(serving, visit, asked, envelope, sequences, prompt_tokens, texts)


async def _streamed(
    request: web.Request, answering: Answering, choices: Sequence[Choice]
) -> web.StreamResponse:
    """Chunks as the pieces come, then the usage where asked for, then [DONE]."""
    asked, kind = answering.asked, _chunk_kind(answering.asked)

    async def frames() -> AsyncGenerator[bytes, None]:
        generated = 0
        silent = isinstance(asked, CompletionRequest) and asked.echo_only
        pieces = merged(answering.serving, answering.sequences, answering.visit.timeline)
        async with aclosing(pieces):
            async for index, piece in pieces:
                generated += 0 if silent else 1
                answering.visit.new_tokens = generated
                for choice in choices[index].push(piece):
                    chunk = {**answering.envelope.fields(kind), "choices": [choice]}
                    if asked.continuous_usage:
                        chunk["usage"] = answering.usage(generated)
                    elif asked.include_usage:
                        chunk["usage"] = None
                    yield frame(chunk)
        if asked.include_usage:
            usage = answering.usage(generated)
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
        headers["x-adapter-id"] = header_text(answering.visit.adapter or "")
        headers["x-adapter-source"] = key.source
    return headers
