"""The smaller routes of LoRAX, TGI and vLLM, and the best of several texts."""

from typing import Any

import httpx
import pytest

ANSWER = "Hello, Zürich 🙂! The end."
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
async def http(door: Any) -> Any:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        yield client


async def test_startup_and_version_answer(http: httpx.AsyncClient) -> None:
    assert (await http.get("/startup")).status_code == 200
    assert (await http.get("/version")).json() == {"version": "0.1.0"}


async def test_a_client_that_posts_to_its_v1_address_is_served_as_at_the_root(
    http: httpx.AsyncClient,
) -> None:
    [reply] = (await http.post("/v1", json={"inputs": "Hi"})).json()
    assert reply["generated_text"] == ANSWER


async def test_invocations_takes_whatever_the_body_is(http: httpx.AsyncClient) -> None:
    [text] = (await http.post("/invocations", json={"inputs": "Hi"})).json()
    assert text["generated_text"] == ANSWER
    chat = (await http.post("/invocations", json=CHAT)).json()
    assert chat["choices"][0]["message"]["content"] == ANSWER
    completion = (await http.post("/invocations", json={"prompt": "Hi"})).json()
    assert completion["choices"][0]["text"] == ANSWER
    refused = await http.post("/invocations", json={"prompt": "Hi", "n": 0})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


async def test_vllms_tokenize_counts_and_detokenize_gives_the_text_back(
    http: httpx.AsyncClient,
) -> None:
    asked = {"prompt": "Hello 🙂", "return_token_strs": True}
    counted = (await http.post("/tokenize", json=asked)).json()
    assert counted["count"] == len(counted["tokens"]) == len(counted["token_strs"])
    assert counted["max_model_len"] == 256
    back = (await http.post("/detokenize", json={"tokens": counted["tokens"]})).json()
    assert back == {"prompt": "Hello 🙂"}
    chat = (await http.post("/tokenize", json=CHAT)).json()
    assert chat["count"] > 2
    assert chat["token_strs"] is None


async def test_chat_tokenize_shows_the_prompt_and_its_tokens(http: httpx.AsyncClient) -> None:
    told = (await http.post("/chat_tokenize", json=CHAT)).json()
    assert told["templated_text"] == "<|user|>Hi\n<|assistant|>"
    assert "".join(token["text"] for token in told["tokenize_response"]) == told["templated_text"]


async def test_the_best_of_several_texts_is_the_most_probable(
    http: httpx.AsyncClient, door: Any
) -> None:
    door.engine.logprobs = {0: -0.9, 1: -0.1, 2: -0.5}
    parameters = {"best_of": 3, "do_sample": True, "details": True, "max_new_tokens": 2}
    asked = {"inputs": "Hi", "parameters": parameters}
    details = (await http.post("/generate", json=asked)).json()["details"]
    others = details["best_of_sequences"]
    assert [one["tokens"][0]["logprob"] for one in (details, *others)] == [-0.1, -0.9, -0.5]
    assert len({details["seed"], *(other["seed"] for other in others)}) == 3
    asked = {"prompt": "Hi", "best_of": 3, "n": 2, "max_tokens": 2, "logprobs": 0}
    reply = (await http.post("/v1/completions", json=asked)).json()
    firsts = [choice["logprobs"]["token_logprobs"][0] for choice in reply["choices"]]
    assert firsts == [-0.1, -0.5]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1]
    assert reply["usage"]["completion_tokens"] == 6
