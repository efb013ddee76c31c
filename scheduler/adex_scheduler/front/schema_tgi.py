"""Bodies of /generate, /generate_stream, / and /tokenize, as TGI and LoRAX know them."""

from collections.abc import Mapping

from adex_proto.errors import ValidationError
from adex_proto.sampling import COUNT_MAX, TOP_LOGPROBS_MAX, SamplingParams
from adex_scheduler.front.body import refusal
from adex_scheduler.front.fields import (
    RequestLimits,
    Table,
    Values,
    boolean,
    custom,
    integer,
    nested,
    refused,
    string,
)
from adex_scheduler.front.schema import (
    ADAPTER_SOURCE,
    ADD_SPECIAL_TOKENS,
    API_TOKEN,
    DEADLINE_MS,
    MIN_P,
    NAME_SCHEMA,
    SHARED,
    SKIP_SPECIAL_TOKENS,
    STOP_LIST,
    STREAM,
    TEMPERATURE,
    TOP_P,
    TYPICAL_P,
    AdapterName,
    GenerateRequest,
    TokenizeRequest,
    Wish,
    build_sampling,
    check_name,
    count_in_range,
)
from adex_scheduler.front.schema_grammar import grammar_of

BASE_NAMES = ("", "__base_model__")
SAMPLING_NAMES = {
    "max_new_tokens": "parameters.max_new_tokens",
    "min_new_tokens": "parameters.min_new_tokens",
    "ignore_eos": "parameters.ignore_eos_token",
}

ADAPTER_ID = custom(
    "adapter_id", "The adapter; the base model where left out or empty.", check_name, NAME_SCHEMA
)
MAX_NEW_TOKENS = count_in_range("max_new_tokens", "How many tokens may be written.")
MIN_NEW_TOKENS = count_in_range("min_new_tokens", "How many come before an end token may.")
IGNORE_EOS = boolean("ignore_eos_token", "Go on after the model's end token.").otherwise(False)
DO_SAMPLE = boolean("do_sample", "Draw tokens by their probability.").otherwise(False)
TOP_K = integer("top_k", "Draw among so many of the most probable.", low=1, high=COUNT_MAX)
SEED = count_in_range("seed", "What makes drawing repeatable; drawn where left out.")
BEST_OF = integer(
    "best_of", "Write so many texts and answer the most probable one.", low=1
).otherwise(1)
TRUNCATE = integer("truncate", "Keep the last so many tokens of the prompt.", low=1)
RETURN_FULL_TEXT = boolean("return_full_text", "Begin with the prompt.").otherwise(False)
DETAILS = boolean("details", "Tell tokens, seed and the reason of the end.").otherwise(False)
DECODER_INPUT_DETAILS = boolean(
    "decoder_input_details", "Tell the prompt's tokens and how probable each was."
).otherwise(False)
TOP_N_TOKENS = integer(
    "top_n_tokens", "List the most probable tokens at each place.", low=0, high=TOP_LOGPROBS_MAX
).otherwise(0)
RETURN_K_ALTERNATIVES = integer(
    "return_k_alternatives", "LoRAX's word for `top_n_tokens`.", low=1, high=TOP_LOGPROBS_MAX
).otherwise(0)

PARAMETERS = Table(
    "GenerateParameters",
    ADAPTER_ID,
    MAX_NEW_TOKENS,
    MIN_NEW_TOKENS,
    STOP_LIST,
    IGNORE_EOS,
    DO_SAMPLE,
    TOP_K,
    SEED,
    BEST_OF,
    TRUNCATE,
    RETURN_FULL_TEXT,
    DETAILS,
    DECODER_INPUT_DETAILS,
    TOP_N_TOKENS,
    RETURN_K_ALTERNATIVES,
    *SHARED,
    refused("merged_adapters", "Name one adapter in `parameters.adapter_id`"),
    refused("watermark", "Leave it out: texts are not watermarked", but=(False,)),
    refused("apply_chat_template", "Use /v1/chat/completions with `messages`", but=(False,)),
)
PARAMETERS_FIELD = nested("parameters", "How to generate.", PARAMETERS)
INPUTS = string("inputs", "The prompt.", least=1).demanded("Send the prompt as a string")
GENERATE = Table(
    "GenerateRequest",
    INPUTS,
    PARAMETERS_FIELD,
    STREAM,
    # Fields of other servers that would choose an adapter; unread, they would mean the base model.
    *(
        refused(name, "Name the adapter in `parameters.adapter_id`")
        for name in ("adapter_id", "adapter_source", "lora_path", "lora_name", "model")
    ),
)
TEXT = string("inputs", "The text.").demanded("Send the text as a string")
TOKENIZE = Table("TokenizeRequest", TEXT, ADD_SPECIAL_TOKENS)


def parse_generate(
    body: Mapping[str, object], limits: RequestLimits, *, seed: int, stream: bool | None
) -> GenerateRequest:
    """The request in `body`. `seed` is used where it samples and names none itself.

    `stream` says how the route answers; None lets the body's own `stream` say it.
    Raises ValidationError for the first field that is wrong.
    """
    values = GENERATE.read(body, limits)
    parameters = values[PARAMETERS_FIELD] or PARAMETERS.read({}, limits, "parameters")
    streams = values[STREAM] if stream is None else stream
    alternatives = max(parameters[TOP_N_TOKENS], parameters[RETURN_K_ALTERNATIVES])
    best_of, prefill = parameters[BEST_OF], parameters[DECODER_INPUT_DETAILS]
    details = parameters[DETAILS] or prefill
    # Every token of a stream, and of the details, has a log probability in these formats, and the
    # best of several texts is the most probable one.
    scored = details or streams or alternatives or best_of > 1
    sampling = _sampling(parameters, seed, alternatives if scored else None, prefill=prefill)
    if prefill and streams:
        name = parameters.name_of(DECODER_INPUT_DETAILS)
        raise refusal(name, True, "is not served when streaming tokens", "Ask for the whole text")
    _check_best_of(parameters, sampling, limits, streams=streams)
    wish = Wish(
        adapter=_adapter(parameters),
        sampling=sampling,
        grammar_field=grammar_of(parameters)[1],
        max_new_tokens=parameters[MAX_NEW_TOKENS],
        stops=parameters[STOP_LIST],
        include_stop=True,
        skip_special_tokens=parameters[SKIP_SPECIAL_TOKENS],
        truncate=parameters[TRUNCATE],
        stream=streams,
        ignored=values.ignored,
        credential=parameters[API_TOKEN],
        deadline_ms=parameters[DEADLINE_MS],
    )
    return GenerateRequest(
        prompt=values[INPUTS],
        wish=wish,
        details=details,
        return_full_text=parameters[RETURN_FULL_TEXT],
        alternatives=alternatives,
        best_of=best_of,
        prefill=prefill,
    )


def parse_tokenize(body: Mapping[str, object], limits: RequestLimits) -> TokenizeRequest:
    """The request in `body`."""
    values = TOKENIZE.read(body, limits)
    return TokenizeRequest(values[TEXT], values[ADD_SPECIAL_TOKENS], values.ignored)


def _adapter(parameters: Values) -> AdapterName | None:
    name = parameters[ADAPTER_ID]
    if name is None or name in BASE_NAMES:
        return None
    return AdapterName(name, parameters[ADAPTER_SOURCE])


def _sampling(
    parameters: Values, seed: int, logprobs: int | None, *, prefill: bool
) -> SamplingParams:
    """As LoRAX decides it: a filter or a temperature other than 0 and 1 implies sampling."""
    temperature, given_seed = parameters[TEMPERATURE], parameters[SEED]
    top_p, typical_p, min_p = parameters[TOP_P], parameters[TYPICAL_P], parameters[MIN_P]
    filtered = (
        parameters[TOP_K] is not None
        or (top_p is not None and top_p < 1.0)
        or (typical_p is not None and typical_p < 1.0)
        or (min_p is not None and min_p > 0.0)
    )
    sampled = parameters[DO_SAMPLE] or filtered or temperature not in (None, 0.0, 1.0)
    return build_sampling(
        parameters,
        parameters[MAX_NEW_TOKENS],
        SAMPLING_NAMES,
        min_new_tokens=parameters[MIN_NEW_TOKENS],
        temperature=(1.0 if temperature is None else temperature) if sampled else 0.0,
        top_k=parameters[TOP_K],
        seed=seed if given_seed is None else given_seed,
        ignore_eos=parameters[IGNORE_EOS],
        logprobs=logprobs,
        prompt_logprobs=0 if prefill else None,
    )


def _check_best_of(
    parameters: Values, sampling: SamplingParams, limits: RequestLimits, *, streams: bool
) -> None:
    """Several texts differ only where they are drawn, each with a seed of its own."""
    best_of, name = parameters[BEST_OF], parameters.name_of(BEST_OF)
    if best_of == 1:
        return
    if best_of > limits.sequences_max:
        raise ValidationError(
            f"`{name}` must be > 0 and <= {limits.sequences_max}. Given: {best_of}",
            field=name,
            remedy=f"Ask for at most {limits.sequences_max}",
        )
    if streams:
        raise refusal(name, best_of, "must be 1 when streaming tokens", "Ask for the whole text")
    if sampling.temperature == 0:
        raise ValidationError(
            f"you must use sampling when `{name}` is > 1",
            field=name,
            remedy="Set `do_sample`, or a `temperature` other than 0 and 1",
        )
    if parameters[SEED] is not None:
        raise ValidationError(
            f"`seed` must not be set when `{name}` > 1", field=name, remedy="Leave one of them out"
        )
