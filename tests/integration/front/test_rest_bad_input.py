"""Bad input over the wire: a typed JSON error that names field, value and remedy, never a 500."""

from typing import Any

import httpx
import pytest


async def send(door: Any, path: str, content: bytes, method: str = "POST") -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        return await client.request(method, path, content=content)


async def post(door: Any, path: str, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        return await client.post(path, json=body)


ROUTES = ["/generate", "/generate_stream", "/", "/v1/completions", "/v1/chat/completions"]


@pytest.mark.parametrize("path", [*ROUTES, "/tokenize"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe{}",
        b'{"inputs": NaN}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"inputs": 1' + b"0" * 10_000 + b"}",
    ],
)
async def test_a_body_that_is_no_json_object_is_400(door: Any, path: str, content: bytes) -> None:
    reply = await send(door, path, content)
    assert reply.status_code == 400, reply.text
    assert "body" in reply.text
    assert reply.headers["content-type"].startswith("application/json")
    assert reply.headers["x-request-id"]


async def test_a_body_beyond_the_limit_is_413_in_json(serving_of: Any, opened: Any) -> None:
    async with opened(serving_of(body_bytes_max=1000)) as door:
        reply = await post(door, "/generate", {"inputs": "x" * 2000})
        assert reply.status_code == 413
        assert reply.json()["error_type"] == "too_large"
        assert "1000" in reply.json()["error"]
        chat = await post(door, "/v1/completions", {"prompt": "x" * 2000})
        assert chat.json()["error"]["code"] == "too_large"


async def test_an_unknown_route_and_a_wrong_method_are_json(door: Any) -> None:
    missing = await send(door, "/v1/responses", b"{}")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    wrong = await send(door, "/generate", b"", "GET")
    assert (wrong.status_code, wrong.json()["error_type"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 1e400}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"typical_p": 2}, "typical_p"),
        ({"min_p": -1}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"presence_penalty": -3}, "presence_penalty"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 10**9}, "max_new_tokens"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens"),
        ({"min_new_tokens": 1000}, "min_new_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"stop": "text"}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": ["x" * 600]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"truncate": 0}, "truncate"),
        ({"truncate": 100000}, "truncate"),
        ({"top_n_tokens": 21}, "top_n_tokens"),
        ({"return_k_alternatives": 0}, "return_k_alternatives"),
        ({"details": "yes"}, "details"),
        ({"do_sample": 1}, "do_sample"),
        ({"best_of": 2}, "best_of"),
        ({"best_of": 0}, "best_of"),
        ({"best_of": 17, "do_sample": True}, "best_of"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "best_of"),
        ({"watermark": True}, "watermark"),
        ({"apply_chat_template": True}, "apply_chat_template"),
        ({"merged_adapters": {"ids": ["a"], "weights": [1]}}, "merged_adapters"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"grammar": {"type": "regex", "value": 5}}, "grammar.value"),
        ({"grammar": {"type": "regex", "value": "[unmatchable]"}}, "grammar"),
        (
            {"grammar": {"type": "regex", "value": "a"}, "ignore_eos_token": True},
            "ignore_eos_token",
        ),
        ({"grammar": {"type": "json", "value": {"contains": {}}}}, "grammar.value.contains"),
        ({"adapter_id": 5}, "adapter_id"),
        ({"adapter_id": "a\x00b"}, "adapter_id"),
        ({"adapter_id": "x" * 2000}, "adapter_id"),
        ({"adapter_id": " "}, "adapter_id"),
        ({"adapter_id": "a", "adapter_source": "ftp"}, "adapter_source"),
        ({"logit_bias": {"5": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"stop_token_ids": [99999]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ([], "parameters"),
        ("text", "parameters"),
    ],
)
async def test_a_bad_parameter_is_422_and_named(door: Any, parameters: Any, field: str) -> None:
    body = {"inputs": "hello", "parameters": parameters}
    if isinstance(parameters, dict) and parameters.get("temperature") == float("inf"):
        reply = await send(door, "/generate", b'{"inputs":"a","parameters":{"temperature":1e400}}')
    else:
        reply = await post(door, "/generate", body)
    assert reply.status_code == 422, reply.text
    assert reply.json()["error_type"] == "validation"
    assert field in reply.json()["error"]
    assert field in reply.json()["field"]
    assert door.engine.requests == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "inputs"),
        ({"inputs": None}, "inputs"),
        ({"inputs": ""}, "inputs"),
        ({"inputs": ["a"]}, "inputs"),
        ({"inputs": "a", "adapter_id": "x"}, "adapter_id"),
        ({"inputs": "a", "model": "x"}, "model"),
        ({"inputs": "word " * 400}, "inputs"),
    ],
)
async def test_a_bad_generate_body_is_422(door: Any, body: Any, field: str) -> None:
    reply = await post(door, "/generate", body)
    assert reply.status_code == 422, reply.text
    assert field in reply.json()["error"]


async def test_half_a_character_is_refused_not_crashed_on(door: Any) -> None:
    reply = await send(door, "/generate", b'{"inputs": "a \\ud83d b"}')
    assert reply.status_code == 422
    reply = await send(
        door, "/v1/chat/completions", b'{"messages":[{"role":"user","content":"\\udc00"}]}'
    )
    assert reply.status_code == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"guided_json": []}, "guided_json"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "[unmatchable]"}, "guided_regex"),
        ({"guided_regex": "a", "guided_choice": ["b"]}, "guided_choice"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 2}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"temperature": 101}, "temperature"),
        ({"model": 5}, "model"),
        ({"stop": [""]}, "stop"),
    ],
)
async def test_a_bad_chat_field_is_400_and_named(door: Any, body: Any, param: str) -> None:
    if body and "messages" not in body:
        body = {"messages": [{"role": "user", "content": "Hi"}], **body}
    reply = await post(door, "/v1/chat/completions", body)
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "validation")
    assert error["param"] == param
    assert door.engine.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [""]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": ["a"] * 17}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "n"),
        ({"suffix": "end"}, "suffix"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"best_of": 17}, "best_of"),
        ({"best_of": 2, "stream": True}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"use_beam_search": True}, "use_beam_search"),
    ],
)
async def test_a_bad_completion_field_is_400_and_named(door: Any, body: Any, param: str) -> None:
    reply = await post(door, "/v1/completions", {"prompt": "a", **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param


async def test_an_error_never_repeats_a_whole_prompt(door: Any) -> None:
    reply = await post(door, "/generate", {"inputs": ["secret " * 1000]})
    assert len(reply.text) < 400


async def test_before_a_worker_is_there_requests_are_503_and_health_says_so(door: Any) -> None:
    door.engine.info = None
    door.engine.ready = False
    assert (await send(door, "/health", b"", "GET")).status_code == 503
    reply = await post(door, "/generate", {"inputs": "a"})
    assert reply.status_code == 503
    assert reply.json()["error_type"] == "worker_lost"
    assert reply.headers["retry-after"] == "2"
    assert (await send(door, "/info", b"", "GET")).json()["max_total_tokens"] is None
    assert (await send(door, "/v1/models", b"", "GET")).status_code == 200
