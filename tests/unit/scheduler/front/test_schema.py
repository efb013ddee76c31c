"""When a request samples, and what stands for what a caller leaves out."""

from typing import Any

import pytest

from adex_scheduler.front.fields import RequestLimits
from adex_scheduler.front.schema_openai import parse_chat, parse_completion
from adex_scheduler.front.schema_tgi import parse_generate

LIMITS = RequestLimits()


def generate(**parameters: Any) -> Any:
    body = {"inputs": "a", "parameters": parameters}
    return parse_generate(body, LIMITS, seed=77, stream=False)


def complete(**fields: Any) -> Any:
    return parse_completion({"prompt": "a", **fields}, LIMITS, seed=77)


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0.0),
        ({"do_sample": False}, 0.0),
        ({"temperature": 1.0}, 0.0),
        ({"temperature": 0}, 0.0),
        ({"temperature": 0, "do_sample": True}, 0.0),
        ({"top_p": 1.0, "typical_p": 1.0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"typical_p": 0.9}, 1.0),
        ({"min_p": 0.1}, 1.0),
        ({"temperature": 1.0, "do_sample": True}, 1.0),
    ],
)
def test_generate_samples_when_lorax_would(parameters: Any, temperature: float) -> None:
    assert generate(**parameters).wish.sampling.temperature == temperature


@pytest.mark.parametrize(
    ("fields", "temperature"), [({}, 1.0), ({"temperature": None}, 1.0), ({"temperature": 0}, 0.0)]
)
def test_openai_samples_unless_told_not_to(fields: Any, temperature: float) -> None:
    assert complete(**fields).wish.sampling.temperature == temperature


def test_a_seed_of_the_callers_is_kept_and_another_drawn_where_there_is_none() -> None:
    assert generate(seed=5).wish.sampling.seed == 5
    assert generate().wish.sampling.seed == 77
    assert complete(seed=-1).wish.sampling.seed == 2**64 - 1


def test_log_probabilities_are_computed_only_where_somebody_reads_them() -> None:
    assert generate().wish.sampling.logprobs is None
    assert generate(details=True).wish.sampling.logprobs == 0
    assert generate(top_n_tokens=3).wish.sampling.logprobs == 3
    assert generate(return_k_alternatives=4).wish.sampling.logprobs == 4
    streamed = parse_generate({"inputs": "a"}, LIMITS, seed=1, stream=True)
    assert streamed.wish.sampling.logprobs == 0
    assert complete().wish.sampling.logprobs is None
    assert complete(logprobs=0).wish.sampling.logprobs == 0


def test_every_field_may_be_null() -> None:
    fields = ("temperature", "top_p", "n", "stream", "stop", "seed", "logprobs", "max_tokens")
    fields += ("echo", "suffix", "best_of", "logit_bias", "user", "stream_options", "model")
    assert complete(**dict.fromkeys(fields)) == complete()
    assert parse_generate({"inputs": "a", "parameters": None}, LIMITS, seed=77, stream=False) == (
        generate()
    )


def test_a_whole_number_written_as_a_fraction_is_one() -> None:
    assert complete(max_tokens=5.0).wish.max_new_tokens == 5


def test_parts_of_a_message_join_and_tool_history_reaches_the_template() -> None:
    asked = parse_chat(
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                },
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": '{"x": 1}'}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "2"},
            ],
            "chat_template_kwargs": {"enable_thinking": False},
        },
        LIMITS,
        seed=1,
    )
    talk = asked.conversation
    assert talk.messages[0]["content"] == "ab"
    assert talk.messages[1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert talk.messages[2]["tool_call_id"] == "1"
    assert talk.template_values == {"enable_thinking": False}


def test_template_values_cannot_replace_the_messages_themselves() -> None:
    asked = parse_chat(
        {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"messages": []}},
        LIMITS,
        seed=1,
    )
    assert asked.conversation.messages[0]["content"] == "a"


def test_fields_without_effect_are_kept_by_name() -> None:
    assert complete(temperatur=1, user="me", typo=None).wish.ignored == ("temperatur",)
    assert generate(stop_sequence=["a"]).wish.ignored == ("parameters.stop_sequence",)
