"""The OpenAI routes through the real client, whose types check every reply and chunk."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

ANSWER = "Hello, Zürich 🙂! The end."
USER: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def client(door: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    made = openai.AsyncOpenAI(base_url=f"{door.url}/v1", api_key="EMPTY", max_retries=0)
    async with made:
        yield made


async def raw(door: Any, path: str, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as http:
        return await http.post(path, json=body)


async def test_a_chat_is_rendered_by_the_models_template_and_answered(
    door: Any, client: openai.AsyncOpenAI
) -> None:
    reply = await client.chat.completions.create(model="tiny", messages=USER)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.model == "tiny"
    prompt = door.serving.tokenizer.encode("<|user|>Hi\n<|assistant|>", add_special_tokens=False)
    assert list(door.engine.requests[0].token_ids) == prompt
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == len(prompt)
    assert reply.usage.total_tokens == len(prompt) + reply.usage.completion_tokens
    assert door.engine.requests[0].sampling.temperature == 1.0


async def test_a_streamed_chat_is_role_then_texts_then_reason_then_usage(
    client: openai.AsyncOpenAI,
) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == ANSWER
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert all(not c.choices or c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 3
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


async def test_every_chunk_fits_the_clients_types_and_done_ends_the_stream(door: Any) -> None:
    body = {"messages": USER, "stream": True, "logprobs": True, "top_logprobs": 2, "n": 2}
    lines = (await raw(door, "/v1/chat/completions", body)).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    seen: dict[int, str] = {0: "", 1: ""}
    for line in lines[:-2]:
        chunk = ChatCompletionChunk.model_validate_json(line.removeprefix("data: "))
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        seen[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert seen == {0: ANSWER, 1: ANSWER}


async def test_whole_replies_fit_the_clients_types(door: Any) -> None:
    chat = await raw(door, "/v1/chat/completions", {"messages": USER, "logprobs": True})
    ChatCompletion.model_validate_json(chat.text, strict=True)
    text = await raw(door, "/v1/completions", {"prompt": "Hi", "logprobs": 2})
    Completion.model_validate_json(text.text, strict=True)


async def test_the_bytes_of_token_logprobs_join_to_the_text(client: openai.AsyncOpenAI) -> None:
    reply = await client.chat.completions.create(
        model="tiny", messages=USER, logprobs=True, top_logprobs=3
    )
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    joined = b"".join(bytes(entry.bytes or []) for entry in logprobs.content[:-1])
    assert joined.decode() == ANSWER
    assert len(logprobs.content[0].top_logprobs) == 3


async def test_completions_take_several_prompts_and_choices(
    door: Any, client: openai.AsyncOpenAI
) -> None:
    reply = await client.completions.create(
        model="tiny", prompt=["a", "bc"], n=2, max_tokens=3, seed=7
    )
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert {choice.finish_reason for choice in reply.choices} == {"length"}
    assert [request.sampling.seed for request in door.engine.requests] == [7, 8, 7, 8]
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 12)


async def test_completions_take_token_ids(door: Any, client: openai.AsyncOpenAI) -> None:
    await client.completions.create(model="tiny", prompt=[5, 6, 7])
    await client.completions.create(model="tiny", prompt=[[5, 6], [7]])
    assert [request.token_ids for request in door.engine.requests] == [(5, 6, 7), (5, 6), (7,)]


async def test_streamed_completions_of_several_choices_come_side_by_side(
    client: openai.AsyncOpenAI,
) -> None:
    texts = {0: "", 1: "", 2: ""}
    ended: set[int] = set()
    stream = await client.completions.create(model="tiny", prompt="a", n=3, stream=True)
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
        if chunk.choices[0].finish_reason:
            ended.add(chunk.choices[0].index)
    assert texts == {0: ANSWER, 1: ANSWER, 2: ANSWER}
    assert ended == {0, 1, 2}


async def test_a_stop_string_is_not_part_of_the_text(client: openai.AsyncOpenAI) -> None:
    for stop in ("rich 🙂", ["never", "rich 🙂"]):
        reply = await client.completions.create(model="tiny", prompt="a", stop=stop)
        assert reply.choices[0].text == "Hello, Zü"
        assert reply.choices[0].finish_reason == "stop"
    stream = await client.chat.completions.create(
        model="tiny", messages=USER, stop=["rich 🙂"], stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "Hello, Zü"


@pytest.mark.parametrize("model", ["", "tgi", "dummy", "tiny", "/models/tiny", None])
async def test_these_models_mean_the_base_model(door: Any, model: str | None) -> None:
    reply = await raw(door, "/v1/completions", {"model": model, "prompt": "a"})
    assert reply.status_code == 200
    assert door.engine.requests[0].key is None


@pytest.mark.parametrize(
    ("model", "name"),
    [("some/one", "some/one"), ("tiny:tone", "tone"), ("friendly", "/adapters/friendly")],
)
async def test_any_other_model_is_an_adapter(door: Any, model: str, name: str) -> None:
    reply = await raw(door, "/v1/completions", {"model": model, "prompt": "a"})
    assert door.engine.requests[0].key.name == name
    assert reply.json()["model"] == model.removeprefix("tiny:")
    assert reply.headers["x-adapter-source"] == "local"


async def test_errors_come_as_the_clients_own_exceptions(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await client.chat.completions.create(model="missing", messages=USER)
    assert missing.value.code == "adapter_not_found"
    assert missing.value.param == "model"
    with pytest.raises(openai.RateLimitError) as busy:
        await client.chat.completions.create(model="busy", messages=USER)
    assert busy.value.response.headers["retry-after"] == "3"
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "refuse me"}]
        )
    assert refused.value.code == "template_error"
    assert "no such luck" in refused.value.message
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="broken", messages=USER)


async def test_an_error_in_a_stream_is_raised_and_nothing_claims_success(
    door: Any, client: openai.AsyncOpenAI
) -> None:
    stream = await client.chat.completions.create(model="dies", messages=USER, stream=True)
    with pytest.raises(openai.APIError, match="the worker went away"):
        async for _ in stream:
            pass
    body = {"model": "dies", "messages": USER, "stream": True}
    assert "[DONE]" not in (await raw(door, "/v1/chat/completions", body)).text


async def test_one_failing_choice_ends_the_others(door: Any) -> None:
    reply = await raw(door, "/v1/completions", {"model": "dies", "prompt": "a", "n": 3})
    assert reply.status_code == 503
    assert len(door.engine.ended) == 3
    body = {"model": "dies", "prompt": "a", "n": 3, "stream": True}
    assert '"error"' in (await raw(door, "/v1/completions", body)).text
    assert len(door.engine.ended) == 6


async def test_harmless_fields_pass_and_unknown_ones_are_named(door: Any) -> None:
    body = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}],
            }
        ],
        "user": "someone",
        "metadata": {"a": "b"},
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "top_k": -1,
        "max_completion_tokens": 2,
        "logit_bias": {"5": 1.5},
        "stop": None,
        "seed": -3,
        "temperatur": 0.1,
    }
    reply = await raw(door, "/v1/chat/completions", body)
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "temperatur"
    sampling = door.engine.requests[0].sampling
    assert sampling.logit_bias == ((5, 1.5),)
    assert sampling.max_new_tokens == 2
    assert 0 <= sampling.seed < 2**64


async def test_an_unknown_field_that_is_no_text_is_told_as_far_as_a_header_can(door: Any) -> None:
    async with httpx.AsyncClient(base_url=door.url) as http:
        body = b'{"prompt": "Hi", "max_tokens": 1, "half \\ud800": 1}'
        reply = await http.post("/v1/completions", content=body)
    assert (reply.status_code, reply.headers["x-ignored-fields"]) == (200, "half ?")


async def test_models_lists_the_base_model_first_then_the_adapters(
    client: openai.AsyncOpenAI,
) -> None:
    cards = [card async for card in client.models.list()]
    assert [card.id for card in cards] == ["/models/tiny", "friendly", "tone"]
    tone = await client.models.retrieve("tone")
    assert tone.model_dump()["parent"] == "/models/tiny"
    assert tone.model_dump()["tier"] == "device"
    assert tone.model_dump()["rank"] == 8
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such/adapter")


async def test_usage_comes_with_every_chunk_where_asked_for(door: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "a", "stream": True, "stream_options": options, "max_tokens": 3}
    text = (await raw(door, "/v1/completions", body)).text
    chunks = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    assert all(chunk["usage"]["prompt_tokens"] == 1 for chunk in chunks)
    assert chunks[-1]["usage"]["completion_tokens"] == 3
