"""LiteLLM and LangChain, which many programs stand on."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture
def litellm(told: Callable[..., Any]) -> Any:
    return told("litellm_client", "gateways")


@pytest.fixture
def langchain(told: Callable[..., Any]) -> Any:
    return told("langchain_client", "gateways")


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm"])
def test_litellm_chats_with_adapters_by_either_prefix(
    litellm: Any, prefix: str, task: dict[str, Any], judged: Callable[[str], Any]
) -> None:
    said = litellm["sync"][prefix]
    assert said["base"]["text"] == task["echo"]
    assert said["adapter"]["text"] == said["streamed"]["text"] == task["answer"]
    assert said["adapter"]["finish_reason"] == said["streamed"]["finish_reason"] == "stop"
    assert said["adapter"]["completion_tokens"] > 0
    judged(said["json"]["text"])
    [[name, arguments]] = said["tool"]["calls"]
    assert name == "remember"
    if prefix == "openai":
        # By the other prefix the schema comes without `additionalProperties`, which LiteLLM takes
        # out of a tool; a demonstration's model may then write names until its tokens are spent.
        assert said["tool"]["finish_reason"] == "tool_calls"
        judged(arguments)


@pytest.mark.parametrize("prefix", ["openai", "hosted_vllm"])
def test_litellm_hears_of_a_missing_adapter_and_of_a_field_out_of_bounds(
    litellm: Any, prefix: str
) -> None:
    said = litellm["sync"][prefix]
    for name in ("missing", "missing_streamed"):
        kind, text = said[name]
        assert kind == "NotFoundError"
        assert "no local adapter 'missing'" in text
    kind, text = said["too_long"]
    assert kind == "BadRequestError"
    assert "max_tokens" in text


def test_litellm_completes_texts_and_serves_coroutines(litellm: Any, task: dict[str, Any]) -> None:
    assert litellm["text"] == task["answer"]
    assert litellm["asynchronous"]["adapter"]["text"] == task["answer"]
    assert litellm["asynchronous"]["streamed"]["text"] == task["answer"]


def test_langchain_chats_with_adapters_whole_streamed_and_batched(
    langchain: Any, task: dict[str, Any]
) -> None:
    said = langchain["sync"]
    assert said["base"]["text"] == task["echo"]
    assert said["adapter"]["text"] == task["answer"]
    assert said["streamed"] == said["adapter"]
    assert said["chunks"] > 3
    assert said["batched"] == [said["adapter"]] * 2
    assert said["text"] == task["answer"]
    assert langchain["asynchronous"]["adapter"] == said["adapter"]
    assert langchain["asynchronous"]["streamed"] == task["answer"]


def test_langchains_structured_output_and_tools_are_held_to_the_schema(
    langchain: Any, judged: Callable[[str], Any]
) -> None:
    said = langchain["sync"]
    judged(said["json"])
    judged(said["structured_by_call"])
    assert said["tool"]["finish_reason"] == "tool_calls"
    [[name, arguments]] = said["tool"]["calls"]
    assert name == "remember"
    judged(arguments)


def test_langchain_hears_of_a_missing_adapter_and_of_a_field_out_of_bounds(langchain: Any) -> None:
    said = langchain["sync"]
    for name in ("missing", "missing_streamed"):
        kind, text = said[name]
        assert kind == "OpenAIModelNotFoundError"
        assert "no local adapter 'missing'" in text
    assert said["too_long"][0] == "OpenAIInvalidRequestError"
