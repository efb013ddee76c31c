"""The one line each request leaves: what it says, and what it never does."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from adex_proto.adapter import AdapterKey, AdapterVersion, credential_tenant
from adex_proto.logs import JsonLines

Doors = Callable[..., AbstractAsyncContextManager[Any]]
PROMPT = "Hello, a prompt nobody may read"


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """The access log as JSON lines."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("adex.access")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


async def ask(live: Doors, parameters: dict[str, Any], headers: dict[str, str]) -> httpx.Response:
    private = AdapterKey(credential_tenant("", "hf_token"), "hub", "acme/secret-project")
    async with live() as doors:
        for digest, key in (("d1" * 32, AdapterKey("", "hub", "org/tone")), ("d2" * 32, private)):
            doors.worker.published[key] = AdapterVersion(digest, 300, 8, 4)
        body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 5, **parameters}}
        async with httpx.AsyncClient(base_url=doors.url, timeout=60) as client:
            return await client.post("/generate", json=body, headers=headers)


async def test_a_request_leaves_one_line_with_its_id_its_adapter_and_its_times(
    live: Doors, lines: Callable[[], list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"x-request-id": "mine-1"}
    parameters = {"adapter_id": "org/tone", "adapter_source": "hub", "seed": 1}
    with caplog.at_level(logging.INFO, logger="adex.access"):
        answer = await ask(live, parameters, headers)
    assert answer.headers["x-request-id"] == "mine-1"
    [line] = lines()
    assert line["message"] == "POST /generate 200 ok"
    assert (line["adapter"], line["start"]) == ("org/tone", "remote")
    assert line["new_tokens"] == int(answer.headers["x-generated-tokens"])
    assert line["queue_ms"] <= line["first_token_ms"] <= line["total_ms"]
    assert (line["request"], line["level"], line["logger"]) == ("mine-1", "info", "adex.access")
    # For people the same stands in one sentence.
    [record] = [r for r in caplog.records if r.name == "adex.access"]
    assert record.getMessage().startswith("POST /generate 200 ok adapter=org/tone start=remote ")
    assert record.getMessage().endswith(" request=mine-1")


@pytest.mark.parametrize(
    ("token", "shown"), [("hf_token", f"private-{'d2' * 6}"), (None, "unresolved")]
)
async def test_a_private_adapter_is_never_named_whoever_asks(
    live: Doors,
    lines: Callable[[], list[dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
    token: str | None,
    shown: str,
) -> None:
    parameters = {"adapter_id": "acme/secret-project", "adapter_source": "hub", "api_token": token}
    with caplog.at_level(logging.DEBUG, logger="adex_scheduler"):
        await ask(live, parameters, {"authorization": "Bearer hf_other"})
    [line] = lines()
    assert line["adapter"] == shown
    for told in (json.dumps(line), caplog.text):
        for secret in ("secret-project", "hf_token", "hf_other", PROMPT):
            assert secret not in told


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [
        ({"adapter_id": "tone", "max_new_tokens": 10**6}, "unresolved"),
        ({"max_new_tokens": 10**6}, "base"),
        ({"adapter_id": "tone", "max_new_tokens": "many"}, "unread"),
    ],
)
async def test_a_request_that_was_refused_is_told_as_the_base_models_only_where_it_is(
    live: Doors, lines: Callable[[], list[dict[str, Any]]], parameters: dict[str, Any], shown: str
) -> None:
    answer = await ask(live, parameters, {})
    assert answer.status_code == 422
    [line] = lines()
    assert (line["adapter"], line["start"]) == (shown, "-")


async def test_a_name_that_has_just_failed_is_refused_as_no_request_for_the_base_model(
    live: Doors, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    body = {"inputs": PROMPT, "parameters": {"adapter_id": "nothing"}}
    async with live() as doors, httpx.AsyncClient(base_url=doors.url, timeout=60) as client:
        for _ in range(2):
            assert (await client.post("/generate", json=body)).status_code == 404
    assert [(line["adapter"], line["start"]) for line in lines()] == [("unresolved", "remote")] * 2


async def test_an_id_that_could_break_a_line_is_replaced(
    live: Doors, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    answer = await ask(live, {}, {"x-request-id": "a b\tc" + "d" * 200})
    [line] = lines()
    assert line["request"] == answer.headers["x-request-id"]
    assert len(line["request"]) == 32
    assert line["adapter"] == "base"


def test_a_failure_is_one_json_line_too() -> None:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.Logger("room")
    logger.addHandler(handler)
    try:
        raise ValueError("of\nseveral lines")
    except ValueError:
        logger.exception("it failed: %s", "x\ny")
    [line] = written.getvalue().splitlines()
    told = json.loads(line)
    assert (told["level"], told["message"]) == ("error", "it failed: x\ny")
    assert "ValueError: of\nseveral lines" in told["exception"]
