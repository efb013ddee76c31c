"""Whatever JSON a caller sends, the schema answers with a request or with one typed error."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.errors import ValidationError
from adex_scheduler.front.body import read_object
from adex_scheduler.front.fields import RequestLimits
from adex_scheduler.front.schema_openai import parse_chat, parse_completion
from adex_scheduler.front.schema_tgi import parse_generate, parse_tokenize

LIMITS = RequestLimits()
LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "text", "user", "auto", "\ud800", "a" * 3000, 10**400, 2**64])
)
JSON = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "7", "x"]), inner)
    ),
    max_leaves=6,
)
PARAMETERS = [
    "adapter_id",
    "adapter_source",
    "api_token",
    "best_of",
    "details",
    "do_sample",
    "frequency_penalty",
    "grammar",
    "ignore_eos_token",
    "logit_bias",
    "max_new_tokens",
    "merged_adapters",
    "min_new_tokens",
    "min_p",
    "presence_penalty",
    "repetition_penalty",
    "response_format",
    "return_full_text",
    "return_k_alternatives",
    "seed",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_n_tokens",
    "top_p",
    "truncate",
    "typical_p",
    "watermark",
]
OPENAI = [
    "best_of",
    "chat_template_kwargs",
    "echo",
    "frequency_penalty",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "min_tokens",
    "model",
    "n",
    "presence_penalty",
    "prompt",
    "response_format",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "suffix",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncate_prompt_tokens",
    "user",
]


def bodies(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names), JSON, max_size=5)


def refusal_of(parse: Callable[[], object]) -> ValidationError | None:
    """The error `parse` raises, if it raises one; any other kind fails the test."""
    try:
        parse()
    except ValidationError as error:
        return error
    return None


def judged(parse: Callable[[], object]) -> None:
    """The claim: a value, or a ValidationError that names a field and a remedy."""
    error = refusal_of(parse)
    if error is not None:
        assert error.field
        assert error.remedy
        assert len(str(error)) < 600
        str(error).encode()


@given(bodies(PARAMETERS))
@settings(max_examples=400)
def test_parameters_of_generate(parameters: dict[str, Any]) -> None:
    body = {"inputs": "a", "parameters": parameters}
    judged(lambda: parse_generate(body, LIMITS, seed=1, stream=None))


@given(bodies(["inputs", "parameters", "stream", "model", "prompt", "add_special_tokens"]))
@settings(max_examples=200)
def test_bodies_of_generate_and_tokenize(body: dict[str, Any]) -> None:
    judged(lambda: parse_generate(body, LIMITS, seed=1, stream=None))
    judged(lambda: parse_tokenize(body, LIMITS))


@given(bodies(OPENAI))
@settings(max_examples=400)
def test_bodies_of_the_openai_routes(body: dict[str, Any]) -> None:
    judged(lambda: parse_completion({"prompt": "a", **body}, LIMITS, seed=1))
    messages = [{"role": "user", "content": "a"}]
    judged(lambda: parse_chat({"messages": messages, **body}, LIMITS, seed=1))


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_bytes_are_an_object_or_an_error(body: bytes) -> None:
    error = refusal_of(lambda: read_object(body))
    assert error is None or error.remedy


@pytest.mark.parametrize("depth", [10, 100_000])
def test_no_depth_of_nesting_ends_the_process(depth: int) -> None:
    body = b'{"inputs":' + b"[" * depth + b"]" * depth + b"}"
    error = refusal_of(lambda: parse_generate(read_object(body), LIMITS, seed=1, stream=None))
    assert error is not None
    assert error.remedy
