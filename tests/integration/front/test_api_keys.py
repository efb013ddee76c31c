"""A server with API keys: who is served, who is not, and what two keys share."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc

from adex_proto.v1 import generate_pb2 as pb
from adex_proto.v1.generate_pb2_grpc import AdaptersStub, GenerationStub
from adex_scheduler.front.rest import OPEN, create_app

Doors = Callable[..., AbstractAsyncContextManager[Any]]
ONE, TWO, ADMIN = ({"authorization": f"Bearer {key}"} for key in ("key-one", "key-two", "key-op"))
KEYS = {"api_keys": ("key-one", "key-two"), "admin_key": "key-op"}
PROMPT = "a prompt that is long enough to fill some blocks of the cache"


@pytest.fixture
async def house(live: Doors) -> AsyncIterator[Any]:
    async with live(**KEYS) as doors:
        doors.publish("tone")
        yield doors


@pytest.fixture
async def http(house: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=house.url, timeout=30.0) as client:
        yield client


def completion(model: str = "tone") -> dict[str, object]:
    return {"model": model, "prompt": PROMPT, "max_tokens": 2, "ignore_eos": True}


@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer key-on"}, {"authorization": ""}])
async def test_without_a_key_no_route_answers_but_those_that_bring_no_data(
    http: httpx.AsyncClient, serving_of: Callable[..., Any], header: dict[str, str]
) -> None:
    app: web.Application = create_app(serving_of(**KEYS))
    asked = 0
    for route in app.router.routes():
        assert route.resource is not None
        path = route.resource.canonical
        answer = await http.request(route.method, path.replace("{name:.+}", "x"), headers=header)
        if path in OPEN:
            assert answer.status_code != 401, path
        else:
            asked += 1
            assert answer.status_code == 401, path
            assert "key-" not in answer.text
    assert asked > 25


async def test_any_of_the_keys_serves_and_so_does_the_operators(http: httpx.AsyncClient) -> None:
    bare = {"authorization": "key-two"}
    for header in (ONE, TWO, bare, ADMIN):
        assert (await http.post("/v1/completions", json=completion(), headers=header)).is_success
        assert (await http.get("/v1/models", headers=header)).is_success


async def test_a_callers_key_is_no_operators(http: httpx.AsyncClient) -> None:
    pin = {"adapter_id": "tone"}
    assert (await http.post("/v1/adapters/pin", json=pin, headers=ONE)).status_code == 401
    assert (await http.post("/v1/adapters/pin", json=pin, headers=ADMIN)).is_success


async def test_a_refusal_has_the_shape_of_its_route(http: httpx.AsyncClient) -> None:
    openai = (await http.post("/v1/completions", json=completion())).json()["error"]
    assert (openai["code"], openai["type"]) == ("unauthorized", "authentication_error")
    assert (await http.post("/generate", json={})).json()["error_type"] == "unauthorized"


async def test_keys_share_adapters_and_no_prefixes(http: httpx.AsyncClient) -> None:
    async def cached(header: dict[str, str]) -> tuple[str, int]:
        answer = await http.post("/v1/completions", json=completion(), headers=header)
        usage = answer.json()["usage"]["prompt_tokens_details"]
        return answer.headers["x-adapter-tier"], usage["cached_tokens"]

    assert await cached(ONE) == ("remote", 0)
    tier, tokens = await cached(ONE)
    assert (tier, tokens > 0) == ("device", True)
    assert await cached(TWO) == ("device", 0)
    listed = (await http.get("/v1/models", headers=TWO)).json()["data"]
    assert [card["id"] for card in listed] == ["base", "tone"]


async def test_no_key_is_in_the_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await http.post("/v1/completions", json=completion(), headers=ONE)
    await http.post("/v1/completions", json=completion(), headers={"authorization": "key-bad"})
    told = [r.getMessage() for r in caplog.records if r.name.startswith("adex")]
    assert told
    assert not any("key-" in line for line in told)


async def test_grpc_asks_for_the_same_keys_and_health_for_none(house: Any) -> None:
    async with grpc.aio.insecure_channel(house.rpc_address) as channel:
        generation: Any = GenerationStub(channel)  # type: ignore[no-untyped-call]
        adapters: Any = AdaptersStub(channel)  # type: ignore[no-untyped-call]
        health: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        request = pb.GenerateRequest(inputs="Hi", parameters={"max_new_tokens": 2})
        for call, asked in (
            (generation.Generate, request),
            (generation.ModelInfo, pb.ModelInfoRequest()),
            (adapters.List, pb.ListAdaptersRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(asked)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await call(asked, metadata=tuple(ONE.items()))
        assert await health.Check(health_pb2.HealthCheckRequest())


async def test_without_keys_everybody_is_served_whatever_they_show(live: Doors) -> None:
    async with live() as doors, httpx.AsyncClient(base_url=doors.url, timeout=30.0) as client:
        for header in ({}, ONE):
            answer = await client.post("/v1/completions", json=completion("base"), headers=header)
            assert answer.is_success
