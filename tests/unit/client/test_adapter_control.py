"""`client.adapters`, blocking and not: what is asked, and what comes of it."""

from typing import Any

import pytest

from adex import AdapterState, AsyncClient, Client
from adex.errors import AdapterNotFound, PinRefused, StreamBroken, Unauthorized
from adex.testing import Answer, ScriptedServer

SHOWN = {"id": "tone", "tier": "device", "bytes": 300, "pinned": "device", "new": 1}
STEPS: list[dict[str, Any]] = [
    {"id": "tone", "action": "pin", "tier": "absent", "done": False, "adapter": None},
    {"id": "tone", "action": "pin", "tier": "disk", "bytes": 300, "done": False},
    {"id": "tone", "action": "pin", "tier": "device", "done": True, "adapter": SHOWN},
]
STATE = AdapterState("tone", "device", bytes=300, pinned="device")
ACTIONS = ("preload", "prefetch", "pin", "unpin", "reload", "unload")


@pytest.mark.parametrize("action", ACTIONS)
async def test_an_action_gives_the_adapter_as_it_then_is(action: str) -> None:
    with ScriptedServer({f"/v1/adapters/{action}": Answer.of_events(STEPS)}) as server:
        with Client(server.url) as client:
            assert getattr(client.adapters, action)("tone", "hub", "hf_x") == STATE
        async with AsyncClient(server.url) as client:
            assert await getattr(client.adapters, action)("tone", "hub", "hf_x") == STATE
    blocking, other = server.asked
    assert blocking.body == other.body
    named = {"adapter_id": "tone", "adapter_source": "hub", "api_token": "hf_x", "stream": True}
    assert blocking.body.items() >= named.items()


def test_the_way_there_can_be_followed() -> None:
    with (
        ScriptedServer({"/v1/adapters/pin": Answer.of_events(STEPS)}) as server,
        Client(server.url) as client,
    ):
        steps = list(client.adapters.follow("pin", "tone", tier="device"))
    assert [step.tier for step in steps] == ["absent", "disk", "device"]
    assert [step.done for step in steps] == [False, False, True]
    assert steps[-1].adapter == STATE


async def test_the_list_shows_a_tokens_own_adapters() -> None:
    answer = Answer.of_json({"object": "list", "data": [SHOWN]})
    with ScriptedServer({"/v1/adapters": answer}) as server:
        with Client(server.url) as client:
            assert client.adapters.list("hf_x") == (STATE,)
        async with AsyncClient(server.url) as client:
            assert await client.adapters.list() == (STATE,)
    assert server.asked[0].headers["x-api-token"] == "hf_x"
    assert "x-api-token" not in server.asked[1].headers


def test_a_refusal_is_a_typed_error_before_and_within_the_stream() -> None:
    def error(code: str) -> dict[str, Any]:
        return {"error": {"message": "no", "type": "x", "param": None, "code": code}}

    script = {
        "/v1/adapters/pin": Answer.of_json(error("unauthorized"), 401),
        "/v1/adapters/unpin": Answer.of_json(error("pin_refused"), 409),
        "/v1/adapters/preload": Answer.of_events([STEPS[0], error("adapter_not_found")]),
        "/v1/adapters/reload": Answer.of_events(STEPS[:2]),
    }
    with ScriptedServer(script) as server, Client(server.url, retries_max=0) as client:
        with pytest.raises(Unauthorized):
            client.adapters.pin("tone")
        with pytest.raises(PinRefused):
            client.adapters.unpin("tone")
        with pytest.raises(AdapterNotFound):
            client.adapters.preload("tone")
        with pytest.raises(StreamBroken):
            client.adapters.reload("tone")
