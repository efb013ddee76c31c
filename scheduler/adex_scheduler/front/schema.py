"""What every request is checked into, whatever door it came by, and the fields several share.

A request that exists is legal in every field that can be judged without the prompt's length and
the model; those last checks are made in `front.generation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from adex_proto.errors import ValidationError
from adex_proto.sampling import BIAS_RANGE, COUNT_MAX, COUNT_RANGES, RANGES, SamplingParams
from adex_scheduler.front.body import refusal, whole_text
from adex_scheduler.front.fields import (
    Field,
    Json,
    RequestLimits,
    Values,
    an_object,
    boolean,
    custom,
    integer,
    integers,
    listed,
    number,
)
from adex_scheduler.front.schema_grammar import GRAMMAR_FIELDS, grammar_of

ADAPTER_NAME_CHARACTERS_MAX = 512
SOURCES = ("local", "hub", "s3", "pbase")
# What others call the same source.
SOURCE_NAMES = {name: name for name in SOURCES} | {"hf": "hub", "huggingface": "hub"}
CREDENTIAL_CHARACTERS_MAX = 8192  # AWS gives sessions tokens of a few thousand
# What an unbounded number of new tokens is checked as, before the context's end is known.
NEW_TOKENS_MAX = COUNT_MAX

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AdapterName:
    """An adapter as the caller named it; `source` None leaves it to the server."""

    name: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be generated, before the prompt is known in tokens.

    `sampling.max_new_tokens` counts only if `max_new_tokens` is given; `truncate` keeps the last
    so many prompt tokens; `grammar_field` is what asked for `sampling.grammar`; `ignored` names
    fields that had no effect; `credential` is what the adapter's source is asked with, "" for none.
    """

    adapter: AdapterName | None
    sampling: SamplingParams
    max_new_tokens: int | None
    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    truncate: int | None
    stream: bool
    grammar_field: str = ""
    ignored: tuple[str, ...] = ()
    credential: str = field(default="", repr=False)
    deadline_ms: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request in the form of TGI and LoRAX; the best of `best_of` texts is answered.

    `prefill`: the details list the prompt's tokens too.
    """

    prompt: str
    wish: Wish
    details: bool
    return_full_text: bool
    alternatives: int
    best_of: int
    prefill: bool


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request of /v1/completions; each prompt yields the best `choices` of `best_of` texts.

    `echo` begins each text with its prompt; `echo_only` leaves it at that. `prompt_logprobs` is
    how many alternatives to list for each token of the prompt, None for no list.
    """

    model: str | None
    source: str | None
    prompts: tuple[Prompt, ...]
    wish: Wish
    choices: int
    best_of: int
    add_special_tokens: bool
    echo: bool
    echo_only: bool
    logprobs: int | None
    prompt_logprobs: int | None
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages for the model's chat template, and what else it is given.

    `continues` leaves the last message open, for the model to go on with. `tools` are as the
    caller sent them.
    """

    messages: tuple[Mapping[str, object], ...]
    template_values: Mapping[str, object]
    add_generation_prompt: bool
    continues: bool
    tools: tuple[Mapping[str, object], ...]
    tool_names: tuple[str, ...]
    add_special_tokens: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request of /v1/chat/completions; `logprobs` is None or how many alternatives to list.

    `calls_max` is how many tool calls may be read from one text: none where no tools are offered.
    `calls_demanded`: the text is one call, whatever form the model would give it of itself.
    """

    model: str | None
    source: str | None
    conversation: Conversation
    wish: Wish
    choices: int
    calls_max: int
    calls_demanded: bool
    logprobs: int | None
    prompt_logprobs: int | None
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A request of /tokenize in TGI's form."""

    text: str
    add_special_tokens: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CountRequest:
    """A request of /tokenize in vLLM's form; with `words` the tokens' own texts are listed too."""

    source: str | Conversation
    add_special_tokens: bool
    words: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChatTokenizeRequest:
    """A request of /chat_tokenize."""

    conversation: Conversation
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DetokenizeRequest:
    """A request of /detokenize."""

    token_ids: tuple[int, ...]
    ignored: tuple[str, ...]


def _source(field: str, value: object, _: RequestLimits) -> str:
    if not isinstance(value, str) or value not in SOURCE_NAMES:
        raise refusal(
            field,
            value,
            f"must be one of {', '.join(SOURCE_NAMES)}",
            "Leave it out for the server's own default",
        )
    return SOURCE_NAMES[value]


def check_credential(field: str, value: object, _: RequestLimits | None = None) -> str:
    """A token of the caller's. Its errors never quote it: it is a secret."""
    if (
        not isinstance(value, str)
        or len(value) > CREDENTIAL_CHARACTERS_MAX
        or any(not "!" <= character <= "~" for character in value)
    ):
        raise ValidationError(
            f"`{field}` must be a token: up to {CREDENTIAL_CHARACTERS_MAX} visible characters",
            field=field,
            remedy="Send the token alone, without spaces, or leave it out",
        )
    return value


def check_name(field: str, value: object, _: RequestLimits | None = None) -> str:
    """An adapter name that can be one: bounded, printable."""
    if not isinstance(value, str):
        raise refusal(field, value, "must be a string", "Send a string or null")
    if len(value) > ADAPTER_NAME_CHARACTERS_MAX:
        raise ValidationError(
            f"`{field}` has {len(value)} characters, more than {ADAPTER_NAME_CHARACTERS_MAX}",
            field=field,
            remedy="Name the adapter by a shorter path or alias",
        )
    if not value.isprintable():
        raise refusal(field, value, "must be printable text", "Name the adapter by printable text")
    return whole_text(field, value)


def _stops(field: str, value: object, limits: RequestLimits) -> tuple[str, ...]:
    """At most `stops_max` non-empty strings of bounded length."""
    items = listed(field, value, limits.stops_max)
    return tuple([_stop(field, item, limits.stop_characters_max) for item in items])


def _stop(field: str, stop: object, characters_max: int) -> str:
    if not isinstance(stop, str):
        raise refusal(field, stop, "must be a list of strings", "Send only strings")
    if not stop:
        raise refusal(field, stop, "must not hold an empty string", "Leave it out")
    if len(stop) > characters_max:
        raise refusal(
            field, stop, f"must be at most {characters_max} characters", "Send a shorter one"
        )
    return whole_text(field, stop)


def _stops_or_one(field: str, value: object, limits: RequestLimits) -> tuple[str, ...]:
    return _stops(field, [value] if isinstance(value, str) else value, limits)


def _stops_schema(limits: RequestLimits) -> Json:
    one: Json = {"type": "string", "minLength": 1, "maxLength": limits.stop_characters_max}
    return {"type": "array", "items": one, "maxItems": limits.stops_max}


def _stops_or_one_schema(limits: RequestLimits) -> Json:
    several = _stops_schema(limits)
    return {"anyOf": [several["items"], several]}


def _logit_bias(field: str, value: object, limits: RequestLimits) -> tuple[tuple[int, float], ...]:
    """Token ids (as JSON object keys) to what is added to their logits."""
    found: list[tuple[int, float]] = []
    most = int(COUNT_RANGES["logit_bias"].high)
    biases = an_object(field, value)
    if len(biases) > most:
        raise ValidationError(
            f"`{field}` takes at most {most} tokens. Given: {len(biases)}",
            field=field,
            remedy=f"Send at most {most}",
        )
    for key, bias in biases.items():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise refusal(field, key, "must be keyed by token ids", "Send token ids")
        if bias is not None:
            checked = _BIAS.check(f"{field}.{key}", bias, limits)
            assert checked is not None
            found.append((int(key), checked))
    return tuple(found)


def in_range(name: str, about: str, *, called: str = "") -> Field[float | None]:
    """A number among the sampling parameters; `called` where the route names it otherwise."""
    allowed = RANGES[name]
    return number(called or name, about, low=allowed.low, high=allowed.high, above=allowed.above)


def count_in_range(name: str, about: str, *, called: str = "") -> Field[int | None]:
    """A whole number among the sampling parameters."""
    allowed = RANGES[name]
    return integer(called or name, about, low=int(allowed.low), high=int(allowed.high))


_BIAS = number("bias", low=BIAS_RANGE.low, high=BIAS_RANGE.high)

ADAPTER_SOURCE: Field[str | None] = custom(
    "adapter_source",
    "Where the adapter lies; the server's own default where left out.",
    _source,
    {"type": "string", "enum": list(SOURCE_NAMES)},
)
API_TOKEN = custom(
    "api_token",
    "What the adapter's source is asked with; the adapter is then this token's own.",
    check_credential,
    {"type": "string", "maxLength": CREDENTIAL_CHARACTERS_MAX, "pattern": "^[!-~]*$"},
).otherwise("")
DEADLINE_MS = number(
    "deadline_ms",
    "Within how many milliseconds the first token must come; what cannot keep that is refused.",
    low=1,
    high=3_600_000,
)
# Not every character is printable, and no schema language has a word for those that are.
NAME_SCHEMA: Json = {"type": "string", "maxLength": ADAPTER_NAME_CHARACTERS_MAX}
STOP_LIST = custom("stop", "Texts that end the generation.", _stops, _stops_schema).otherwise(())
STOP = custom(
    "stop", "A text, or several, that end the generation.", _stops_or_one, _stops_or_one_schema
).otherwise(())
STREAM = boolean("stream", "Answer piece by piece, as server-sent events.").otherwise(False)
SKIP_SPECIAL_TOKENS = boolean(
    "skip_special_tokens", "Leave special tokens out of the text."
).otherwise(True)
ADD_SPECIAL_TOKENS = boolean(
    "add_special_tokens", "Put the model's special tokens around the prompt."
).otherwise(True)

TEMPERATURE = in_range("temperature", "0 is greedy.")
TOP_P = in_range("top_p", "Draw among the most probable tokens that reach this probability.")
MIN_P = in_range("min_p", "Leave out tokens below this part of the most probable one's.")
TYPICAL_P = in_range("typical_p", "Draw among the most typical tokens that reach this.")
REPETITION_PENALTY = in_range("repetition_penalty", "Divides the logits of tokens seen before.")
FREQUENCY_PENALTY = in_range("frequency_penalty", "Subtracted for each time a token was written.")
PRESENCE_PENALTY = in_range("presence_penalty", "Subtracted once a token was written.")
LOGIT_BIAS = custom(
    "logit_bias",
    "Token ids to what is added to their logits.",
    _logit_bias,
    {
        "type": "object",
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
        "additionalProperties": {
            "type": ["number", "null"],
            "minimum": BIAS_RANGE.low,
            "maximum": BIAS_RANGE.high,
        },
        "maxProperties": int(COUNT_RANGES["logit_bias"].high),
    },
).otherwise(())
STOP_TOKEN_IDS = integers(
    "stop_token_ids",
    "Token ids that end the generation.",
    high=COUNT_MAX,
    most=int(COUNT_RANGES["stop_token_ids"].high),
)
# What all routes call the same.
SHARED: tuple[Field[Any], ...] = (
    TEMPERATURE,
    TOP_P,
    MIN_P,
    TYPICAL_P,
    REPETITION_PENALTY,
    FREQUENCY_PENALTY,
    PRESENCE_PENALTY,
    LOGIT_BIAS,
    STOP_TOKEN_IDS,
    ADAPTER_SOURCE,
    API_TOKEN,
    DEADLINE_MS,
    SKIP_SPECIAL_TOKENS,
    *GRAMMAR_FIELDS,
)


def build_sampling(
    values: Values, max_new_tokens: int | None, names: Mapping[str, str], **others: object
) -> SamplingParams:
    """SamplingParams of the fields all routes share and of `others`; None leaves the default.

    An error names the field as the caller wrote it: `names` maps those the route calls otherwise.
    """
    given: dict[str, object] = {
        "top_p": values[TOP_P],
        "min_p": values[MIN_P],
        "typical_p": values[TYPICAL_P],
        "repetition_penalty": values[REPETITION_PENALTY],
        "frequency_penalty": values[FREQUENCY_PENALTY],
        "presence_penalty": values[PRESENCE_PENALTY],
        "logit_bias": values[LOGIT_BIAS],
        "stop_token_ids": values[STOP_TOKEN_IDS],
        "grammar": grammar_of(values)[0],
        **others,
    }
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return SamplingParams(
            max_new_tokens=NEW_TOKENS_MAX if max_new_tokens is None else max_new_tokens,
            **given,  # type: ignore[arg-type]
        )
    except ValidationError as error:
        if error.field is not None and error.field in names:
            called = names[error.field]
            message = error.message.replace(f"`{error.field}`", f"`{called}`")
            raise ValidationError(message, field=called, remedy=error.remedy) from None
        raise
