"""Bytes of every bad kind, callers of every slowness: no 5xx, and nothing of them stays behind."""

import asyncio
import json
import random
from typing import Any

import httpx
import pytest

PATHS = [
    "/generate",
    "/",
    "/v1/completions",
    "/v1/chat/completions",
    "/tokenize",
    "/generate_stream",
]
BODIES = [
    {"inputs": "a", "parameters": {"max_new_tokens": 4, "stop": ["x"], "details": True}},
    {"prompt": ["a", "b"], "n": 2, "logit_bias": {"5": 1.5}, "stream": True},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "é🙂"}]}], "seed": -1},
]
CONNECTIONS = 1000


async def connected(door: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = door.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def sent(door: Any, request: bytes) -> bytes:
    """What comes back for these bytes, until the server closes or waits for more."""
    reader, writer = await connected(door)
    answer = b""
    try:
        writer.write(request)
        if writer.can_write_eof():
            writer.write_eof()
        async with asyncio.timeout(5):
            while part := await reader.read(65536):
                answer += part
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.close()
    return answer


def mutated(chance: random.Random, body: bytes) -> bytes:
    """A body with something wrong: cut, spliced, flipped, doubled, or no text at all."""
    match chance.randrange(5):
        case 0:
            return body[: chance.randrange(len(body))]
        case 1:
            place = chance.randrange(len(body))
            return body[:place] + chance.randbytes(chance.randrange(1, 20)) + body[place:]
        case 2:
            flipped = bytearray(body)
            for _ in range(3):
                flipped[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
            return bytes(flipped)
        case 3:
            return body + body
        case _:
            return chance.randbytes(chance.randrange(1, 400))


async def is_quiet(door: Any) -> None:
    """Wait until nobody's request is under way."""
    async with asyncio.timeout(20):
        while door.serving.gate.running:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(3))
async def test_no_body_is_answered_with_a_fault_of_the_servers(door: Any, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        body = mutated(chance, json.dumps(chance.choice(BODIES)).encode())
        # Now and then the head lies about the length too.
        length = len(body) if chance.random() < 0.8 else chance.randrange(2 * len(body) + 1)
        head = f"POST {chance.choice(PATHS)} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        request = f"{head}Content-Length: {length}\r\n\r\n".encode() + body
        if chance.random() < 0.2:
            request = mutated(chance, request)
        answer = await sent(door, request)
        if answer:
            head_line, _, rest = answer.partition(b"\r\n")
            status = int(head_line.split()[1])
            assert status < 500, (request, answer)
            if status >= 400:
                assert b"application/json" in rest.lower()
    await is_quiet(door)
    assert "internal" not in {code for _, code in door.meters.answered}


async def test_callers_who_write_slowly_keep_nobody_waiting(door: Any) -> None:
    slow = [await connected(door) for _ in range(50)]
    for _, writer in slow:
        writer.write(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n{")
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        for _ in range(10):
            assert (await client.post("/generate", json={"inputs": "a"})).status_code == 200
    for byte in b'"inputs":"a"} ':
        for _, writer in slow:
            writer.write(bytes([byte]))
        await asyncio.sleep(0)
    for reader, writer in slow:
        async with asyncio.timeout(10):
            assert b"200 OK" in await reader.readline()
        writer.close()
    await is_quiet(door)


async def test_a_thousand_connections_opened_and_dropped_leave_nothing(door: Any) -> None:
    door.engine.pause_s = 0.01
    body = json.dumps({"inputs": "a"}).encode()
    whole = b"POST /generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    beginnings = [b"", b"POST /gen", whole, whole + body[:5], whole + body]

    async def visit(number: int) -> None:
        reader, writer = await connected(door)
        beginning = beginnings[number % len(beginnings)]
        writer.write(beginning)
        await writer.drain()
        if beginning.endswith(body):
            await reader.readline()
        # Some say goodbye, and some are just gone.
        if number % 2:
            writer.transport.abort()
        else:
            writer.close()

    for first in range(0, CONNECTIONS, 100):
        await asyncio.gather(*(visit(first + each) for each in range(100)))
    await is_quiet(door)
    assert len(door.engine.requests) == len(door.engine.ended) == CONNECTIONS // len(beginnings)
    async with httpx.AsyncClient(base_url=door.url, timeout=10) as client:
        assert (await client.get("/health")).status_code == 200
