"""From a checked request to pieces of text: what every door does between its two shapes."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError, WorkerLost
from adex_proto.grammar import Grammar
from adex_proto.outcome import TokenScore, WorkerInfo
from adex_proto.sampling import FinishReason
from adex_scheduler.engine import EngineRequest, Journey, Piece, Start
from adex_scheduler.front.body import shown
from adex_scheduler.front.ports import Run, Serving
from adex_scheduler.front.prompts import token_ids_of
from adex_scheduler.front.schema import Prompt, Wish

# Pieces of one request's other sequences that may wait while the network takes one.
MERGED_PIECES_MAX = 64


@dataclass(frozen=True, slots=True)
class FieldNames:
    """What a route calls the fields that the context's length judges."""

    prompt: str
    max_new_tokens: str
    min_new_tokens: str
    truncate: str


TGI_FIELDS = FieldNames("inputs", "max_new_tokens", "min_new_tokens", "truncate")
COMPLETION_FIELDS = FieldNames("prompt", "max_tokens", "min_tokens", "truncate_prompt_tokens")
CHAT_FIELDS = FieldNames("messages", "max_tokens", "min_tokens", "truncate_prompt_tokens")


@dataclass(slots=True)
class Timeline:
    """When things happened to one request, in seconds of the monotonic clock."""

    began_s: float = field(default_factory=monotonic)
    submitted_s: float = 0.0
    first_token_s: float = 0.0
    last_token_s: float = 0.0
    runs: list[Run] = field(default_factory=list[Run])

    @property
    def queue_s(self) -> float:
        """How long the first of its sequences waited for a step; 0 while none has begun."""
        admitted = [run.journey.queue_s for run in self.runs if run.journey.admissions]
        return min(admitted, default=0.0)

    @property
    def adapter_tier(self) -> str:
        """Where the adapter was when the request came; empty for the base model, and before."""
        start = self.runs[0].journey.start if self.runs else Start.BASE
        return "" if start is Start.BASE else start.value


@dataclass(slots=True)
class Gathered:
    """One sequence's pieces, whole."""

    pieces: list[Piece] = field(default_factory=list[Piece])

    @property
    def text(self) -> str:
        """All text released to the caller."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def finish(self) -> FinishReason:
        """Why it ended."""
        finish = self.pieces[-1].finish
        assert finish is not None, "a sequence ended without a reason"
        return finish

    @property
    def prompt_scores(self) -> tuple[TokenScore, ...]:
        """How probable each prompt token but the first was, where that was asked for."""
        return self.pieces[0].prompt_scores

    @property
    def mean_logprob(self) -> float:
        """How probable its tokens are on average."""
        return sum(piece.token.logprob or 0.0 for piece in self.pieces) / len(self.pieces)


def most_probable(texts: Sequence[Gathered], count: int) -> list[Gathered]:
    """The `count` texts whose tokens are the most probable on average; ties as they came."""
    if count == len(texts):
        return list(texts)
    return sorted(texts, key=lambda text: -text.mean_logprob)[:count]


def worker_of(serving: Serving) -> WorkerInfo:
    """The worker's description. Raises WorkerLost while there is none."""
    info = serving.engine.info
    if info is None:
        raise WorkerLost(
            "no worker is connected yet", remedy="Try again shortly", retry_after_s=2.0
        )
    return info


def total_tokens_max(serving: Serving, info: WorkerInfo) -> int:
    """How many tokens prompt and output together may have."""
    room = min(info.positions_max, info.pages * info.block_tokens)
    limit = serving.options.total_tokens_max
    return min(room, limit) if limit else room


async def prepare(
    serving: Serving,
    wish: Wish,
    prompt: Prompt,
    names: FieldNames,
    *,
    request_id: str,
    tenant: str,
    key: AdapterKey | None,
    add_special_tokens: bool = True,
) -> EngineRequest:
    """The engine's request for one prompt, its lengths checked against the context.

    Raises ValidationError where they do not fit.
    """
    info = worker_of(serving)
    token_ids = await token_ids_of(serving.tokenizer, prompt, add_special_tokens)
    total = total_tokens_max(serving, info)
    if wish.truncate is not None:
        if wish.truncate >= total:
            raise ValidationError(
                f"`{names.truncate}` must be strictly positive and less than {total}. "
                f"Given: {shown(wish.truncate)}",
                field=names.truncate,
                remedy=f"Send a value below {total}",
            )
        token_ids = token_ids[-wish.truncate :]
    _check_tokens(token_ids, names, total=total, vocabulary=info.vocabulary)
    max_new_tokens = _new_tokens(serving, wish, names, len(token_ids), total)
    sampling = wish.sampling
    if sampling.min_new_tokens > max_new_tokens:
        raise ValidationError(
            f"`{names.min_new_tokens}` must be <= {max_new_tokens}, what can follow "
            f"{len(token_ids)} prompt tokens. Given: {sampling.min_new_tokens}",
            field=names.min_new_tokens,
            remedy="Ask for fewer, or shorten the prompt",
        )
    _check_ids("logit_bias", [token_id for token_id, _ in sampling.logit_bias], info.vocabulary)
    _check_ids("stop_token_ids", sampling.stop_token_ids, info.vocabulary)
    if sampling.grammar is not None:
        await _prepare_grammar(serving, sampling.grammar, wish.grammar_field)
    private = key is not None and key.credentialed
    return EngineRequest(
        request_id=request_id,
        # Whose turn it is, and whose prefixes may be shared, goes by the credential too.
        tenant=key.tenant if key is not None and private else tenant,
        key=key,
        token_ids=tuple(token_ids),
        sampling=replace(sampling, max_new_tokens=max_new_tokens),
        stops=wish.stops,
        include_stop=wish.include_stop,
        skip_special_tokens=wish.skip_special_tokens,
        credential=wish.credential if private else "",
        deadline_s=None if wish.deadline_ms is None else wish.deadline_ms / 1000,
    )


async def _prepare_grammar(serving: Serving, grammar: Grammar, field: str) -> None:
    """Have the grammar ready before the sequence is admitted, so that no step waits for it.

    Raises ValidationError where it cannot be honoured, by the name of the field that asked for it.
    """
    try:
        await serving.engine.prepare_grammar(grammar)
    except ValidationError as error:
        message = error.message.replace("`grammar`", f"`{field}`", 1)
        raise ValidationError(message, field=field, remedy=error.remedy) from error


def choices_of(request: EngineRequest, count: int) -> list[EngineRequest]:
    """`count` sequences of one request; each but the first has a name and a seed of its own."""
    first = request.sampling.seed
    return [request] + [
        replace(
            request,
            request_id=f"{request.request_id}-{index}",
            sampling=replace(request.sampling, seed=(first + index) % 2**64),
        )
        for index in range(1, count)
    ]


def _check_tokens(token_ids: list[int], names: FieldNames, *, total: int, vocabulary: int) -> None:
    if not token_ids:
        raise ValidationError(
            f"`{names.prompt}` cannot be empty: it has no tokens",
            field=names.prompt,
            remedy="Send at least one character",
        )
    if len(token_ids) >= total:
        raise ValidationError(
            f"`{names.prompt}` must have less than {total} tokens. Given: {len(token_ids)}",
            field=names.prompt,
            remedy=f"Shorten it, or let `{names.truncate}` cut it",
        )
    _check_ids(names.prompt, token_ids, vocabulary)


def _check_ids(field: str, token_ids: Sequence[int], vocabulary: int) -> None:
    if not token_ids:
        return
    lowest, highest = min(token_ids), max(token_ids)
    if lowest < 0 or highest >= vocabulary:
        wrong = lowest if lowest < 0 else highest
        raise ValidationError(
            f"`{field}` holds token id {shown(wrong)}, outside the vocabulary of {vocabulary}",
            field=field,
            remedy=f"Send ids from 0 to {vocabulary - 1}",
        )


def _new_tokens(
    serving: Serving, wish: Wish, names: FieldNames, prompt_tokens: int, total: int
) -> int:
    """How many tokens may be written: as asked, or what the context and the default leave."""
    if wish.max_new_tokens is None:
        room = total - prompt_tokens
        return min(room, max(serving.options.new_tokens_default_max, wish.sampling.min_new_tokens))
    if prompt_tokens + wish.max_new_tokens > total:
        raise ValidationError(
            f"`{names.prompt}` tokens + `{names.max_new_tokens}` must be <= {total}. Given: "
            f"{prompt_tokens} `{names.prompt}` tokens and {wish.max_new_tokens} "
            f"`{names.max_new_tokens}`",
            field=names.max_new_tokens,
            remedy=f"Ask for at most {total - prompt_tokens}",
        )
    return wish.max_new_tokens


async def pieces_of(
    serving: Serving, request: EngineRequest, timeline: Timeline
) -> AsyncGenerator[Piece, None]:
    """The sequence's pieces, measured; closing this iterator cancels the sequence."""
    if not timeline.submitted_s:
        timeline.submitted_s = monotonic()
    journey = Journey()
    timeline.runs.append(Run(request, journey))
    last_s = 0.0
    count = 0
    try:
        async with aclosing(serving.engine.stream(request, journey)) as pieces:
            async for piece in pieces:
                now_s = monotonic()
                if count == 0:
                    serving.meters.first_token(now_s - timeline.began_s, journey)
                    timeline.first_token_s = timeline.first_token_s or now_s
                else:
                    serving.meters.next_token(now_s - last_s)
                timeline.last_token_s = last_s = now_s
                count += 1
                yield piece
    finally:
        # A sequence that was refused, or never came to its first token, has read no prompt.
        if count:
            serving.meters.sequence_ended(monotonic() - timeline.began_s, journey, count)


async def gather(
    serving: Serving, requests: Sequence[EngineRequest], timeline: Timeline
) -> list[Gathered]:
    """All sequences whole, side by side; the first that fails ends the others."""

    async def one(request: EngineRequest) -> Gathered:
        gathered = Gathered()
        async with aclosing(pieces_of(serving, request, timeline)) as pieces:
            async for piece in pieces:
                gathered.pieces.append(piece)
        return gathered

    if len(requests) == 1:
        return [await one(requests[0])]
    tasks = [asyncio.create_task(one(request)) for request in requests]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def merged(
    serving: Serving, requests: Sequence[EngineRequest], timeline: Timeline
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(position of the sequence, piece) of all sequences in the order they come."""
    if len(requests) == 1:
        async with aclosing(pieces_of(serving, requests[0], timeline)) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    inbox: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(MERGED_PIECES_MAX)

    async def feed(index: int, request: EngineRequest) -> None:
        try:
            async with aclosing(pieces_of(serving, request, timeline)) as pieces:
                async for piece in pieces:
                    await inbox.put((index, piece))
        except Exception as error:  # raised again by the reader below
            await inbox.put(error)
        else:
            await inbox.put(None)

    tasks = [asyncio.create_task(feed(i, request)) for i, request in enumerate(requests)]
    try:
        running = len(tasks)
        while running:
            item = await inbox.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
