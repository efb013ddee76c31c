"""Texts under a grammar through the whole server: adapters, streams, clients, hostile callers."""

import asyncio
import json
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from adex import AsyncClient
from adex.errors import ValidationError

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "year": {"type": "integer", "minimum": 1900, "maximum": 2099},
        "tags": {"type": "array", "items": {"enum": ["red", "blau", "größer"]}, "maxItems": 3},
    },
    "required": ["name", "year", "tags"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
ADAPTERS = ("dates-to-iso", "upper-case", "sql")
PROMPT = "5 August 1988"


def judged(text: str) -> Any:
    value = json.loads(text)
    jsonschema.validate(value, SCHEMA)
    return value


@pytest.fixture
def client(server: Any) -> Any:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize("adapter", [*ADAPTERS, "model"])
def test_the_openai_client_streams_json_of_a_schema_through_an_adapter(
    client: openai.OpenAI, adapter: str
) -> None:
    chunks = client.chat.completions.create(
        model=adapter,
        messages=[{"role": "user", "content": PROMPT}],
        response_format=FORMAT,
        max_tokens=300,
        stream=True,
        seed=5,
    )
    text, finish = "", None
    for chunk in chunks:
        text += chunk.choices[0].delta.content or ""
        finish = chunk.choices[0].finish_reason or finish
    assert finish == "stop"
    judged(text)


def test_a_text_that_may_not_be_long_enough_ends_by_length_as_the_beginning_of_a_valid_one(
    client: openai.OpenAI,
) -> None:
    whole = client.completions.create(
        model=ADAPTERS[0],
        prompt=PROMPT,
        max_tokens=300,
        temperature=0,
        extra_body={"response_format": FORMAT},
    )
    short = client.completions.create(
        model=ADAPTERS[0],
        prompt=PROMPT,
        max_tokens=6,
        temperature=0,
        extra_body={"response_format": FORMAT},
    )
    assert short.choices[0].finish_reason == "length"
    assert whole.choices[0].text.startswith(short.choices[0].text)


def test_constrained_and_free_texts_of_many_adapters_share_batches_unharmed(server: Any) -> None:
    async def ask(client: AsyncClient, number: int, constrained: bool) -> str:
        reply = await client.generate(
            PROMPT,
            adapter_id=ADAPTERS[number % len(ADAPTERS)],
            max_new_tokens=300 if constrained else 20,
            do_sample=True,
            seed=number,
            response_format=FORMAT if constrained else None,
        )
        return reply.generated_text

    async def all_of(client: AsyncClient, constrained: list[bool]) -> list[str]:
        asked = (ask(client, number, each) for number, each in enumerate(constrained))
        return await asyncio.gather(*asked)

    async def both() -> tuple[list[str], list[str]]:
        async with AsyncClient(server.url, timeout=120) as client:
            mixed = await all_of(client, [n % 2 == 0 for n in range(24)])
            return mixed, await all_of(client, [False] * 24)

    mixed, free = asyncio.run(both())
    for text in mixed[::2]:
        judged(text)
    assert mixed[1::2] == free[1::2]


def test_our_client_names_the_field_that_cannot_be_honoured(server: Any) -> None:
    async def ask() -> None:
        async with AsyncClient(server.url, timeout=60) as client:
            await client.generate(
                PROMPT, response_format={"type": "json_object", "schema": {"uniqueItems": True}}
            )

    with pytest.raises(ValidationError) as caught:
        asyncio.run(ask())
    assert caught.value.field == "parameters.response_format.schema.uniqueItems"


HOSTILE: dict[str, Any] = {
    "guided_json": {
        "$ref": "#/$defs/d0",
        "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)} | {"d1500": {}},
    },
    "guided_regex": "(a?){5000}a{5000}",
    "guided_grammar": "start: r0\n"
    + "\n".join(f'r{i}: "a" r{i + 1}' for i in range(3000))
    + '\nr3000: "a"',
}


def test_callers_who_mean_harm_are_refused_while_others_are_served(server: Any) -> None:
    """And the worker that held everybody's texts is the same one afterwards."""
    worker = server.worker_pid()

    async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        return await http.post(f"{server.url}/v1/completions", json={"prompt": PROMPT, **body})

    async def all_at_once() -> tuple[list[httpx.Response], list[httpx.Response]]:
        async with httpx.AsyncClient(timeout=120) as http:
            hostile = [ask(http, {name: value}) for name, value in HOSTILE.items()]
            others = [ask(http, {"max_tokens": 20, "ignore_eos": True}) for _ in range(4)]
            found = await asyncio.gather(*hostile, *others)
            return found[: len(hostile)], found[len(hostile) :]

    refused, served = asyncio.run(all_at_once())
    assert [reply.status_code for reply in refused] == [400] * len(refused)
    assert [reply.json()["error"]["param"] for reply in refused] == list(HOSTILE)
    assert [reply.status_code for reply in served] == [200] * len(served)
    assert server.worker_pid() == worker
    known = httpx.post(
        f"{server.url}/v1/completions",
        json={"prompt": PROMPT, "guided_choice": ["yes", "no"]},
        timeout=60,
    )
    assert known.json()["choices"][0]["text"] in ("yes", "no")
