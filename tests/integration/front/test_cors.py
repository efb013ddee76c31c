"""Pages of other origins: who may read an answer, as a browser would find out."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

Opened = Callable[[Any], AbstractAsyncContextManager[Any]]
PAGE = {"Origin": "https://app.example"}
ASKS = {**PAGE, "Access-Control-Request-Method": "POST"}


async def asked(
    opened: Opened, serving: Any, method: str, path: str, headers: dict[str, str]
) -> httpx.Response:
    async with opened(serving) as door, httpx.AsyncClient(base_url=door.url) as client:
        body = b'{"inputs": "Hi"}' if method == "POST" else None
        return await client.request(method, path, headers=headers, content=body)


@pytest.mark.parametrize(("origins", "told"), [(("*",), "*"), ((PAGE["Origin"],), PAGE["Origin"])])
async def test_a_page_that_may_ask_is_told_so_before_and_after(
    opened: Opened, serving_of: Callable[..., Any], origins: tuple[str, ...], told: str
) -> None:
    serving = serving_of(cors_origins=origins, api_keys=("key",))
    before = await asked(
        opened,
        serving,
        "OPTIONS",
        "/v1/chat/completions",
        {**ASKS, "Access-Control-Request-Headers": "authorization, content-type"},
    )
    assert before.status_code == 204
    assert before.headers["access-control-allow-origin"] == told
    assert before.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in before.headers["access-control-allow-methods"]
    refused = await asked(opened, serving, "POST", "/generate", PAGE)
    assert refused.status_code == 401
    served = await asked(
        opened, serving, "POST", "/generate_stream", {**PAGE, "Authorization": "Bearer key"}
    )
    for after in (refused, served):
        assert after.headers["access-control-allow-origin"] == told
        assert "x-request-id" in after.headers["access-control-expose-headers"]
    # What a cache keeps for one origin is no answer for another.
    assert (served.headers.get("vary") == "Origin") is (told != "*")


@pytest.mark.parametrize("origins", [(), ("https://other.example",)])
async def test_any_other_page_learns_nothing(
    opened: Opened, serving_of: Callable[..., Any], origins: tuple[str, ...]
) -> None:
    serving = serving_of(cors_origins=origins)
    before = await asked(opened, serving, "OPTIONS", "/generate", ASKS)
    after = await asked(opened, serving, "POST", "/generate", PAGE)
    assert before.status_code == 405
    assert after.status_code == 200
    for answer in (before, after):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_options_alone_is_no_route(opened: Opened, serving_of: Callable[..., Any]) -> None:
    answer = await asked(opened, serving_of(cors_origins=("*",)), "OPTIONS", "/generate", {})
    assert answer.status_code == 405
