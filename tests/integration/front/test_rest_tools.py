"""Tools through OpenAI's own client, with templates that carry them and one that does not."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai import BadRequestError, OpenAI

from adex_scheduler.text.tokenizer import Tokenizer

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
TEMPLATE = (
    "{% if tools %}Write <tool_call> for {{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] | trim }}\n"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
ASK = [{"role": "user", "content": "Weather?"}]


@pytest.fixture
def tool_serving(serving_of: Callable[..., Any], the_tokenizer: Tokenizer) -> Any:
    serving = serving_of()
    config = {"chat_template": TEMPLATE, "eos_token": "<|end|>"}
    files = {
        "tokenizer.json": the_tokenizer._fast.to_str(),
        "tokenizer_config.json": json.dumps(config),
    }
    serving.engine.answer = CALL
    # The tiny model's 256 positions are few for a prompt with tools in it.
    serving.engine.info = replace(serving.engine.info, positions_max=4096, pages=256)
    return replace(serving, tokenizer=Tokenizer(files))


def chat(door: Any, **fields: Any) -> Any:
    fields = {"model": "tiny", "messages": ASK, "tools": TOOLS, **fields}
    with OpenAI(base_url=f"{door.url}/v1", api_key="none", max_retries=0) as client:
        made = client.chat.completions.create(**fields)
        return list(made) if fields.get("stream") else made


async def test_a_call_is_answered_as_a_tool_call(tool_serving: Any, opened: Any) -> None:
    async with opened(tool_serving) as door:
        reply = await asyncio.to_thread(chat, door, tool_choice="auto")
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "weather")
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    prompt = tool_serving.tokenizer.decode(door.engine.requests[0].token_ids)
    assert "Write <tool_call> for" in prompt


async def test_a_streamed_call_comes_in_deltas(tool_serving: Any, opened: Any) -> None:
    tool_serving.engine.answer = "Let me see. " + CALL
    async with opened(tool_serving) as door:
        chunks = await asyncio.to_thread(chat, door, stream=True)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [part for delta in deltas for part in delta.tool_calls or []]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see. "
    assert [call.function.name for call in calls if call.function.name] == ["weather"]
    assert calls[0].id
    assert all(call.index == 0 for call in calls)
    assert len(calls) > 2
    arguments = "".join(call.function.arguments or "" for call in calls)
    assert json.loads(arguments) == {"city": "Zürich"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_a_call_and_its_answer_go_back_into_the_template(
    tool_serving: Any, opened: Any
) -> None:
    async with opened(tool_serving) as door:
        first = await asyncio.to_thread(chat, door)
        message = first.choices[0].message.model_dump()
        answer = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "sun"}
        tool_serving.engine.answer = "It is sunny."
        second = await asyncio.to_thread(chat, door, messages=[*ASK, message, answer])
    assert second.choices[0].message.content == "It is sunny."
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].finish_reason == "stop"
    prompt = tool_serving.tokenizer.decode(door.engine.requests[1].token_ids)
    assert "assistant: \nZürich" in prompt
    assert "tool: sun" in prompt


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
async def test_a_call_can_be_demanded(tool_serving: Any, opened: Any, choice: Any) -> None:
    tool_serving.engine.answer = '{"name": "weather", "arguments": {"city": "Zürich"}}'
    async with opened(tool_serving) as door:
        reply = await asyncio.to_thread(chat, door, tool_choice=choice)
    [call] = reply.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    grammar = door.engine.requests[0].sampling.grammar
    schema = json.loads(grammar.text)
    assert schema["properties"]["name"] == {"const": "weather"}
    assert schema["properties"]["arguments"] == TOOLS[0]["function"]["parameters"]


async def test_parts_that_tools_share_by_name_stand_at_the_top(
    tool_serving: Any, opened: Any
) -> None:
    part = {"$defs": {"City": {"type": "string"}}, "type": "object"}
    schemas = [{**part, "properties": {"at": {"$ref": "#/$defs/City"}}}, part]
    tools = [
        {"type": "function", "function": {"name": f"f{index}", "parameters": schema}}
        for index, schema in enumerate(schemas)
    ]
    tool_serving.engine.answer = '{"name": "f0", "arguments": {}}'
    async with opened(tool_serving) as door:
        await asyncio.to_thread(chat, door, tools=tools, tool_choice="required")
        schema = json.loads(door.engine.requests[0].sampling.grammar.text)
        assert schema["$defs"] == {"City": {"type": "string"}}
        assert len(schema["anyOf"]) == 2
        other = {"$defs": {"City": {"type": "integer"}}, "type": "object"}
        tools[1]["function"]["parameters"] = other
        with pytest.raises(BadRequestError, match="another tool"):
            await asyncio.to_thread(chat, door, tools=tools, tool_choice="required")


async def test_a_path_that_would_lead_out_of_a_tools_own_schema_is_refused(
    tool_serving: Any, opened: Any
) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": node}}]
    async with opened(tool_serving) as door:
        with pytest.raises(BadRequestError, match="below `\\$defs` only"):
            await asyncio.to_thread(chat, door, tools=tools, tool_choice="required")


async def test_no_tool_is_called_where_the_caller_forbids_it(
    tool_serving: Any, opened: Any
) -> None:
    async with opened(tool_serving) as door:
        reply = await asyncio.to_thread(chat, door, tool_choice="none")
    assert reply.choices[0].message.content == CALL
    assert reply.choices[0].finish_reason == "stop"
    prompt = tool_serving.tokenizer.decode(door.engine.requests[0].token_ids)
    assert "tool_call" not in prompt


async def test_tools_are_refused_where_the_template_has_no_place_for_them(door: Any) -> None:
    with pytest.raises(BadRequestError, match="no place for tools") as refused:
        await asyncio.to_thread(chat, door)
    assert refused.value.code == "template_error"
    assert refused.value.param == "tools"


async def test_the_last_message_can_be_continued(tool_serving: Any, opened: Any) -> None:
    messages = [*ASK, {"role": "assistant", "content": "It is "}]
    extra = {"continue_final_message": True}
    async with opened(tool_serving) as door:
        await asyncio.to_thread(chat, door, messages=messages, extra_body=extra, tools=[])
    prompt = tool_serving.tokenizer.decode(door.engine.requests[0].token_ids)
    assert prompt == "user: Weather?\nassistant: It is"
