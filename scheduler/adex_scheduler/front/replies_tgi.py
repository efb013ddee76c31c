"""Replies of TGI and LoRAX as JSON values; pure.

A token's `text` is what it adds to the generated text, so that a client may join them; a special
token shows its own name, which is no part of that text. `top_tokens` is TGI's list beside the
tokens, `alternative_tokens` LoRAX's on each of them; both are given where either was asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from adex_proto.sampling import SamplingParams
from adex_scheduler.engine import Piece
from adex_scheduler.front.generation import Gathered
from adex_scheduler.front.sse import finite_logprob
from adex_scheduler.text.tokenizer import Tokenizer

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Told:
    """One text and how it was drawn; `prompt` holds the prompt's tokens where they are listed."""

    text: Gathered
    sampling: SamplingParams
    prompt: tuple[int, ...] = ()


def reply(
    tokenizer: Tokenizer,
    told: Sequence[Told],
    *,
    prefix: str,
    prompt_tokens: int,
    details: bool,
    alternatives: int,
) -> Json:
    """The reply of /generate: the best text first, then the others it was chosen among.

    `prefix` is the prompt where the full text was asked for.
    """
    [best, *others] = told
    whole: Json = {"generated_text": prefix + best.text.text}
    if not details:
        return whole
    described = {
        "prompt_tokens": prompt_tokens,
        "skipped_tokens": 0,
        **_details(tokenizer, best, alternatives),
    }
    if others:
        described["best_of_sequences"] = [
            {
                "generated_text": prefix + other.text.text,
                **_details(tokenizer, other, alternatives),
            }
            for other in others
        ]
    whole["details"] = described
    return whole


def _details(tokenizer: Tokenizer, told: Told, alternatives: int) -> Json:
    pieces = told.text.pieces
    described: Json = {
        "finish_reason": told.text.finish.value,
        "generated_tokens": len(pieces),
        "seed": seed_of(told.sampling),
        "prefill": prefill(tokenizer, told),
        "tokens": [token_of(tokenizer, piece, alternatives) for piece in pieces],
    }
    if alternatives:
        described["top_tokens"] = [top_tokens(tokenizer, piece) for piece in pieces]
    return described


def prefill(tokenizer: Tokenizer, told: Told) -> list[Json]:
    """The prompt's tokens; the first follows nothing, and has no log probability."""
    logprobs = [None, *(finite_logprob(score.logprob) for score in told.text.prompt_scores)]
    return [
        {"id": token_id, "text": tokenizer.token_text(token_id), "logprob": logprob}
        for token_id, logprob in zip(told.prompt, logprobs, strict=False)
    ]


def event(
    tokenizer: Tokenizer,
    piece: Piece,
    *,
    index: int,
    alternatives: int,
    generated_text: str | None,
    details: Json | None,
) -> Json:
    """One event of /generate_stream; the last carries the text and, if asked for, details."""
    told: Json = {"index": index, "token": token_of(tokenizer, piece, alternatives)}
    if alternatives:
        told["top_tokens"] = top_tokens(tokenizer, piece)
    told["generated_text"] = generated_text
    told["details"] = details
    return told


def stream_details(
    piece: Piece, *, index: int, prompt_tokens: int, sampling: SamplingParams
) -> Json:
    """The details at a stream's end; TGI calls the prompt's length `input_length`."""
    assert piece.finish is not None, "details come with the last piece"
    return {
        "finish_reason": piece.finish.value,
        "prompt_tokens": prompt_tokens,
        "generated_tokens": index,
        "seed": seed_of(sampling),
        "input_length": prompt_tokens,
    }


def seed_of(sampling: SamplingParams) -> int | None:
    """The seed that drew the tokens; None where nothing was drawn."""
    return sampling.seed if sampling.temperature > 0 else None


def token_of(tokenizer: Tokenizer, piece: Piece, alternatives: int) -> Json:
    """One generated token."""
    token: Json = {
        "id": piece.token.token_id,
        "text": piece.token_text if piece.special else piece.text,
        "logprob": finite_logprob(piece.token.logprob),
        "special": piece.special,
        "skipped": False,
    }
    if alternatives:
        token["alternative_tokens"] = [
            {"id": item["id"], "text": item["text"], "logprob": item["logprob"]}
            for item in top_tokens(tokenizer, piece)
        ]
    return token


def top_tokens(tokenizer: Tokenizer, piece: Piece) -> list[Json]:
    """The most probable tokens where `piece` was drawn, most probable first."""
    return [
        {
            "id": token_id,
            "text": tokenizer.token_text(token_id),
            "logprob": finite_logprob(logprob),
            "special": tokenizer.is_special(token_id),
        }
        for token_id, logprob in piece.token.alternatives
    ]


def tokenized(text: str, tokens: Sequence[tuple[int, int, int]]) -> list[Json]:
    """The reply of /tokenize; offsets count bytes of the text in UTF-8."""
    starts = [0]
    for character in text:
        starts.append(starts[-1] + len(character.encode()))
    return [
        {"id": token_id, "text": text[start:stop], "start": starts[start], "stop": starts[stop]}
        for token_id, start, stop in tokens
    ]
