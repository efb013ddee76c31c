"""What every request is checked into, whatever door it came by.

A request that exists is legal in every field that can be judged without the prompt's length and
the model; those last checks are made in `front.generation`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from adex_proto.errors import ValidationError
from adex_proto.sampling import SamplingParams
from adex_scheduler.front.fields import Fields, refusal

ADAPTER_NAME_CHARACTERS_MAX = 512
SOURCES = ("local", "hub", "s3", "pbase")
# What others call the same source.
SOURCE_NAMES = {name: name for name in SOURCES} | {"hf": "hub", "huggingface": "hub"}
CREDENTIAL_CHARACTERS_MAX = 1024
# What an unbounded number of new tokens is checked as, before the context's end is known.
NEW_TOKENS_MAX = 2**31 - 1

Prompt = str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on single fields of a request."""

    stops_max: int = 16
    stop_characters_max: int = 512
    sequences_max: int = 16
    messages_max: int = 4096


@dataclass(frozen=True, slots=True)
class AdapterName:
    """An adapter as the caller named it; `source` None leaves it to the server."""

    name: str
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be generated, before the prompt is known in tokens.

    `sampling.max_new_tokens` counts only if `max_new_tokens` is given; `truncate` keeps the last
    so many prompt tokens; `ignored` names fields that had no effect; `credential` is what the
    adapter's source is asked with, "" for none.
    """

    adapter: AdapterName | None
    sampling: SamplingParams
    max_new_tokens: int | None
    stops: tuple[str, ...]
    include_stop: bool
    skip_special_tokens: bool
    truncate: int | None
    stream: bool
    ignored: tuple[str, ...] = ()
    credential: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """A request in the form of TGI and LoRAX."""

    prompt: str
    wish: Wish
    details: bool
    return_full_text: bool
    alternatives: int


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """A request of /v1/completions; each prompt yields `choices` texts."""

    model: str | None
    source: str | None
    prompts: tuple[Prompt, ...]
    wish: Wish
    choices: int
    logprobs: int | None
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request of /v1/chat/completions; `logprobs` is None or how many alternatives to list."""

    model: str | None
    source: str | None
    messages: tuple[Mapping[str, object], ...]
    template_values: Mapping[str, object]
    add_generation_prompt: bool
    wish: Wish
    choices: int
    logprobs: int | None
    include_usage: bool
    continuous_usage: bool


@dataclass(frozen=True, slots=True)
class TokenizeRequest:
    """A request of /tokenize."""

    text: str
    add_special_tokens: bool


def read_source(fields: Fields) -> str | None:
    """`adapter_source`, one of the known kinds."""
    source = fields.string("adapter_source")
    if source is not None and source not in SOURCE_NAMES:
        raise refusal(
            fields.name_of("adapter_source"),
            source,
            f"must be one of {', '.join(SOURCE_NAMES)}",
            "Leave it out for the server's own default",
        )
    return None if source is None else SOURCE_NAMES[source]


def read_credential(fields: Fields) -> str:
    """`api_token`, "" where there is none. Its errors never quote it: it is a secret."""
    value = fields.value("api_token")
    if value is None:
        return ""
    if (
        not isinstance(value, str)
        or len(value) > CREDENTIAL_CHARACTERS_MAX
        or any(not "!" <= character <= "~" for character in value)
    ):
        name = fields.name_of("api_token")
        raise ValidationError(
            f"`{name}` must be a token: up to {CREDENTIAL_CHARACTERS_MAX} visible characters",
            field=name,
            remedy="Send the token alone, without spaces, or leave it out",
        )
    return value


def check_name(field: str, name: str) -> str:
    """An adapter name that can be one: bounded, printable."""
    if len(name) > ADAPTER_NAME_CHARACTERS_MAX:
        raise ValidationError(
            f"`{field}` has {len(name)} characters, more than {ADAPTER_NAME_CHARACTERS_MAX}",
            field=field,
            remedy="Name the adapter by a shorter path or alias",
        )
    if not name.isprintable():
        raise refusal(field, name, "must be printable text", "Name the adapter by printable text")
    return name


def read_stops(fields: Fields, limits: RequestLimits, *, or_one: bool) -> tuple[str, ...]:
    """`stop`: at most `stops_max` non-empty strings of bounded length."""
    stops = fields.strings("stop", or_one=or_one) or ()
    name = fields.name_of("stop")
    if len(stops) > limits.stops_max:
        raise ValidationError(
            f"`{name}` supports up to {limits.stops_max} stop sequences. Given: {len(stops)}",
            field=name,
            remedy=f"Send at most {limits.stops_max}",
        )
    for stop in stops:
        if not stop:
            raise refusal(name, stop, "must not hold an empty string", "Leave it out")
        if len(stop) > limits.stop_characters_max:
            raise refusal(
                name,
                stop,
                f"must be at most {limits.stop_characters_max} characters",
                "Send a shorter stop sequence",
            )
    return stops


def read_logit_bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    """`logit_bias`: token ids (as JSON object keys) to what is added to their logits."""
    biases = fields.nested("logit_bias")
    if biases is None:
        return ()
    found: list[tuple[int, float]] = []
    for key in biases.names():
        if not key.isascii() or not key.isdigit() or len(key) > 10:
            raise refusal(
                fields.name_of("logit_bias"), key, "must be keyed by token ids", "Send token ids"
            )
        bias = biases.number(key, -100.0, 100.0)
        if bias is not None:
            found.append((int(key), bias))
    return tuple(found)


def build_sampling(
    max_new_tokens: int | None, names: Mapping[str, str], **values: object
) -> SamplingParams:
    """SamplingParams of the given values; an error names the field as the caller wrote it.

    `values` are fields of SamplingParams; None leaves the default. `names` maps those that the
    route calls otherwise.
    """
    given = {name: value for name, value in values.items() if value is not None}
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
