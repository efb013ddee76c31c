"""Callers who break the protocol under the body, or stop reading: typed answers, quiet logs."""

import asyncio
import gzip
import json
import logging
import socket
import time
from typing import Any

import httpx
import pytest

from adex_scheduler.front import listing

BODY = b'{"inputs": "a secret prompt"}'


async def raw(door: Any, request: bytes) -> bytes:
    """Send bytes, and read what comes until the server closes or is quiet."""
    host, port = door.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(5):
            return await reader.read(2**20)
    finally:
        writer.close()


@pytest.mark.parametrize("path", ["/generate", "/generate_stream", "/v1/completions", "/tokenize"])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_encoded_as_its_headers_say_is_400(
    door: Any, path: str, encoding: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        reply = await client.post(path, content=BODY, headers={"content-encoding": encoding})
    assert reply.status_code == 400, reply.text
    error = reply.json()["error"]
    assert "encoded as its headers say" in (error["message"] if path[:3] == "/v1" else error)
    assert not any(record.levelno >= logging.ERROR for record in caplog.records)
    assert door.meters.answered[-1][1] == "validation"


async def test_a_compressed_body_is_read_and_bounded_by_what_it_expands_to(door: Any) -> None:
    headers = {"content-encoding": "gzip"}
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        whole = await client.post("/generate", content=gzip.compress(BODY), headers=headers)
        bomb = gzip.compress(b" " * 50_000_000)
        refused = await client.post("/generate", content=bomb, headers=headers)
    assert whole.status_code == 200, whole.text
    assert (refused.status_code, refused.json()["error_type"]) == (413, "too_large")


async def test_a_body_announced_as_too_large_is_refused_before_it_arrives(door: Any) -> None:
    began_s = time.monotonic()
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n{"
    assert b"413" in (await raw(door, head)).split(b"\r\n")[0]
    assert time.monotonic() - began_s < 5


@pytest.mark.parametrize(
    "sent",
    [
        b"a secret prompt\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nAuthorization: a secret\x00prompt\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n",
        b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\nx",
    ],
)
async def test_bytes_that_are_no_http_are_400_and_one_line_of_log(
    door: Any, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        answer = await raw(door, sent)
    assert b"400 Bad Request" in answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["error_type"] in ("bad_request", "validation")
    assert "secret" not in caplog.text
    assert "Traceback" not in caplog.text
    assert not any(record.levelno > logging.INFO for record in caplog.records)
    assert sum("Error handling request" in record.getMessage() for record in caplog.records) <= 1


@pytest.mark.parametrize("depth", range(300, 1000, 20))
async def test_a_value_nested_to_any_depth_is_a_typed_error(door: Any, depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        for path, content in (
            ("/generate", b'{"inputs":"x","parameters":{"temperature":' + nested + b"}}"),
            ("/v1/completions", b'{"prompt":' + nested + b"}"),
            ("/tokenize", b'{"inputs":' + nested + b"}"),
        ):
            reply = await client.post(path, content=content)
            assert reply.status_code in (400, 422), (path, depth, reply.text)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "x", "parameters": {"stop_token_ids": [int("9" * 4000)]}}),
        ("/generate", {"inputs": "x", "parameters": {"truncate": int("9" * 4000)}}),
        ("/generate", {"inputs": "x", "parameters": {"max_new_tokens": int("9" * 4000)}}),
        ("/v1/completions", {"prompt": [int("9" * 4000)]}),
        ("/v1/completions", {"prompt": "x", "n": int("9" * 4000)}),
        ("/v1/completions", {"prompt": "x", "seed": int("9" * 4000)}),
        ("/v1/completions", {"prompt": "x", "logprobs": int("9" * 4000)}),
    ],
)
async def test_a_number_of_thousands_of_digits_is_not_sent_back_whole(
    door: Any, path: str, body: Any
) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        reply = await client.post(path, json=body)
    assert reply.status_code in (400, 422), reply.text
    assert len(reply.text) < 600


async def test_who_reads_nothing_is_cut_off_and_gives_its_place_back(
    serving_of: Any, opened: Any
) -> None:
    serving = serving_of(unread_s_max=0.3, requests_max=1)
    serving.engine.answer = "é" * 200
    # Every chunk repeats the model's name: more in all than the kernel's buffers hold.
    ask = {"model": "m" * 500, "prompt": "x", "n": 16, "stream": True, "logprobs": 20}
    body = json.dumps(ask).encode()
    async with opened(serving) as door:
        host, port = door.url.removeprefix("http://").split(":")
        silent = socket.socket()
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        silent.connect((host, int(port)))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        silent.sendall(head.encode() + body)
        async with asyncio.timeout(10):
            while ("/v1/completions", "cancelled") not in door.meters.answered:
                assert ("/v1/completions", "ok") not in door.meters.answered, "too short a stream"
                await asyncio.sleep(0.05)
        assert serving.gate.running == 0
        assert len(door.engine.ended) == 16
        async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
            assert (await client.post("/generate", json={"inputs": "x"})).status_code == 200
        silent.close()


async def test_a_sequence_that_was_refused_counts_no_tokens(door: Any) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        body = {"inputs": "a long prompt", "parameters": {"adapter_id": "missing"}}
        assert (await client.post("/generate", json=body)).status_code == 404
        assert door.meters.counted == []
        await client.post("/generate", json={"inputs": "a long prompt"})
        assert len(door.meters.counted) == 1


@pytest.mark.parametrize("token", [{"a secret": 1}, ["a secret"], 5])
async def test_a_credential_of_a_wrong_kind_is_not_quoted(door: Any, token: Any) -> None:
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        for path, body in (
            ("/generate", {"inputs": "x", "parameters": {"api_token": token}}),
            ("/v1/completions", {"prompt": "x", "api_token": token}),
        ):
            reply = await client.post(path, json=body)
            assert reply.status_code in (400, 422)
            assert "api_token" in reply.text
            assert "got" not in reply.text
            assert "secret" not in reply.text


async def test_a_long_listing_holds_up_nobody(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: object) -> list[object]:
        time.sleep(1.0)
        return []

    monkeypatch.setattr(listing, "known_adapters", slow)
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        listed = asyncio.create_task(client.get("/v1/models"))
        await asyncio.sleep(0.2)
        began_s = time.monotonic()
        assert (await client.post("/generate", json={"inputs": "x"})).status_code == 200
        assert time.monotonic() - began_s < 0.7
        assert not listed.done()
        assert len((await listed).json()["data"]) == 1
