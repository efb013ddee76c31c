"""Bodies of /v1/completions and /v1/chat/completions, with the fields vLLM and LoRAX add, and of
/tokenize and /detokenize in vLLM's form."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from adex_proto.errors import ValidationError
from adex_proto.grammar import Grammar
from adex_proto.sampling import COUNT_MAX, SEED_MAX, TOP_LOGPROBS_MAX, SamplingParams
from adex_scheduler.front.body import refusal, shown, whole_text
from adex_scheduler.front.fields import (
    Field,
    Json,
    RequestLimits,
    Table,
    Values,
    boolean,
    custom,
    idle,
    integer,
    integers,
    nested,
    refused,
    string,
)
from adex_scheduler.front.schema import (
    ADAPTER_SOURCE,
    ADD_SPECIAL_TOKENS,
    API_TOKEN,
    DEADLINE_MS,
    NAME_SCHEMA,
    SHARED,
    SKIP_SPECIAL_TOKENS,
    STOP,
    STREAM,
    TEMPERATURE,
    ChatRequest,
    ChatTokenizeRequest,
    CompletionRequest,
    CountRequest,
    DetokenizeRequest,
    Prompt,
    Wish,
    build_sampling,
    check_name,
    count_in_range,
)
from adex_scheduler.front.schema_chat import CONVERSATION, conversation_of
from adex_scheduler.front.schema_grammar import grammar_of
from adex_scheduler.front.schema_tools import TOOL_CHOICE, calls_max_of, demanded_call

SAMPLING_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
# Fields that clients send and that cannot change the text.
HARMLESS = (
    "metadata",
    "prompt_cache_key",
    "request_id",
    "safety_identifier",
    "service_tier",
    "store",
    "user",
)
NOT_SERVED = (
    "allowed_token_ids",
    "audio",
    "bad_words",
    "logits_processors",
    "merged_adapters",
    "prompt_embeds",
    "web_search_options",
)
# Texts of these tokens are written once for each token, however long the body.
DETOKENIZED_MAX = 1 << 20

MODEL = custom("model", "An adapter's name, or the base model's.", check_name, NAME_SCHEMA)
MAX_TOKENS = count_in_range(
    "max_new_tokens", "How many tokens may be written.", called="max_tokens"
)
MAX_COMPLETION_TOKENS = count_in_range(
    "max_new_tokens", "The newer name of `max_tokens`.", called="max_completion_tokens"
)
MIN_TOKENS = count_in_range(
    "min_new_tokens", "How many come before an end token may.", called="min_tokens"
)
MAX_TOKENS_OR_ECHO = integer(
    "max_tokens", "How many tokens may be written; 0 only with `echo`.", low=0, high=COUNT_MAX
)
ECHO = boolean("echo", "Begin each text with its prompt.").otherwise(False)
PROMPT_LOGPROBS = integer(
    "prompt_logprobs",
    "Tell how probable the prompt's tokens were, with so many alternatives.",
    low=0,
    high=TOP_LOGPROBS_MAX,
)
N = integer("n", "How many texts to answer for each prompt.", low=1).otherwise(1)
BEST_OF = integer("best_of", "How many texts to write, for the `n` most probable.", low=1)
TOP_K = integer("top_k", "As for others; -1 and 0 mean off.", low=-1, high=COUNT_MAX)
SEED = integer("seed", "What makes drawing repeatable.", low=-(2**63), high=SEED_MAX)
IGNORE_EOS = boolean("ignore_eos", "Go on after the model's end token.").otherwise(False)
IGNORE_EOS_TOKEN = boolean("ignore_eos_token", "LoRAX's word for it.").otherwise(False)
INCLUDE_STOP = boolean("include_stop_str_in_output", "Keep the stop text in the answer.").otherwise(
    False
)
TRUNCATE = integer("truncate_prompt_tokens", "Keep the prompt's last so many tokens.", low=1)
LOGPROBS_COUNT = integer(
    "logprobs", "Tell log probabilities, with so many alternatives.", low=0, high=TOP_LOGPROBS_MAX
)
LOGPROBS = boolean("logprobs", "Tell log probabilities.").otherwise(False)
TOP_LOGPROBS = integer(
    "top_logprobs", "With so many alternatives; needs `logprobs`.", low=0, high=TOP_LOGPROBS_MAX
)
INCLUDE_USAGE = boolean("include_usage", "A last chunk with the usage.").otherwise(False)
CONTINUOUS_USAGE = boolean("continuous_usage_stats", "Usage in every chunk.").otherwise(False)
STREAM_OPTIONS = nested(
    "stream_options",
    "What a stream tells besides.",
    Table("StreamOptions", INCLUDE_USAGE, CONTINUOUS_USAGE, idle("include_obfuscation")),
)


def _prompts(field: str, value: object, limits: RequestLimits) -> tuple[Prompt, ...]:
    """A string, token ids, or a list of either."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise refusal(
            field, value, "must be text, token ids or a non-empty list of these", "Send a string"
        )
    items = cast("list[object]", value)
    if _are_token_ids(items):
        items = [items]
    if len(items) > limits.sequences_max:
        raise ValidationError(
            f"`{field}` holds {len(items)} prompts, more than {limits.sequences_max}",
            field=field,
            remedy="Send several requests",
        )
    return tuple(_prompt(field, item) for item in items)


def _prompt(field: str, item: object) -> Prompt:
    if isinstance(item, str) and item:
        return whole_text(field, item)
    if isinstance(item, list) and item and _are_token_ids(cast("list[object]", item)):
        return tuple(cast("list[int]", item))
    raise refusal(field, item, "must hold non-empty strings or lists of token ids", "Send a string")


def _are_token_ids(items: list[object]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items)


def _prompts_schema(limits: RequestLimits) -> Json:
    text: Json = {"type": "string", "minLength": 1}
    ids: Json = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    several: Json = {"minItems": 1, "maxItems": limits.sequences_max}
    return {"anyOf": [text, ids, {"type": "array", "items": {"anyOf": [text, ids]}, **several}]}


PROMPT = custom(
    "prompt", "Text, token ids, or a list of either.", _prompts, _prompts_schema
).demanded("Send a string, or a list of strings")
BOTH: tuple[Field[Any], ...] = (
    MODEL,
    *SHARED,
    MIN_TOKENS,
    PROMPT_LOGPROBS,
    N,
    TOP_K,
    SEED,
    IGNORE_EOS,
    IGNORE_EOS_TOKEN,
    STOP,
    INCLUDE_STOP,
    TRUNCATE,
    STREAM,
    STREAM_OPTIONS,
    *(idle(name) for name in HARMLESS),
    *(refused(name, "Leave it out: this server does not serve it") for name in NOT_SERVED),
    refused("use_beam_search", "Leave it out: beams are not served", but=(False,)),
)
COMPLETION = Table(
    "CompletionRequest",
    PROMPT,
    *BOTH,
    MAX_TOKENS_OR_ECHO,
    ECHO,
    BEST_OF,
    LOGPROBS_COUNT,
    ADD_SPECIAL_TOKENS,
    refused("suffix", "Leave it out: only the end of a text is written", but=("",)),
    refused("top_logprobs", "Say how many in `logprobs`"),
)
CHAT = Table(
    "ChatRequest", *CONVERSATION, *BOTH, MAX_TOKENS, MAX_COMPLETION_TOKENS, LOGPROBS, TOP_LOGPROBS
)
RETURN_WORDS = boolean("return_token_strs", "List the tokens' texts too.").otherwise(False)
TEXT = string("prompt", "The text.").demanded("Send the text as a string")
COUNT_TEXT = Table("CountTextRequest", TEXT, MODEL, ADD_SPECIAL_TOKENS, RETURN_WORDS)
COUNT_CHAT = Table("CountChatRequest", *CONVERSATION, MODEL, RETURN_WORDS)
TOKENS = integers("tokens", "Token ids.", high=COUNT_MAX, most=DETOKENIZED_MAX).demanded(
    "Send a list of token ids"
)
DETOKENIZE = Table("DetokenizeRequest", TOKENS, MODEL)


def parse_completion(
    body: Mapping[str, object], limits: RequestLimits, *, seed: int
) -> CompletionRequest:
    """The request in `body`. Raises ValidationError for the first field that is wrong."""
    values = COMPLETION.read(body, limits)
    choices, best_of = values[N], values[BEST_OF]
    if best_of is None:
        best_of = choices
    _check_texts("n", choices, len(values[PROMPT]), limits)
    _check_texts("best_of", best_of, len(values[PROMPT]), limits)
    if best_of < choices:
        raise refusal("best_of", best_of, f"must be >= `n` ({choices})", "Leave it out")
    if best_of > choices and values[STREAM]:
        raise refusal("best_of", best_of, "must be `n` in a stream", "Ask for the whole text")
    logprobs = values[LOGPROBS_COUNT]
    # The best texts are the most probable ones.
    computed = 0 if logprobs is None and best_of > choices else logprobs
    echo, max_tokens = values[ECHO], values[MAX_TOKENS_OR_ECHO]
    if max_tokens == 0 and not echo:
        raise refusal("max_tokens", 0, "must be >= 1 without `echo`", "Send a value >= 1")
    asked = _prompt_logprobs(values)
    scored = [count for count in (asked, logprobs if echo else None) if count is not None]
    usage, continuous = _stream_options(values)
    return CompletionRequest(
        model=values[MODEL],
        source=values[ADAPTER_SOURCE],
        prompts=values[PROMPT],
        # An echo alone computes one token, which is not told.
        wish=_wish(
            values,
            1 if max_tokens == 0 else max_tokens,
            seed,
            computed,
            max(scored, default=None),
        ),
        choices=choices,
        best_of=best_of,
        add_special_tokens=values[ADD_SPECIAL_TOKENS],
        echo=echo,
        echo_only=max_tokens == 0,
        logprobs=logprobs,
        prompt_logprobs=asked,
        include_usage=usage,
        continuous_usage=continuous,
    )


def parse_chat(body: Mapping[str, object], limits: RequestLimits, *, seed: int) -> ChatRequest:
    """The request in `body`. Raises ValidationError for the first field that is wrong."""
    values = CHAT.read(body, limits)
    _check_texts("n", values[N], 1, limits)
    top = values[TOP_LOGPROBS]
    if top and not values[LOGPROBS]:
        raise refusal("top_logprobs", top, "needs `logprobs` true", "Send `logprobs`: true too")
    logprobs = (top or 0) if values[LOGPROBS] else None
    asked = _prompt_logprobs(values)
    usage, continuous = _stream_options(values)
    demanded = demanded_call(values)
    wish = _wish(values, _max_chat_tokens(values), seed, logprobs, asked)
    return ChatRequest(
        model=values[MODEL],
        source=values[ADAPTER_SOURCE],
        conversation=conversation_of(values),
        wish=wish if demanded is None else _demanding(values, wish, demanded),
        choices=values[N],
        calls_max=calls_max_of(values),
        calls_demanded=demanded is not None,
        logprobs=logprobs,
        prompt_logprobs=asked,
        include_usage=usage,
        continuous_usage=continuous,
    )


def parse_count_text(body: Mapping[str, object], limits: RequestLimits) -> CountRequest:
    """The request in `body`, which has a `prompt`."""
    values = COUNT_TEXT.read(body, limits)
    special, words = values[ADD_SPECIAL_TOKENS], values[RETURN_WORDS]
    return CountRequest(values[TEXT], special, words, values.ignored)


def parse_count_chat(body: Mapping[str, object], limits: RequestLimits) -> CountRequest:
    """The request in `body`, which has `messages`."""
    values = COUNT_CHAT.read(body, limits)
    conversation = conversation_of(values)
    special, words = conversation.add_special_tokens, values[RETURN_WORDS]
    return CountRequest(conversation, special, words, values.ignored)


def parse_chat_tokenize(body: Mapping[str, object], limits: RequestLimits) -> ChatTokenizeRequest:
    """The request in `body`: a chat's, of which the conversation alone counts."""
    values = CHAT.read(body, limits)
    return ChatTokenizeRequest(conversation_of(values), values.ignored)


def parse_detokenize(body: Mapping[str, object], limits: RequestLimits) -> DetokenizeRequest:
    """The request in `body`."""
    values = DETOKENIZE.read(body, limits)
    return DetokenizeRequest(values[TOKENS], values.ignored)


def _wish(
    values: Values,
    max_new_tokens: int | None,
    seed: int,
    logprobs: int | None,
    prompt_logprobs: int | None,
) -> Wish:
    """What both routes share; the adapter follows from `model`, which the front resolves."""
    return Wish(
        adapter=None,
        sampling=replace(
            _sampling(values, max_new_tokens, seed, logprobs), prompt_logprobs=prompt_logprobs
        ),
        grammar_field=grammar_of(values)[1],
        max_new_tokens=max_new_tokens,
        stops=values[STOP],
        include_stop=values[INCLUDE_STOP],
        skip_special_tokens=values[SKIP_SPECIAL_TOKENS],
        truncate=values[TRUNCATE],
        stream=values[STREAM],
        ignored=values.ignored,
        credential=values[API_TOKEN],
        deadline_ms=values[DEADLINE_MS],
    )


def _sampling(
    values: Values, max_new_tokens: int | None, seed: int, logprobs: int | None
) -> SamplingParams:
    """Temperature 0 is greedy, absent is 1; `top_k` -1 and 0 switch the filter off."""
    temperature, top_k, given_seed = values[TEMPERATURE], values[TOP_K], values[SEED]
    return build_sampling(
        values,
        max_new_tokens,
        SAMPLING_NAMES,
        min_new_tokens=values[MIN_TOKENS],
        temperature=1.0 if temperature is None else temperature,
        top_k=None if top_k is None else max(top_k, 0),
        # OpenAI's seeds may be negative; each keeps a seed of its own.
        seed=seed if given_seed is None else given_seed % (SEED_MAX + 1),
        ignore_eos=values[IGNORE_EOS] or values[IGNORE_EOS_TOKEN],
        logprobs=logprobs,
    )


def _demanding(values: Values, wish: Wish, call: Grammar) -> Wish:
    """The wish for a text that is one tool call."""
    field = values.name_of(TOOL_CHOICE)
    if wish.sampling.grammar is not None:
        raise ValidationError(
            f"`{wish.grammar_field}` and a demanded call exclude each other",
            field=field,
            remedy="Send one of them",
        )
    return replace(wish, sampling=replace(wish.sampling, grammar=call), grammar_field=field)


def _prompt_logprobs(values: Values) -> int | None:
    asked = values[PROMPT_LOGPROBS]
    if asked is not None and values[STREAM]:
        why = "is not served in a stream"
        raise refusal("prompt_logprobs", asked, why, "Ask for the whole text")
    return asked


def _max_chat_tokens(values: Values) -> int | None:
    newer, older = values[MAX_COMPLETION_TOKENS], values[MAX_TOKENS]
    if newer is not None and older is not None and newer != older:
        raise refusal(
            "max_tokens", older, f"differs from `max_completion_tokens` ({newer})", "Send one"
        )
    return older if newer is None else newer


def _stream_options(values: Values) -> tuple[bool, bool]:
    """(a last chunk with usage, usage in every chunk)."""
    options = values[STREAM_OPTIONS]
    return (
        (False, False) if options is None else (options[INCLUDE_USAGE], options[CONTINUOUS_USAGE])
    )


def _check_texts(field: str, texts: int, prompts: int, limits: RequestLimits) -> None:
    if texts * prompts > limits.sequences_max:
        raise ValidationError(
            f"`{field}` times the number of prompts must be <= {limits.sequences_max}, "
            f"got {shown(texts)} times {prompts}",
            field=field,
            remedy="Send several requests",
        )
