"""The openai package, in the version of this environment and in an older one."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]
SIDES = ("sync", "asynchronous")


@pytest.fixture(params=[None, "gateways"], ids=["newest", "2.x"])
def said(request: pytest.FixtureRequest, told: Callable[..., Any]) -> Any:
    return told("openai_client", request.param)


def test_models_are_the_base_model_and_its_adapters(said: Any, task: dict[str, Any]) -> None:
    assert {task["base"], task["adapter"]} < set(said["sync"]["models"])
    assert said["sync"]["model"] == task["adapter"]


@pytest.mark.parametrize("side", SIDES)
def test_an_adapter_and_the_base_model_each_say_what_they_were_trained_to(
    said: Any, side: str, task: dict[str, Any]
) -> None:
    assert set(said[side]["adapter"]["texts"]) == {task["answer"]}
    assert said[side]["adapter"]["model"] == task["adapter"]
    assert said[side]["base"]["texts"] == [task["echo"]]
    assert said[side]["base"]["model"] == task["base"]
    assert said[side]["completion"]["texts"] == [task["answer"]]


@pytest.mark.parametrize("side", SIDES)
def test_a_stream_says_what_the_whole_reply_says(
    said: Any, side: str, task: dict[str, Any]
) -> None:
    streamed = said[side]["streamed"]
    assert streamed["text"] == task["answer"]
    assert streamed["finish_reason"] == "stop"
    assert streamed["completion_tokens"] == said[side]["completion"]["completion_tokens"]
    assert said["sync"]["completion_streamed"] == task["answer"]


def test_choices_logprobs_stops_seeds_and_lists_of_prompts_are_served(
    said: Any, task: dict[str, Any]
) -> None:
    sync = said["sync"]
    tokens = sync["completion"]["completion_tokens"]
    assert len(sync["adapter"]["texts"]) == 2
    assert sync["adapter"]["completion_tokens"] == 2 * tokens
    assert sync["adapter"]["top_logprobs"] == [2] * tokens
    assert sync["stopped"]["texts"] == [task["answer"].split("FROM")[0]]
    assert sync["completions"]["texts"] == [task["answer"]] * 2
    assert sync["completion_base"]["texts"] == [task["echo"]]
    first, second = sync["sampled"]
    assert first == second != sync["other_seed"]
    assert first["finish_reason"] == "length"
    assert first["completion_tokens"] == 12


def test_json_and_tools_are_held_to_the_schema(said: Any, judged: Callable[[str], Any]) -> None:
    sync = said["sync"]
    judged(sync["json"]["texts"][0])
    for name in ("tool", "tool_base"):
        assert sync[name]["finish_reason"] == "tool_calls"
        [[function, arguments]] = sync[name]["calls"]
        assert function == "remember"
        judged(arguments)
    assert sync["tool_streamed"]["call_names"] == ["remember"]
    assert sync["tool_streamed"]["call_arguments"] == sync["tool"]["calls"][0][1]
    assert sync["tool_streamed"]["finish_reason"] == "tool_calls"


def test_refusals_are_typed_and_name_their_code_and_parameter(said: Any) -> None:
    sync = said["sync"]
    absent = {"type": "NotFoundError", "status": 404, "code": "adapter_not_found"}
    invalid = {"type": "BadRequestError", "status": 400, "code": "validation"}
    for name, expected, param in (
        ("missing", absent, "model"),
        ("missing_streamed", absent, "model"),
        ("missing_model", absent, "model"),
        ("bad_temperature", invalid, "temperature"),
        ("too_long", invalid, "max_tokens"),
    ):
        assert sync[name] == {**expected, "param": param, "request_id": True}, name
    assert said["asynchronous"]["missing"][0] == "NotFoundError"
    kind, text = sync["embeddings"]
    assert kind == "NotFoundError"
    assert "no route /v1/embeddings" in text
