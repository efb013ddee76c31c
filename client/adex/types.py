"""What the calls take and give, as frozen dataclasses; names follow TGI, LoRAX and OpenAI."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, Protocol, TypedDict

# Where an adapter's files come from.
AdapterSource = Literal["local", "hub", "s3"]
# What can be done with an adapter.
AdapterAction = Literal["preload", "prefetch", "pin", "unpin", "reload", "unload"]


class HasJsonSchema(Protocol):
    """What knows its own JSON Schema, as pydantic's models do."""

    __name__: str

    def model_json_schema(self) -> Mapping[str, object]:
        """The schema."""
        ...


ResponseFormat = Mapping[str, object] | HasJsonSchema


class Sampling(TypedDict, total=False):
    """Every sampling parameter by name; one left out, or None, takes the server's default.

    As TGI and LoRAX have it, a generation is greedy unless `do_sample`, a filter (`top_k`, `top_p`,
    `min_p`, `typical_p`) or a `temperature` other than 0 and 1 is given. A text of `stop_sequences`
    ends the generation and stays in the text; `stop_token_ids` end it as the model's own end token
    does. `seed` makes a sampled text repeatable. `truncate` keeps the last so many prompt tokens.
    `top_n_tokens` also reports the n most probable tokens at each position. `logit_bias` maps token
    ids to what is added to their logits, -100 to 100. Of `best_of` texts the most probable one is
    answered, and `decoder_input_details` tells of the prompt's tokens; neither in a stream.

    `response_format` says what the text must belong to: {"type": "json_object"}, {"type":
    "json_schema", "schema": {...}}, {"type": "regex", "value": "..."}, {"type": "choice", "value":
    [...]}, {"type": "lark", "value": "..."}, or a pydantic model. `grammar` is TGI's word for it.
    `deadline_ms` is within how long the first token must come, or the request is refused.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop_sequences: list[str] | None
    stop_token_ids: list[int] | None
    ignore_eos_token: bool | None
    top_n_tokens: int | None
    truncate: int | None
    best_of: int | None
    decoder_input_details: bool | None
    return_full_text: bool | None
    response_format: ResponseFormat | None
    grammar: ResponseFormat | None
    deadline_ms: int | None


class ChatSampling(TypedDict, total=False):
    """The sampling parameters of a chat, under the same names as in `Sampling`.

    As OpenAI has it, a chat without a `temperature` is sampled at 1; 0 makes it greedy. `tools` are
    functions the model may call, {"type": "function", "function": {"name", "description",
    "parameters"}}; `tool_choice` is "auto", "none", "required", or names the one to call, and
    `parallel_tool_calls` False allows one call at most.
    """

    max_new_tokens: int | None
    min_new_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    stop_sequences: list[str] | None
    stop_token_ids: list[int] | None
    ignore_eos_token: bool | None
    top_n_tokens: int | None
    response_format: ResponseFormat | None
    grammar: ResponseFormat | None
    deadline_ms: int | None
    tools: Sequence[Mapping[str, object]] | None
    tool_choice: str | Mapping[str, object] | None
    parallel_tool_calls: bool | None


class Message(TypedDict):
    """One message of a conversation; a call's answer names the call in `tool_call_id`."""

    role: str
    content: str | None
    tool_calls: NotRequired[Sequence[Mapping[str, object]]]
    tool_call_id: NotRequired[str]
    name: NotRequired[str]


@dataclass(frozen=True, slots=True)
class AlternativeToken:
    """A token the model could have chosen at a position."""

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token. `special` tokens are not part of the generated text."""

    id: int
    text: str
    logprob: float | None
    special: bool
    skipped: bool = False
    alternatives: tuple[AlternativeToken, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptToken:
    """A token of the prompt; `logprob` is None for the first, which follows nothing."""

    id: int
    text: str
    logprob: float | None


@dataclass(frozen=True, slots=True)
class BestOfSequence:
    """A text that was written and not chosen."""

    generated_text: str
    finish_reason: str
    generated_tokens: int
    seed: int | None = None
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True, slots=True)
class Details:
    """How a generation went.

    `finish_reason` is "length", "eos_token" or "stop_sequence". `seed` is None when no draw was
    made. `tokens` is empty at the end of a stream, which has given them one by one. `prefill` are
    the prompt's tokens where `decoder_input_details` asked for them, `best_of_sequences` the texts
    that `best_of` left aside.
    """

    finish_reason: str
    prompt_tokens: int
    generated_tokens: int
    seed: int | None = None
    tokens: tuple[Token, ...] = ()
    prefill: tuple[PromptToken, ...] = ()
    best_of_sequences: tuple[BestOfSequence, ...] = ()


@dataclass(frozen=True, slots=True)
class Response:
    """A whole generation; `details` is None when they were not asked for."""

    generated_text: str
    details: Details | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class StreamResponse:
    """One token of a stream; the last one also carries the whole text and the details."""

    index: int
    token: Token
    generated_text: str | None = None
    details: Details | None = None

    @property
    def text(self) -> str:
        """What this token adds to the generated text."""
        return "" if self.token.special else self.token.text


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function the model calls; `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What a chunk adds to the call of this index; its first one carries `id` and `name`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """What the model answered."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def as_message(self) -> Message:
        """It as a message of the conversation that goes on."""
        said: Message = {"role": self.role, "content": self.content}
        if self.tool_calls:
            said["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return said


@dataclass(frozen=True, slots=True)
class ChatChoice:
    """One answer; `logprobs` is as the server gave it.

    `finish_reason` is "stop", "length" or "tool_calls".
    """

    index: int
    message: ChatMessage
    finish_reason: str | None
    logprobs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ChatCompletion:
    """The answer to a conversation."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage | None = None
    request_id: str | None = None

    @property
    def text(self) -> str:
        """The first answer's text."""
        return self.choices[0].message.content if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The first answer's calls."""
        return self.choices[0].message.tool_calls if self.choices else ()


@dataclass(frozen=True, slots=True)
class ChatChoiceDelta:
    """What a chunk adds to one answer."""

    index: int
    content: str = ""
    role: str | None = None
    finish_reason: str | None = None
    logprobs: Mapping[str, Any] | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatCompletionChunk:
    """One piece of a streamed answer; the last one carries `usage` and no choices."""

    id: str
    created: int
    model: str
    choices: tuple[ChatChoiceDelta, ...]
    usage: Usage | None = None

    @property
    def text(self) -> str:
        """What this chunk adds to the first answer."""
        return self.choices[0].content if self.choices else ""


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """An adapter as the server lists it.

    `root` is where it comes from, `parent` the base model it changes. `extra` holds whatever
    else the server tells, such as its tier, bytes and rank.
    """

    id: str
    root: str | None = None
    parent: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class AdapterState:
    """One adapter and all the server knows of it; None for what nobody has read yet.

    `tier` is "absent", "disk", "host" or "device"; `moving`: on its way between them. `pins` and
    `waiting` count sequences that hold it on the device and that wait for it. `pinned` is the tier
    an operator keeps it in; `pin_error` the code of what keeps the pin from holding.
    """

    id: str
    tier: str
    source: str | None = None
    root: str | None = None
    parent: str | None = None
    bytes: int | None = None
    rank: int | None = None
    digest: str | None = None
    moving: bool = False
    pins: int = 0
    waiting: int = 0
    pinned: str | None = None
    pin_error: str | None = None
    last_used_s: float | None = None


@dataclass(frozen=True, slots=True)
class AdapterProgress:
    """How near an adapter has come; the last one is `done` and carries the adapter."""

    id: str
    tier: str
    done: bool
    digest: str | None = None
    bytes: int | None = None
    adapter: AdapterState | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The base model and the server's limits; `extra` holds whatever else the server tells."""

    model_id: str
    model_dtype: str | None = None
    model_device_type: str | None = None
    max_input_length: int | None = None
    max_total_tokens: int | None = None
    version: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
