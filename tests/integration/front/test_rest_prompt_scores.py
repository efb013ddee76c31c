"""What a prompt's own tokens were: TGI's prefill, OpenAI's echo, vLLM's prompt_logprobs."""

from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI

ANSWER = "Hello, Zürich 🙂! The end."


@pytest.fixture
async def http(door: Any) -> Any:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        yield client


async def test_decoder_input_details_list_the_prompt(http: httpx.AsyncClient) -> None:
    asked = {"inputs": "Hello", "parameters": {"decoder_input_details": True}}
    details = (await http.post("/generate", json=asked)).json()["details"]
    assert "".join(token["text"] for token in details["prefill"]) == "Hello"
    first, *others = [token["logprob"] for token in details["prefill"]]
    assert first is None
    assert set(others) <= {-1.5}
    streamed = await http.post("/generate_stream", json=asked)
    assert (streamed.status_code, streamed.json()["error_type"]) == (422, "validation")


@pytest.mark.parametrize("prompt", ["Hi the end", [50, 51, 52]])
async def test_an_echo_begins_with_the_prompt_and_its_scores(door: Any, prompt: Any) -> None:
    text = prompt if isinstance(prompt, str) else door.serving.tokenizer.decode(prompt)
    asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 1}
    async with AsyncOpenAI(base_url=f"{door.url}/v1", api_key="none") as client:
        whole = await client.completions.create(**asked, max_tokens=4)
        stream = await client.completions.create(**asked, max_tokens=4, stream=True)
        chunks = [chunk async for chunk in stream]
    [choice] = whole.choices
    assert choice.text.startswith(text)
    told = choice.logprobs
    count = whole.usage.prompt_tokens
    assert len(told.tokens) == count + 4
    assert told.token_logprobs[:2] == [None, -1.5]
    assert told.top_logprobs[0] is None
    assert told.text_offset[count] == len(text)
    for token, offset in zip(told.tokens[:count], told.text_offset, strict=False):
        assert text.startswith(token, offset)
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    offsets = [o for chunk in chunks for o in chunk.choices[0].logprobs.text_offset]
    assert offsets == told.text_offset


async def test_an_echo_alone_scores_a_prompt_and_writes_nothing(
    http: httpx.AsyncClient, door: Any
) -> None:
    asked = {"prompt": "Hi you", "echo": True, "max_tokens": 0, "logprobs": 1}
    reply = (await http.post("/v1/completions", json=asked)).json()
    [choice] = reply["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("Hi you", "length")
    assert len(choice["logprobs"]["tokens"]) == reply["usage"]["prompt_tokens"]
    assert reply["usage"]["completion_tokens"] == 0
    assert door.engine.requests[0].sampling.max_new_tokens == 1
    refused = await http.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 0})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "max_tokens")


async def test_vllms_prompt_logprobs_stand_on_choices_and_on_chats(http: httpx.AsyncClient) -> None:
    asked = {"prompt": "Hi you", "prompt_logprobs": 1, "max_tokens": 1}
    reply = (await http.post("/v1/completions", json=asked)).json()
    first, second, *_ = reply["choices"][0]["prompt_logprobs"]
    assert first is None
    [(_, told)] = second.items()
    assert told.keys() == {"logprob", "rank", "decoded_token"}
    assert (told["logprob"], told["rank"]) == (-1.5, 1)
    messages = [{"role": "user", "content": "Hi"}]
    chat = {"messages": messages, "prompt_logprobs": 0, "max_tokens": 1}
    reply = (await http.post("/v1/chat/completions", json=chat)).json()
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert reply["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    refused = await http.post("/v1/chat/completions", json={**chat, "stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt_logprobs")
