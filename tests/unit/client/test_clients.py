"""Client and AsyncClient against a real HTTP server on loopback."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from adex import (
    AsyncClient,
    Client,
    Message,
    Response,
    StreamResponse,
    ToolCall,
    ToolCallDelta,
)
from adex.errors import (
    AdapterNotFound,
    NotReady,
    Overloaded,
    ReplyMalformed,
    RequestTimeout,
    ServerUnreachable,
    ShuttingDown,
    StepFailed,
    StreamBroken,
    ValidationError,
)
from adex.testing import Answer, ScriptedServer

TOKENS = [
    {"id": 1, "text": "Hel", "logprob": -0.5, "special": False, "skipped": False},
    {"id": 2, "text": "lo", "logprob": -0.25, "special": False, "skipped": False},
    {"id": 3, "text": "</s>", "logprob": -0.1, "special": True, "skipped": False},
]
DETAILS = {"finish_reason": "eos_token", "prompt_tokens": 4, "generated_tokens": 3, "seed": None}
WHOLE = {
    "generated_text": "Hello",
    "details": DETAILS
    | {"prefill": [], "tokens": TOKENS, "skipped_tokens": 0, "of_the_future": True},
}
EVENTS: list[dict[str, Any]] = [
    {"index": 1, "token": TOKENS[0], "generated_text": None, "details": None},
    {"index": 2, "token": TOKENS[1], "generated_text": None, "details": None},
    {"index": 3, "token": TOKENS[2], "generated_text": "Hello", "details": DETAILS},
]
CHAT = {
    "id": "chat-1",
    "object": "chat.completion",
    "created": 1,
    "model": "tone",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello"},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7},
}


def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "chat-1", "created": 1, "model": "tone", "choices": [choice]}


CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    {"id": "chat-1", "created": 1, "model": "tone", "choices": [], "usage": CHAT["usage"]},
]
BUSY = Answer.of_json(
    {"error": "full", "error_type": "overloaded"}, status=429, headers={"retry-after": "0"}
)


@contextmanager
def served(
    script: Mapping[str, Answer | list[Answer]], *, path: str = "", **client: Any
) -> Generator[tuple[ScriptedServer, Client], None, None]:
    """A server with these answers and a client of it."""
    with ScriptedServer(script) as server, Client(server.url + path, **client) as ours:
        yield server, ours


def test_generate_gives_the_text_and_every_detail() -> None:
    with served({"/generate": Answer.of_json(WHOLE)}) as (server, client):
        response = client.generate("Hi", adapter_id="tone", max_new_tokens=3, temperature=0.0)
    assert response.generated_text == "Hello"
    assert response.details is not None
    assert (response.details.finish_reason, response.details.prompt_tokens) == ("eos_token", 4)
    assert [token.text for token in response.details.tokens] == ["Hel", "lo", "</s>"]
    (asked,) = server.asked
    assert asked.body == {
        "inputs": "Hi",
        "parameters": {
            "adapter_id": "tone",
            "max_new_tokens": 3,
            "temperature": 0.0,
            "details": True,
        },
    }


def test_a_stream_gives_each_token_and_ends_with_the_text() -> None:
    with served({"/generate_stream": Answer.of_events(EVENTS)}) as (_, client):
        events = list(client.generate_stream("Hi", "tone"))
    assert "".join(event.text for event in events) == "Hello"
    assert [event.generated_text for event in events] == [None, None, "Hello"]
    assert events[-1].details is not None
    assert events[-1].details.generated_tokens == 3


def test_a_chat_gives_a_completion() -> None:
    with served({"/v1/chat/completions": Answer.of_json(CHAT)}) as (_, client):
        completion = client.chat([{"role": "user", "content": "Hi"}], adapter_id="tone")
    assert (completion.text, completion.choices[0].finish_reason) == ("Hello", "stop")
    assert completion.usage is not None
    assert completion.usage.total_tokens == 7


def test_a_call_is_read_and_goes_back_into_the_conversation() -> None:
    said = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "sum", "arguments": '{"a": 1}'}}
        ],
    }
    reply = CHAT | {"choices": [{"index": 0, "message": said, "finish_reason": "tool_calls"}]}
    tool = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}
    with served({"/v1/chat/completions": Answer.of_json(reply)}) as (server, client):
        talk: list[Message] = [{"role": "user", "content": "Add"}]
        completion = client.chat(talk, tools=[tool], tool_choice="required")
        assert completion.tool_calls == (ToolCall("c1", "sum", '{"a": 1}'),)
        answer: Message = {"role": "tool", "content": "2", "tool_call_id": "c1"}
        client.chat([*talk, completion.choices[0].message.as_message, answer])
    first, second = server.asked
    assert (first.body["tools"], first.body["tool_choice"]) == ([tool], "required")
    assert second.body["messages"][1:] == [said | {"content": ""}, answer]


def test_a_streamed_call_comes_in_parts() -> None:
    def part(**function: str) -> dict[str, Any]:
        return chunk({"tool_calls": [{"index": 0, "id": "c1", "function": function}]})

    events = [part(name="sum", arguments=""), part(arguments='{"a"'), part(arguments=": 1}")]
    chunks = [*events, chunk({}, "tool_calls")]
    with served({"/v1/chat/completions": Answer.of_events(chunks, done=True)}) as (_, client):
        told = list(client.chat([{"role": "user", "content": "Add"}], stream=True))
    calls = [call for each in told for call in each.choices[0].tool_calls]
    assert calls[0] == ToolCallDelta(0, "c1", "sum")
    assert "".join(call.arguments for call in calls) == '{"a": 1}'


def test_a_streamed_chat_gives_its_pieces_and_its_usage() -> None:
    with served({"/v1/chat/completions": Answer.of_events(CHUNKS, done=True)}) as (_, client):
        chunks = list(client.chat([{"role": "user", "content": "Hi"}], stream=True))
    assert "".join(piece.text for piece in chunks) == "Hello"
    assert chunks[-1].usage is not None


def test_the_adapters_are_the_models_that_have_a_parent() -> None:
    cards = {
        "object": "list",
        "data": [
            {"id": "base", "object": "model", "root": "base", "parent": None},
            {"id": "tone", "object": "model", "root": "/a/tone", "parent": "base", "rank": 8},
        ],
    }
    with served({"/v1/models": Answer.of_json(cards)}) as (_, client):
        (card,) = client.list_adapters()
    assert (card.id, card.root, card.parent, card.extra) == ("tone", "/a/tone", "base", {"rank": 8})


def test_info_keeps_what_it_does_not_know() -> None:
    told = {"model_id": "base", "max_total_tokens": 2048, "max_best_of": 2}
    with served({"/info": Answer.of_json(told)}) as (_, client):
        info = client.info()
    assert (info.model_id, info.max_total_tokens, info.extra) == ("base", 2048, {"max_best_of": 2})


def test_health_returns_or_says_why_not() -> None:
    draining = Answer.of_json({"error": "draining", "error_type": "shutting_down"}, status=503)
    script = {"/health": [Answer(), draining, Answer(status=503)]}
    with served(script) as (server, client):
        client.health()
        with pytest.raises(ShuttingDown):
            client.health()
        with pytest.raises(NotReady):
            client.health()
    assert len(server.asked) == 3


def test_a_base_address_may_hold_a_path() -> None:
    script = {"/under/here/info": Answer.of_json({"model_id": "m"})}
    with served(script, path="/under/here/") as (_, client):
        assert client.info().model_id == "m"


def test_headers_of_the_caller_are_sent_with_every_request() -> None:
    script = {"/generate": Answer.of_json(WHOLE)}
    with served(script, headers={"Authorization": "Bearer t"}) as (server, client):
        client.generate("Hi")
    assert server.asked[0].headers["authorization"] == "Bearer t"


@pytest.mark.parametrize("wrong", ["127.0.0.1:8080", "ftp://host", "http://", "http://[::1", ""])
def test_an_address_that_is_none_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(ValidationError, match="base_url"):
        Client(wrong)


def test_a_busy_server_is_asked_again() -> None:
    script = {"/generate": [BUSY, BUSY, Answer.of_json(WHOLE)]}
    with served(script) as (server, client):
        assert client.generate("Hi").generated_text == "Hello"
    assert len(server.asked) == 3


def test_a_busy_stream_is_asked_again_before_its_first_byte() -> None:
    script = {"/generate_stream": [BUSY, Answer.of_events(EVENTS)]}
    with served(script) as (_, client):
        assert len(list(client.generate_stream("Hi"))) == 3


def test_patience_has_an_end() -> None:
    with (
        served({"/generate": BUSY}, retries_max=1) as (server, client),
        pytest.raises(Overloaded, match="full"),
    ):
        client.generate("Hi")
    assert len(server.asked) == 2


def test_a_callers_error_is_raised_at_once_and_typed() -> None:
    told = {"error": "adapter `x` was not found", "error_type": "adapter_not_found"}
    script = {"/generate": Answer.of_json(told, status=404)}
    with (
        served(script) as (server, client),
        pytest.raises(AdapterNotFound, match="adapter `x` was not found"),
    ):
        client.generate("Hi", "x")
    assert len(server.asked) == 1


def test_an_error_inside_a_stream_comes_after_its_tokens_and_is_not_asked_again() -> None:
    told = {"error": "the step failed", "error_type": "generation"}
    script = {"/generate_stream": Answer.of_events([EVENTS[0], told])}
    with served(script) as (server, client):
        stream = client.generate_stream("Hi")
        assert next(stream).text == "Hel"
        with pytest.raises(StepFailed):
            next(stream)
    assert len(server.asked) == 1


@pytest.mark.parametrize("cut", [True, False])
def test_a_stream_cut_short_is_broken_and_not_taken_for_a_short_answer(cut: bool) -> None:
    script = {"/generate_stream": Answer.of_events(EVENTS[:2], cut=cut)}
    with served(script) as (server, client):
        got: list[StreamResponse] = []
        with pytest.raises(StreamBroken):
            got.extend(client.generate_stream("Hi"))
    assert len(server.asked) == 1


def test_a_page_that_is_no_reply_is_told_so() -> None:
    script = {"/generate": Answer((b"<html>",), headers={"content-type": "text/html"})}
    with served(script) as (_, client), pytest.raises(ReplyMalformed, match="not JSON"):
        client.generate("Hi")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_not_there_is_named_with_the_remedy() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retries_max=0) as client, pytest.raises(ServerUnreachable) as caught:
        client.info()
    assert url in str(caught.value)
    assert "adex serve" in str(caught.value)


def test_a_connection_closed_without_an_answer_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as rude:
        url = f"http://127.0.0.1:{rude.getsockname()[1]}"

        def hang_up_twice() -> None:
            for _ in range(2):
                connection, _ = rude.accept()
                connection.close()

        thread = threading.Thread(target=hang_up_twice)
        thread.start()
        with Client(url, retries_max=1) as client, pytest.raises(ServerUnreachable):
            client.info()
        thread.join(timeout=5.0)
        assert not thread.is_alive()


def test_silence_becomes_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with Client(url, timeout=0.1) as client, pytest.raises(RequestTimeout, match=r"0\.1 s"):
            client.info()


def test_closing_a_stream_closes_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as endless:
        endless.settimeout(5.0)
        with Client(f"http://127.0.0.1:{endless.getsockname()[1]}") as client:
            stream = client.generate_stream("Hi")
            first = asyncio.run(_first_of_endless(endless, lambda: next(stream)))
            assert first.text == "Hel"
            stream.close()


async def _first_of_endless(
    listener: socket.socket, ask: Callable[[], StreamResponse]
) -> StreamResponse:
    asking = asyncio.create_task(asyncio.to_thread(ask))
    connection, _ = await asyncio.to_thread(listener.accept)
    with connection:
        connection.settimeout(5.0)
        connection.recv(65536)
        (body,) = Answer.of_events(EVENTS[:1]).chunks
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
        connection.sendall(head + body)
        return await asking


async def collect(stream: AsyncIterator[Any]) -> str:
    return "".join([piece.text async for piece in stream])


async def test_the_async_client_does_all_the_same() -> None:
    script: dict[str, Answer | list[Answer]] = {
        "/generate": [BUSY, Answer.of_json([WHOLE])],
        "/generate_stream": Answer.of_events(EVENTS),
        "/v1/chat/completions": [Answer.of_json(CHAT), Answer.of_events(CHUNKS, done=True)],
        "/v1/models": Answer.of_json({"data": [{"id": "tone", "parent": "base"}]}),
        "/info": Answer.of_json({"model_id": "base"}),
        "/health": Answer(),
    }
    with ScriptedServer(script) as server:
        async with AsyncClient(server.url) as client:
            response: Response = await client.generate("Hi", "tone", seed=1)
            assert response.generated_text == "Hello"
            assert await collect(client.generate_stream("Hi")) == "Hello"
            assert (await client.chat([{"role": "user", "content": "Hi"}])).text == "Hello"
            pieces = await client.chat([{"role": "user", "content": "Hi"}], stream=True)
            assert await collect(pieces) == "Hello"
            assert [card.id for card in await client.list_adapters()] == ["tone"]
            assert (await client.info()).model_id == "base"
            await client.health()


async def test_the_async_client_raises_the_same_errors() -> None:
    told = {"error": "the step failed", "error_type": "generation"}
    script = {
        "/generate_stream": [Answer.of_events([told]), Answer.of_events(EVENTS[:1], cut=True)]
    }
    with ScriptedServer(script) as server:
        async with AsyncClient(server.url) as client:
            with pytest.raises(StepFailed):
                await collect(client.generate_stream("Hi"))
            with pytest.raises(StreamBroken):
                await collect(client.generate_stream("Hi"))
    async with AsyncClient(f"http://127.0.0.1:{free_port()}", retries_max=0) as client:
        with pytest.raises(ServerUnreachable):
            await client.info()


async def test_streams_of_one_async_client_run_side_by_side() -> None:
    with ScriptedServer({"/generate_stream": Answer.of_events(EVENTS)}) as server:
        async with AsyncClient(server.url) as client:
            began_s = time.monotonic()
            texts = await asyncio.gather(
                *(collect(client.generate_stream("Hi")) for _ in range(20))
            )
            assert texts == ["Hello"] * 20
            assert time.monotonic() - began_s < 5.0
