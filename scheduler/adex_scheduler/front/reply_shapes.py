"""The JSON Schema of every whole reply, for the description of the REST door; pure.

Each says exactly which fields there are, so that a reply that gains one is noticed.
"""

from adex_scheduler.front.fields import Json
from adex_scheduler.front.openapi import COUNT, TEXT, nullable, several, shape

FLAG: Json = {"type": "boolean"}
LOGPROB: Json = {"type": "number", "maximum": 0}
MAYBE_COUNT, MAYBE_TEXT = nullable(COUNT), nullable(TEXT)

# TGI and LoRAX.
_ALTERNATIVE = shape({"id": COUNT, "text": TEXT, "logprob": LOGPROB})
_TOP = shape({"id": COUNT, "text": TEXT, "logprob": LOGPROB, "special": FLAG})
_TOKEN = shape(
    {"id": COUNT, "text": TEXT, "logprob": LOGPROB, "special": FLAG, "skipped": FLAG},
    {"alternative_tokens": several(_ALTERNATIVE)},
)
_PREFILL = shape({"id": COUNT, "text": TEXT, "logprob": nullable(LOGPROB)})
_SEQUENCE: Json = {
    "finish_reason": {"enum": ["length", "eos_token", "stop_sequence"]},
    "generated_tokens": COUNT,
    "seed": MAYBE_COUNT,
    "prefill": several(_PREFILL),
    "tokens": several(_TOKEN),
}
_TOP_TOKENS: Json = {"top_tokens": several(several(_TOP))}
_DETAILS = shape(
    {"prompt_tokens": COUNT, "skipped_tokens": COUNT, **_SEQUENCE},
    {
        **_TOP_TOKENS,
        "best_of_sequences": several(shape({"generated_text": TEXT, **_SEQUENCE}, _TOP_TOKENS)),
    },
)
GENERATED = shape({"generated_text": TEXT}, {"details": _DETAILS})
GENERATED_LIST: Json = {**several(GENERATED), "minItems": 1, "maxItems": 1}

# OpenAI.
USAGE = shape(
    {
        "prompt_tokens": COUNT,
        "completion_tokens": COUNT,
        "total_tokens": COUNT,
        "prompt_tokens_details": shape({"cached_tokens": COUNT}),
    }
)
_RANKED = shape(
    {"logprob": LOGPROB, "rank": nullable({"type": "integer", "minimum": 1}), "decoded_token": TEXT}
)
_PROMPT: Json = {
    "prompt_logprobs": several(nullable({"type": "object", "additionalProperties": _RANKED}))
}
_FINISH: Json = {"enum": ["stop", "length", "tool_calls"]}
_TEXT_LOGPROBS = shape(
    {
        "tokens": several(TEXT),
        "token_logprobs": several(nullable(LOGPROB)),
        "top_logprobs": nullable(
            several(nullable({"type": "object", "additionalProperties": LOGPROB}))
        ),
        "text_offset": several(COUNT),
    }
)
_CHAT_TOKEN: Json = {"token": TEXT, "logprob": LOGPROB, "bytes": several(COUNT)}
_CHAT_LOGPROBS = shape(
    {
        "content": several(shape({**_CHAT_TOKEN, "top_logprobs": several(shape(_CHAT_TOKEN))})),
        "refusal": {"type": "null"},
    }
)
_CALL = shape(
    {
        "id": TEXT,
        "type": {"const": "function"},
        "function": shape({"name": TEXT, "arguments": TEXT}),
    }
)
_MESSAGE = shape(
    {"role": {"const": "assistant"}, "content": MAYBE_TEXT}, {"tool_calls": several(_CALL)}
)


def _envelope(kind: str, choice: Json, optional: Json | None = None) -> Json:
    return shape(
        {
            "id": TEXT,
            "object": {"const": kind},
            "created": COUNT,
            "model": TEXT,
            "system_fingerprint": TEXT,
            "choices": several(choice),
            "usage": USAGE,
        },
        optional,
    )


COMPLETION = _envelope(
    "text_completion",
    shape(
        {
            "index": COUNT,
            "text": TEXT,
            "logprobs": nullable(_TEXT_LOGPROBS),
            "finish_reason": _FINISH,
        },
        _PROMPT,
    ),
)
CHAT = _envelope(
    "chat.completion",
    shape(
        {
            "index": COUNT,
            "message": _MESSAGE,
            "logprobs": nullable(_CHAT_LOGPROBS),
            "finish_reason": _FINISH,
        }
    ),
    _PROMPT,
)

# Tokens.
_SPAN = shape({"id": COUNT, "text": TEXT, "start": COUNT, "stop": COUNT})
SPANS = several(_SPAN)
COUNTED = shape(
    {
        "count": COUNT,
        "max_model_len": MAYBE_COUNT,
        "tokens": several(COUNT),
        "token_strs": nullable(several(TEXT)),
    }
)
TOKENIZED: Json = {"anyOf": [SPANS, COUNTED]}
CHAT_TOKENIZED = shape({"tokenize_response": SPANS, "templated_text": TEXT})
DETOKENIZED = shape({"prompt": TEXT})

# About the server.
HEALTH = shape({"status": TEXT})
VERSION = shape({"version": TEXT})
INFO: Json = {
    "type": "object",
    "properties": {"model_id": TEXT, "version": TEXT, "max_total_tokens": MAYBE_COUNT},
    "required": ["model_id", "version", "max_total_tokens", "max_input_length"],
}
_CARD: Json = {
    "id": TEXT,
    "object": {"const": "model"},
    "created": COUNT,
    "owned_by": TEXT,
    "root": TEXT,
    "parent": MAYBE_TEXT,
    "max_model_len": MAYBE_COUNT,
}
MODEL = shape(_CARD, {"source": TEXT, "tier": TEXT, "bytes": MAYBE_COUNT, "rank": MAYBE_COUNT})
MODELS = shape({"object": {"const": "list"}, "data": several(MODEL)})
DESCRIPTION: Json = {"type": "object", "required": ["openapi", "paths"]}

# Adapters and the control of them.
_TIER: Json = {"enum": ["absent", "disk", "host", "device"]}
ADAPTER = shape(
    {
        "id": TEXT,
        "object": {"const": "adapter"},
        "source": TEXT,
        "root": TEXT,
        "parent": TEXT,
        "tier": _TIER,
        "bytes": MAYBE_COUNT,
        "rank": MAYBE_COUNT,
        "digest": MAYBE_TEXT,
        "moving": FLAG,
        "pins": COUNT,
        "waiting": COUNT,
        "pinned": nullable({"enum": ["host", "device"]}),
        "pin_error": MAYBE_TEXT,
        "last_used_s": nullable({"type": "number", "minimum": 0}),
    }
)
ADAPTERS = shape({"object": {"const": "list"}, "data": several(ADAPTER)})
RUNTIME_NAMES = shape({"adapters": several(shape({"name": TEXT, "src": TEXT}))})
