"""Bodies of /v1/completions and /v1/chat/completions, with the fields vLLM and LoRAX add."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

from adex_proto.errors import ValidationError
from adex_proto.sampling import SEED_MAX, TOP_LOGPROBS_MAX, SamplingParams
from adex_scheduler.front.fields import Fields, refusal, shown, whole_text
from adex_scheduler.front.schema import (
    ChatRequest,
    CompletionRequest,
    Prompt,
    RequestLimits,
    Wish,
    build_sampling,
    check_name,
    read_credential,
    read_logit_bias,
    read_source,
    read_stops,
)

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SAMPLING_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
# Fields that clients send and that cannot change the text.
HARMLESS = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
CONSTRAINED = (
    "grammar",
    "guided_json",
    "guided_regex",
    "guided_choice",
    "guided_grammar",
    "structured_outputs",
)
NOT_SERVED = (
    "allowed_token_ids",
    "audio",
    "bad_words",
    "chat_template",
    "function_call",
    "functions",
    "logits_processors",
    "merged_adapters",
    "prompt_logprobs",
    "web_search_options",
)


def parse_completion(
    body: Mapping[str, object], limits: RequestLimits, *, seed: int
) -> CompletionRequest:
    """The request in `body`. Raises ValidationError for the first field that is wrong."""
    fields = Fields(body)
    prompts = _prompts(fields, limits)
    fields.refuse("suffix", but=("",), remedy="Leave it out: only the end of a text is written")
    fields.refuse("echo", but=(False,), remedy="Leave it out and prepend the prompt yourself")
    choices = _choices(fields, limits, len(prompts))
    best_of = fields.integer("best_of", 1)
    if best_of is not None and best_of != choices:
        raise refusal("best_of", best_of, f"must equal `n` ({choices})", "Leave it out")
    logprobs = fields.integer("logprobs", 0, TOP_LOGPROBS_MAX)
    fields.refuse("top_logprobs", remedy="Say how many in `logprobs`")
    max_new_tokens = fields.integer("max_tokens", 1)
    wish = _wish(fields, limits, max_new_tokens, seed, logprobs)
    usage, continuous = _stream_options(fields)
    model, source = _model(fields), read_source(fields)
    return CompletionRequest(
        model=model,
        source=source,
        prompts=prompts,
        wish=replace(wish, ignored=fields.unasked()),
        choices=choices,
        logprobs=logprobs,
        include_usage=usage,
        continuous_usage=continuous,
    )


def parse_chat(body: Mapping[str, object], limits: RequestLimits, *, seed: int) -> ChatRequest:
    """The request in `body`. Raises ValidationError for the first field that is wrong."""
    fields = Fields(body)
    messages = _messages(fields, limits)
    _refuse_tools(fields)
    choices = _choices(fields, limits, 1)
    wants_logprobs = fields.boolean("logprobs") or False
    top = fields.integer("top_logprobs", 0, TOP_LOGPROBS_MAX)
    if top and not wants_logprobs:
        raise refusal("top_logprobs", top, "needs `logprobs` true", "Send `logprobs`: true too")
    logprobs = (top or 0) if wants_logprobs else None
    max_new_tokens = _max_chat_tokens(fields)
    wish = _wish(fields, limits, max_new_tokens, seed, logprobs)
    usage, continuous = _stream_options(fields)
    values = fields.nested("chat_template_kwargs")
    prompt = fields.boolean("add_generation_prompt")
    model, source = _model(fields), read_source(fields)
    return ChatRequest(
        model=model,
        source=source,
        messages=messages,
        template_values={name: values.value(name) for name in values.names()} if values else {},
        add_generation_prompt=prompt is not False,
        wish=replace(wish, ignored=fields.unasked()),
        choices=choices,
        logprobs=logprobs,
        include_usage=usage,
        continuous_usage=continuous,
    )


def _wish(
    fields: Fields,
    limits: RequestLimits,
    max_new_tokens: int | None,
    seed: int,
    logprobs: int | None,
) -> Wish:
    """What both routes share; the adapter follows from `model`, which the front resolves."""
    credential = read_credential(fields)
    for name in HARMLESS:
        fields.value(name)
    for name in NOT_SERVED:
        fields.refuse(name, remedy="Leave it out: this server does not serve it")
    for name in CONSTRAINED:
        fields.refuse(name, remedy="Leave it out: output is not constrained")
    fields.refuse(
        "response_format", but=({"type": "text"},), remedy="Leave it out: output is not constrained"
    )
    fields.refuse("use_beam_search", but=(False,), remedy="Leave it out: beams are not served")
    return Wish(
        adapter=None,
        sampling=_sampling(fields, max_new_tokens, seed, logprobs),
        max_new_tokens=max_new_tokens,
        stops=read_stops(fields, limits, or_one=True),
        include_stop=fields.boolean("include_stop_str_in_output") or False,
        skip_special_tokens=fields.boolean("skip_special_tokens") is not False,
        truncate=fields.integer("truncate_prompt_tokens", 1),
        stream=fields.boolean("stream") or False,
        credential=credential,
    )


def _sampling(
    fields: Fields, max_new_tokens: int | None, seed: int, logprobs: int | None
) -> SamplingParams:
    """Temperature 0 is greedy, absent is 1; `top_k` -1 and 0 switch the filter off."""
    temperature = fields.number("temperature", 0.0)
    top_k = fields.integer("top_k", -1)
    given_seed = fields.integer("seed", -(2**63), SEED_MAX)
    return build_sampling(
        max_new_tokens,
        SAMPLING_NAMES,
        min_new_tokens=fields.integer("min_tokens", 0),
        temperature=1.0 if temperature is None else temperature,
        top_k=None if top_k is None else max(top_k, 0),
        top_p=fields.number("top_p"),
        min_p=fields.number("min_p"),
        typical_p=fields.number("typical_p"),
        repetition_penalty=fields.number("repetition_penalty"),
        frequency_penalty=fields.number("frequency_penalty"),
        presence_penalty=fields.number("presence_penalty"),
        logit_bias=read_logit_bias(fields),
        # OpenAI's seeds may be negative; each keeps a seed of its own.
        seed=seed if given_seed is None else given_seed % (SEED_MAX + 1),
        stop_token_ids=fields.integers("stop_token_ids"),
        ignore_eos=_ignore_eos(fields),
        logprobs=logprobs,
    )


def _ignore_eos(fields: Fields) -> bool:
    """vLLM calls it `ignore_eos`, LoRAX `ignore_eos_token`."""
    newer, older = fields.boolean("ignore_eos"), fields.boolean("ignore_eos_token")
    return bool(newer or older)


def _max_chat_tokens(fields: Fields) -> int | None:
    newer = fields.integer("max_completion_tokens", 1)
    older = fields.integer("max_tokens", 1)
    if newer is not None and older is not None and newer != older:
        raise refusal(
            "max_tokens", older, f"differs from `max_completion_tokens` ({newer})", "Send one"
        )
    return older if newer is None else newer


def _model(fields: Fields) -> str | None:
    model = fields.string("model")
    return None if model is None else check_name("model", model)


def _stream_options(fields: Fields) -> tuple[bool, bool]:
    """(a last chunk with usage, usage in every chunk)."""
    options = fields.nested("stream_options")
    if options is None:
        return False, False
    continuous = options.boolean("continuous_usage_stats") or False
    return (options.boolean("include_usage") or False), continuous


def _choices(fields: Fields, limits: RequestLimits, prompts: int) -> int:
    choices = fields.integer("n", 1) or 1
    if choices * prompts > limits.sequences_max:
        raise ValidationError(
            f"`n` times the number of prompts must be <= {limits.sequences_max}, "
            f"got {shown(choices)} times {prompts}",
            field="n",
            remedy="Send several requests",
        )
    return choices


def _prompts(fields: Fields, limits: RequestLimits) -> tuple[Prompt, ...]:
    """`prompt`: a string, token ids, or a list of either."""
    fields.refuse("prompt_embeds", remedy="Send the prompt as text or token ids")
    value = fields.value("prompt")
    if value is None:
        raise ValidationError(
            "`prompt` is missing", field="prompt", remedy="Send a string, or a list of strings"
        )
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise refusal(
            "prompt", value, "must be text, token ids or a non-empty list of these", "Send a string"
        )
    items = cast("list[object]", value)
    if _are_token_ids(items):
        items = [items]
    if len(items) > limits.sequences_max:
        raise ValidationError(
            f"`prompt` holds {len(items)} prompts, more than {limits.sequences_max}",
            field="prompt",
            remedy="Send several requests",
        )
    return tuple(_prompt(item) for item in items)


def _prompt(item: object) -> Prompt:
    if isinstance(item, str) and item:
        return whole_text("prompt", item)
    if isinstance(item, list) and item and _are_token_ids(cast("list[object]", item)):
        return tuple(cast("list[int]", item))
    raise refusal(
        "prompt", item, "must hold non-empty strings or lists of token ids", "Send a string"
    )


def _are_token_ids(items: list[object]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in items)


def _refuse_tools(fields: Fields) -> None:
    fields.refuse("tools", but=([],), remedy="Leave them out: tool calls are not served")
    fields.refuse("tool_choice", but=("none", "auto"), remedy='Leave it out or send "none"')
    fields.refuse("tool_prompt", remedy="Leave it out: tool calls are not served")
    fields.refuse("guideline", remedy="Leave it out, or write it into a system message")
    fields.refuse("modalities", but=(["text"],), remedy='Leave it out or send ["text"]')
    fields.refuse(
        "continue_final_message", but=(False,), remedy="Use /v1/completions to continue a text"
    )
    fields.boolean("parallel_tool_calls")


def _messages(fields: Fields, limits: RequestLimits) -> tuple[Mapping[str, object], ...]:
    messages = fields.objects("messages")
    if not messages:
        raise ValidationError(
            "`messages` is missing or empty",
            field="messages",
            remedy='Send a list such as [{"role": "user", "content": "..."}]',
        )
    if len(messages) > limits.messages_max:
        raise ValidationError(
            f"`messages` holds {len(messages)} messages, more than {limits.messages_max}",
            field="messages",
            remedy="Send a shorter conversation",
        )
    return tuple(_message(message) for message in messages)


def _message(message: Fields) -> Mapping[str, object]:
    """One message as templates read it: its text in one string, its tool calls as objects."""
    role = message.string("role")
    if role not in ROLES:
        raise refusal(
            message.name_of("role"),
            role,
            f"must be one of {', '.join(ROLES)}",
            "Name who speaks",
        )
    calls = message.objects("tool_calls")
    content = _content(message)
    if content is None and not calls and role != "assistant":
        raise ValidationError(
            f"`{message.name_of('content')}` is missing",
            field=message.name_of("content"),
            remedy="Send the message's text",
        )
    plain: dict[str, object] = {"role": role, "content": "" if content is None else content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        text = message.string(name)
        if text is not None:
            plain[name] = text
    if calls:
        plain["tool_calls"] = [_tool_call(call) for call in calls]
    return plain


def _content(message: Fields) -> str | None:
    """A string, or the texts of its parts joined."""
    if not isinstance(message.value("content"), list):
        return message.string("content")
    texts: list[str] = []
    for part in message.objects("content") or []:
        kind = part.string("type")
        if kind not in ("text", "input_text"):
            raise refusal(
                part.name_of("type"), kind, 'must be "text"', "Send text only: nothing else is read"
            )
        texts.append(part.string("text") or "")
    return "".join(texts)


def _tool_call(call: Fields) -> Mapping[str, object]:
    function = call.nested("function") or Fields({}, call.name_of("function"))
    arguments = function.value("arguments")
    if isinstance(arguments, str):
        # Callers send the arguments as JSON text; templates write them out themselves.
        with contextlib.suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return {
        "id": call.string("id"),
        "type": "function",
        "function": {"name": function.string("name") or "", "arguments": arguments},
    }
