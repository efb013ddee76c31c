"""huggingface_hub's inference clients, before and after its first major version."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]
SIDES = ("sync", "asynchronous")


@pytest.fixture(params=[("tgi", "0."), ("gateways", "2.")], ids=["0.x", "2.x"])
def said(request: pytest.FixtureRequest, told: Callable[..., Any]) -> Any:
    environment, version = request.param
    facts = told("huggingface_hub_client", environment)
    assert facts["version"].startswith(version)
    return facts


def test_an_adapter_and_the_base_model_each_say_what_they_were_trained_to(
    said: Any, task: dict[str, Any]
) -> None:
    for side in SIDES:
        assert said[side]["base"] == task["echo"]
        assert said[side]["streamed"]["text"] == task["answer"]
        assert said[side]["chat_adapter"]["text"] == task["answer"]
    assert said["sync"]["adapter"]["text"] == task["answer"]
    assert said["sync"]["chat"]["text"] == task["echo"]
    assert said["sync"]["chat_versioned"]["text"] == task["answer"]
    assert said["sync"]["chat_versioned"]["model"] == task["adapter"]


def test_a_stream_says_what_the_whole_reply_says(said: Any, task: dict[str, Any]) -> None:
    reply = said["sync"]["adapter"]
    for side in SIDES:
        events = said[side]["streamed"]
        assert events["joined"] == events["text"] == reply["text"]
        assert events["finish_reason"] == reply["finish_reason"] == "eos_token"
        assert events["events"] == events["generated_tokens"] == reply["generated_tokens"]
        assert said[side]["chat_streamed"] == {"text": task["answer"], "finish_reason": "stop"}
    # Without details the client hands out the ending token too, as it does from TGI.
    assert said["sync"]["streamed_texts"] == f"{task['answer']}<|end|>"


def test_details_count_tokens_and_a_seed_gives_the_same_text_again(said: Any) -> None:
    reply = said["sync"]["adapter"]
    assert reply["token_count"] == reply["generated_tokens"]
    assert reply["prefill_count"] > 0
    assert reply["top_tokens"] == [2] * reply["generated_tokens"]
    chat = said["sync"]["chat_adapter"]
    assert chat["completion_tokens"] == chat["logprobs"] == reply["generated_tokens"]
    first, second = said["sync"]["sampled"]
    assert first == second
    assert said["sync"]["stopped"].endswith("FROM")


def test_json_and_tools_are_held_to_the_schema(said: Any, judged: Callable[[str], Any]) -> None:
    judged(said["sync"]["json"])
    judged(said["sync"]["chat_json"]["text"])
    assert said["sync"]["tool"]["finish_reason"] == "tool_calls"
    [[name, arguments]] = said["sync"]["tool"]["calls"]
    assert name == "remember"
    judged(arguments)


def test_refusals_name_their_reason(said: Any) -> None:
    sync = said["sync"]
    refusals = [sync["missing"], sync["missing_streamed"], said["asynchronous"]["missing"]]
    for kind, text in refusals:
        assert kind == "UnknownError"
        assert "no local adapter 'missing'" in text
    kind, text = sync["missing_chat"]
    assert kind == "HfHubHTTPError"
    assert "404" in text
    assert "adapter_not_found" in text
    assert sync["too_long"][0] == "ValidationError"
