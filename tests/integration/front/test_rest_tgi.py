"""The TGI and LoRAX routes as their clients use them."""

import asyncio
import json
from typing import Any

import aiohttp
import httpx
import pytest

ANSWER = "Hello, Zürich 🙂! The end."
# What lorax-client 0.6.3 sends: every parameter, most of them null.
LORAX_PARAMETERS: dict[str, Any] = {
    "adapter_id": None,
    "adapter_source": None,
    "merged_adapters": None,
    "api_token": None,
    "do_sample": False,
    "max_new_tokens": None,
    "ignore_eos_token": False,
    "repetition_penalty": None,
    "return_full_text": False,
    "stop": [],
    "seed": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "truncate": None,
    "typical_p": None,
    "best_of": None,
    "watermark": False,
    "details": True,
    "decoder_input_details": False,
    "return_k_alternatives": None,
    "response_format": None,
}


async def post(door: Any, path: str, body: Any, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        return await client.post(path, json=body, **more)


def events_of(text: str) -> list[dict[str, Any]]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: {") for block in blocks)
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


async def test_generate_answers_an_object_with_the_text_and_the_details(door: Any) -> None:
    reply = await post(door, "/generate", {"inputs": "Hi", "parameters": {"details": True}})
    body = reply.json()
    assert reply.status_code == 200
    assert body["generated_text"] == ANSWER
    details = body["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["seed"] is None
    assert details["prefill"] == []
    assert details["prompt_tokens"] == 2
    assert details["generated_tokens"] == len(details["tokens"])
    assert "".join(t["text"] for t in details["tokens"] if not t["special"]) == ANSWER
    assert details["tokens"][-1]["text"] == "<|end|>"
    assert all({"id", "text", "logprob", "special", "skipped"} == set(t) for t in details["tokens"])
    assert reply.headers["x-prompt-tokens"] == "2"
    assert reply.headers["x-compute-type"] == "cpu"
    assert "x-adapter-id" not in reply.headers
    assert reply.headers["x-request-id"] == door.engine.requests[0].request_id


async def test_the_bare_route_answers_a_list_as_lorax_client_needs(door: Any) -> None:
    body = {"inputs": "Hi", "parameters": LORAX_PARAMETERS, "stream": False}
    reply = await post(door, "/", body)
    [only] = reply.json()
    assert only["generated_text"] == ANSWER
    assert only["details"]["tokens"][0]["logprob"] == -0.5
    assert "x-ignored-fields" not in reply.headers


async def test_a_stream_has_one_event_for_each_token_and_no_done(door: Any) -> None:
    body = {"inputs": "Hi", "parameters": {"details": True, "max_new_tokens": 5}}
    reply = await post(door, "/generate_stream", body)
    events = events_of(reply.text)
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-accel-buffering"] == "no"
    assert "[DONE]" not in reply.text
    assert [event["index"] for event in events] == [1, 2, 3, 4, 5]
    assert all(event["generated_text"] is None for event in events[:-1])
    joined = "".join(event["token"]["text"] for event in events)
    assert events[-1]["generated_text"] == joined
    # The fifth token is the first half of a character: at the end it is shown as what it is.
    assert joined == "Hello, Z\ufffd"
    assert events[-1]["details"] == {
        "finish_reason": "length",
        "prompt_tokens": 2,
        "generated_tokens": 5,
        "seed": None,
        "input_length": 2,
    }


async def test_the_bare_route_streams_when_the_body_says_so(door: Any) -> None:
    reply = await post(door, "/", {"inputs": "Hi", "parameters": LORAX_PARAMETERS, "stream": True})
    assert events_of(reply.text)[-1]["generated_text"] == ANSWER


async def test_a_stop_string_stays_in_the_text(door: Any) -> None:
    body = {"inputs": "Hi", "parameters": {"stop": ["rich 🙂"], "details": True}}
    whole = (await post(door, "/generate", body)).json()
    assert whole["generated_text"] == "Hello, Zürich 🙂"
    assert whole["details"]["finish_reason"] == "stop_sequence"
    events = events_of((await post(door, "/generate_stream", body)).text)
    assert "".join(event["token"]["text"] for event in events) == "Hello, Zürich 🙂"


async def test_alternatives_come_in_both_dialects(door: Any) -> None:
    body = {"inputs": "Hi", "parameters": {"details": True, "top_n_tokens": 2}}
    details = (await post(door, "/generate", body)).json()["details"]
    assert [len(top) for top in details["top_tokens"]] == [2] * len(details["tokens"])
    alternatives = details["tokens"][0]["alternative_tokens"]
    assert [entry["id"] for entry in alternatives] == [0, 1]
    assert {"id", "text", "logprob"} == set(alternatives[0])


async def test_the_full_text_begins_with_the_prompt(door: Any) -> None:
    body = {"inputs": "Hi ", "parameters": {"return_full_text": True}}
    reply = (await post(door, "/generate", body)).json()
    assert reply["generated_text"] == "Hi " + ANSWER


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "a", "parameters": {"deadline_ms": 250}}),
        ("/v1/completions", {"prompt": "a", "deadline_ms": 250}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
    ],
)
async def test_a_deadline_reaches_the_scheduler(door: Any, path: str, body: Any) -> None:
    await post(door, path, body)
    expected = None if "messages" in body else 0.25
    assert door.engine.requests[0].deadline_s == expected


async def test_truncate_keeps_the_end_of_the_prompt(door: Any) -> None:
    await post(door, "/generate", {"inputs": "abcdefgh", "parameters": {"truncate": 3}})
    whole = door.serving.tokenizer.encode("abcdefgh")
    assert list(door.engine.requests[0].token_ids) == whole[-3:]


async def test_an_adapter_is_named_by_its_id_or_its_alias(door: Any) -> None:
    reply = await post(door, "/generate", {"inputs": "a", "parameters": {"adapter_id": "x/tone"}})
    assert (reply.headers["x-adapter-id"], reply.headers["x-adapter-source"]) == ("x/tone", "local")
    await post(door, "/generate", {"inputs": "a", "parameters": {"adapter_id": "friendly"}})
    await post(door, "/generate", {"inputs": "a", "parameters": {"adapter_id": "__base_model__"}})
    keys = [request.key for request in door.engine.requests]
    assert [key and (key.source, key.name) for key in keys] == [
        ("local", "x/tone"),
        ("local", "/adapters/friendly"),
        None,
    ]


async def test_another_source_reaches_the_worker_in_the_key(door: Any) -> None:
    parameters = {"adapter_id": "org/name@main", "adapter_source": "hub"}
    await post(door, "/generate", {"inputs": "a", "parameters": parameters})
    key = door.engine.requests[0].key
    assert (key.source, key.name, key.revision) == ("hub", "org/name", "main")


@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
@pytest.mark.parametrize(
    ("adapter", "status", "code"),
    [
        ("missing", 404, "adapter_not_found"),
        ("busy", 429, "overloaded"),
        ("fails", 424, "generation"),
    ],
)
async def test_an_error_before_the_first_token_has_its_own_status(
    door: Any, path: str, adapter: str, status: int, code: str
) -> None:
    reply = await post(door, path, {"inputs": "a", "parameters": {"adapter_id": adapter}})
    assert reply.status_code == status
    assert reply.json()["error_type"] == code
    assert reply.json()["error"]
    assert reply.headers.get("retry-after") == ("3" if status == 429 else None)
    assert door.meters.answered == [(path, code)]


async def test_an_error_after_the_first_token_is_the_last_event(door: Any) -> None:
    parameters = {"adapter_id": "dies"}
    reply = await post(door, "/generate_stream", {"inputs": "a", "parameters": parameters})
    assert reply.status_code == 200
    events = events_of(reply.text)
    assert [("token" in event) for event in events] == [True, True, False]
    assert events[-1] == {"error": "the worker went away", "error_type": "worker_lost"}
    assert door.meters.answered == [("/generate_stream", "worker_lost")]


async def test_a_bug_of_ours_shows_no_details(door: Any) -> None:
    for path in ("/generate", "/generate_stream"):
        reply = await post(door, path, {"inputs": "a", "parameters": {"adapter_id": "broken"}})
        assert reply.status_code == 500
        assert "a bug" not in reply.text
    reply = await post(
        door, "/generate_stream", {"inputs": "a", "parameters": {"adapter_id": "breaks"}}
    )
    assert events_of(reply.text)[-1]["error_type"] == "internal"


async def answer_of(session: aiohttp.ClientSession, url: str, body: Any) -> bytes:
    async with session.post(url, json=body) as reply:
        return await reply.read()


async def test_a_caller_who_leaves_ends_the_sequence_at_once(door: Any) -> None:
    for path in ("/generate", "/generate_stream"):
        body = {"inputs": "a", "parameters": {"adapter_id": "hangs"}}
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(answer_of(session, door.url + path, body))
            while not door.engine.requests:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            assert door.engine.ended == []
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        for _ in range(100):
            if door.engine.ended:
                break
            await asyncio.sleep(0.01)
        assert len(door.engine.ended) == 1
        assert door.meters.answered[-1] == (path, "cancelled")
        door.engine.ended.clear()
        door.engine.requests.clear()


async def test_a_quiet_stream_is_kept_alive_by_comments(serving_of: Any, opened: Any) -> None:
    async with opened(serving_of(keep_alive_s=0.1)) as door:
        parameters = {"adapter_id": "slow", "max_new_tokens": 2}
        reply = await post(door, "/generate_stream", {"inputs": "a", "parameters": parameters})
        assert reply.text.count(":\n\n") >= 2
        assert len(events_of(reply.text)) == 2


async def test_one_request_too_many_is_refused(serving_of: Any, opened: Any) -> None:
    async with opened(serving_of(requests_max=1)) as door:
        body = {"inputs": "a", "parameters": {"adapter_id": "hangs"}}
        waiting = asyncio.create_task(post(door, "/generate", body))
        while not door.engine.requests:
            await asyncio.sleep(0.01)
        refused = await post(door, "/generate", {"inputs": "a"})
        assert (refused.status_code, refused.json()["error_type"]) == (429, "overloaded")
        door.engine.hold.set()
        assert (await waiting).status_code == 200


async def test_tokenize_gives_ids_texts_and_byte_offsets(door: Any) -> None:
    text = "Zürich 🙂"
    reply = await post(door, "/tokenize", {"inputs": text})
    tokens = reply.json()
    assert [token["id"] for token in tokens] == door.serving.tokenizer.encode(text)
    assert tokens[-1]["stop"] == len(text.encode())
    assert set(tokens[0]) == {"id", "text", "start", "stop"}
