"""Bodies of /generate, /generate_stream, / and /tokenize, as TGI and LoRAX know them."""

from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace

from adex_proto.errors import ValidationError
from adex_proto.sampling import SEED_MAX, TOP_LOGPROBS_MAX, SamplingParams
from adex_scheduler.front.fields import Fields, refusal
from adex_scheduler.front.schema import (
    AdapterName,
    GenerateRequest,
    RequestLimits,
    TokenizeRequest,
    Wish,
    build_sampling,
    check_name,
    read_credential,
    read_logit_bias,
    read_source,
    read_stops,
)

BASE_NAMES = ("", "__base_model__")
# Fields of other servers that would choose an adapter; unread, they would mean the base model.
MISPLACED = ("adapter_id", "adapter_source", "lora_path", "lora_name", "model")
SAMPLING_NAMES = {field.name: f"parameters.{field.name}" for field in fields_of(SamplingParams)} | {
    "ignore_eos": "parameters.ignore_eos_token",
    "logprobs": "parameters.top_n_tokens",
}
TEXT_FORMAT = {"type": "text"}


def parse_generate(
    body: Mapping[str, object], limits: RequestLimits, *, seed: int, stream: bool | None
) -> GenerateRequest:
    """The request in `body`. `seed` is used where it samples and names none itself.

    `stream` says how the route answers; None lets the body's own `stream` say it.
    Raises ValidationError for the first field that is wrong.
    """
    fields = Fields(body)
    prompt = fields.string("inputs")
    if prompt is None:
        raise ValidationError(
            "`inputs` is missing", field="inputs", remedy="Send the prompt as a string"
        )
    if not prompt:
        raise ValidationError(
            "`inputs` cannot be empty", field="inputs", remedy="Send at least one character"
        )
    for name in MISPLACED:
        fields.refuse(name, remedy="Name the adapter in `parameters.adapter_id`")
    parameters = fields.nested("parameters") or Fields({}, "parameters")
    if stream is None:
        stream = fields.boolean("stream") or False
    _refuse_unserved(parameters)
    credential = read_credential(parameters)
    alternatives = max(
        parameters.integer("top_n_tokens", 0, TOP_LOGPROBS_MAX) or 0,
        parameters.integer("return_k_alternatives", 1, TOP_LOGPROBS_MAX) or 0,
    )
    details = parameters.boolean("details") or False
    max_new_tokens = parameters.integer("max_new_tokens", 1)
    # Every token of a stream, and of the details, has a log probability in these formats.
    logprobs = alternatives if details or stream or alternatives else None
    sampling = _sampling(parameters, max_new_tokens, seed, logprobs)
    wish = Wish(
        adapter=_adapter(parameters),
        sampling=sampling,
        max_new_tokens=max_new_tokens,
        stops=read_stops(parameters, limits, or_one=False),
        include_stop=True,
        skip_special_tokens=parameters.boolean("skip_special_tokens") is not False,
        truncate=parameters.integer("truncate", 1),
        stream=stream,
        credential=credential,
    )
    full_text = parameters.boolean("return_full_text") or False
    ignored = (*fields.unasked(), *parameters.unasked())
    return GenerateRequest(
        prompt=prompt,
        wish=replace(wish, ignored=ignored),
        details=details,
        return_full_text=full_text,
        alternatives=alternatives,
    )


def parse_tokenize(body: Mapping[str, object]) -> TokenizeRequest:
    """The request in `body`: `inputs`, or `prompt` as other servers call it."""
    fields = Fields(body)
    text = fields.string("inputs")
    if text is None:
        text = fields.string("prompt")
    if text is None:
        raise ValidationError(
            "`inputs` is missing", field="inputs", remedy="Send the text as a string"
        )
    return TokenizeRequest(text, fields.boolean("add_special_tokens") is not False)


def _adapter(parameters: Fields) -> AdapterName | None:
    source = read_source(parameters)
    name = parameters.string("adapter_id")
    if name is None or name in BASE_NAMES:
        return None
    return AdapterName(check_name(parameters.name_of("adapter_id"), name), source)


def _sampling(
    parameters: Fields, max_new_tokens: int | None, seed: int, logprobs: int | None
) -> SamplingParams:
    """As LoRAX decides it: a filter or a temperature other than 0 and 1 implies sampling."""
    do_sample = parameters.boolean("do_sample") or False
    temperature = parameters.number("temperature", 0.0)
    top_k = parameters.integer("top_k", 1)
    top_p = parameters.number("top_p")
    typical_p = parameters.number("typical_p")
    min_p = parameters.number("min_p")
    filtered = (
        top_k is not None
        or (top_p is not None and top_p < 1.0)
        or (typical_p is not None and typical_p < 1.0)
        or (min_p is not None and min_p > 0.0)
    )
    sampled = do_sample or filtered or temperature not in (None, 0.0, 1.0)
    given_seed = parameters.integer("seed", 0, SEED_MAX)
    return build_sampling(
        max_new_tokens,
        SAMPLING_NAMES,
        min_new_tokens=parameters.integer("min_new_tokens", 0),
        temperature=(1.0 if temperature is None else temperature) if sampled else 0.0,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=parameters.number("repetition_penalty"),
        frequency_penalty=parameters.number("frequency_penalty"),
        presence_penalty=parameters.number("presence_penalty"),
        logit_bias=read_logit_bias(parameters),
        seed=seed if given_seed is None else given_seed,
        stop_token_ids=parameters.integers("stop_token_ids"),
        ignore_eos=parameters.boolean("ignore_eos_token"),
        logprobs=logprobs,
    )


def _refuse_unserved(parameters: Fields) -> None:
    parameters.refuse("merged_adapters", remedy="Name one adapter in `parameters.adapter_id`")
    best_of = parameters.integer("best_of")
    if best_of is not None and best_of != 1:
        raise refusal(
            parameters.name_of("best_of"), best_of, "must be 1", "Send one request per text"
        )
    parameters.refuse("watermark", but=(False,), remedy="Leave it out: texts are not watermarked")
    parameters.refuse(
        "decoder_input_details", but=(False,), remedy="Leave it out: prompts are not scored"
    )
    parameters.refuse(
        "apply_chat_template", but=(False,), remedy="Use /v1/chat/completions with `messages`"
    )
    parameters.refuse(
        "response_format", but=(TEXT_FORMAT,), remedy="Leave it out: output is not constrained"
    )
    parameters.refuse("grammar", remedy="Leave it out: output is not constrained")
