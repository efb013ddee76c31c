"""text-generation, TGI's own client. It names no adapter itself: a header does, at /invocations."""

import re
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]
SIDES = ("sync", "asynchronous")


@pytest.fixture
def said(told: Callable[..., Any]) -> Any:
    return told("text_generation_client", "tgi")


@pytest.mark.parametrize("side", SIDES)
def test_an_adapter_and_the_base_model_each_say_what_they_were_trained_to(
    said: Any, side: str, task: dict[str, Any]
) -> None:
    assert said[side]["adapter"]["text"] == task["answer"]
    assert said[side]["base"]["text"] == task["echo"]


@pytest.mark.parametrize("side", SIDES)
def test_a_stream_says_what_the_whole_reply_says(said: Any, side: str) -> None:
    for streamed, whole in (("streamed", "adapter"), ("streamed_base", "base")):
        events, reply = said[side][streamed], said[side][whole]
        assert events["joined"] == events["text"] == reply["text"]
        assert events["finish_reason"] == reply["finish_reason"] == "eos_token"
        assert events["events"] == events["generated_tokens"] == reply["generated_tokens"]


def test_details_count_tokens_and_a_seed_gives_the_same_text_again(said: Any) -> None:
    reply = said["sync"]["adapter"]
    assert reply["token_count"] == reply["generated_tokens"]
    assert reply["prefill_count"] > 0
    assert reply["top_tokens"] == [2] * reply["generated_tokens"]
    first, second = said["sync"]["sampled"]
    assert first == second
    assert first["seed"] == 7
    assert said["sync"]["stopped"]["finish_reason"] == "stop_sequence"


def test_grammars_hold_the_text_to_a_schema_and_to_an_expression(
    said: Any, judged: Callable[[str], Any]
) -> None:
    judged(said["sync"]["json"])
    judged(said["sync"]["json_with_adapter"])
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", said["sync"]["regex"])


@pytest.mark.parametrize("side", SIDES)
def test_a_chat_is_answered_by_the_base_model(said: Any, side: str, task: dict[str, Any]) -> None:
    chat = said[side]["chat"]
    assert chat["text"] == task["echo"]
    assert chat["finish_reason"] == "stop"
    usage = chat["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_a_demanded_tool_is_called(said: Any, judged: Callable[[str], Any]) -> None:
    reply = said["sync"]["tool"]
    assert reply["finish_reason"] == "tool_calls"
    [call] = reply["tool_calls"]
    assert call["function"]["name"] == "remember"
    judged(call["function"]["arguments"])


def test_a_streamed_chat_breaks_in_the_client_itself(said: Any) -> None:
    # It demands `tool_calls` of every chunk, which TGI leaves out too, and then looks for the
    # status under a name that requests does not have.
    assert said["sync"]["streamed_chat"] == [
        "AttributeError",
        "'Response' object has no attribute 'status'",
    ]


@pytest.mark.parametrize("side", SIDES)
def test_refusals_are_the_clients_own_errors(said: Any, side: str) -> None:
    for name in ("missing", "missing_streamed"):
        kind, text = said[side][name]
        assert kind == "NotFoundError"
        assert "no local adapter 'missing'" in text
    assert said["sync"]["too_long"][0] == "ValidationError"
    kind, text = said["sync"]["too_long_chat"]
    assert kind == "BadRequestError"
    assert "max_tokens" in text
