"""Control of adapters over REST, and the routes by which vLLM, AIBrix and SageMaker name them."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from adex_proto.adapter import AdapterKey, Tier, credential_tenant
from adex_proto.errors import AdapterMalformed

ADMIN = {"authorization": "Bearer sesame"}


class Control:
    """A house, its REST door, and the operator's key."""

    def __init__(self, house: Any, http: httpx.AsyncClient) -> None:
        self.house = house
        self.http = http

    async def post(self, path: str, headers: Any = ADMIN, **body: object) -> httpx.Response:
        return await self.http.post(path, json=body, headers=headers)

    async def act(self, action: str, name: str, headers: Any = ADMIN, **body: object) -> Any:
        answer = await self.post(f"/v1/adapters/{action}", headers, adapter_id=name, **body)
        return answer.json()

    async def listed(self, **headers: str) -> dict[str, Any]:
        answer = await self.http.get("/v1/adapters", headers=headers)
        return {card["id"]: card for card in answer.json()["data"]}

    def generate(self, name: str, **fields: object) -> Any:
        parameters = {"adapter_id": name, "max_new_tokens": 4, **fields}
        return self.http.post("/generate", json={"inputs": "Hi", "parameters": parameters})


@pytest.fixture
async def control(live: Callable[..., Any]) -> AsyncIterator[Control]:
    async with (
        live(admin_key="sesame") as house,
        httpx.AsyncClient(base_url=house.url, timeout=30.0) as http,
    ):
        house.publish("tone")
        yield Control(house, http)


async def test_preload_answers_with_the_adapter_where_it_was_wanted(control: Control) -> None:
    shown = await control.act("preload", "tone", tier="host")
    assert (shown["id"], shown["tier"], shown["bytes"], shown["rank"]) == ("tone", "host", 300, 8)
    assert shown["digest"] == "digest-of-tone"
    assert (await control.act("preload", "tone"))["tier"] == "device"
    card = (await control.listed())["tone"]
    assert (card["tier"], card["pins"], card["pinned"]) == ("device", 0, None)
    await control.act("preload", "other")
    one = await control.http.get("/v1/adapters", params={"id": "tone"})
    assert [card["id"] for card in one.json()["data"]] == ["tone"]


async def test_a_streamed_preload_tells_of_each_tier(control: Control) -> None:
    body = {"adapter_id": "tone", "stream": True}
    answer = await control.http.post("/v1/adapters/preload", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.text.splitlines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["tier"] for event in events] == ["absent", "disk", "host", "device"]
    assert [event["done"] for event in events] == [False, False, False, True]
    assert events[-1]["adapter"]["tier"] == "device"
    assert events[1]["bytes"] == 300


async def test_a_stream_that_fails_ends_with_the_error(control: Control) -> None:
    body = {"adapter_id": "nothing", "stream": True}
    answer = await control.http.post("/v1/adapters/preload", json=body)
    [_, last] = [line for line in answer.text.splitlines() if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "adapter_not_found"


async def test_what_binds_others_needs_the_admin_key(control: Control) -> None:
    for action in ("pin", "unpin", "reload", "unload"):
        for headers in ({}, {"authorization": "Bearer other"}, {"authorization": "sesame2"}):
            answer = await control.post(f"/v1/adapters/{action}", headers, adapter_id="tone")
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "unauthorized"
            assert "sesame" not in answer.text
    for path in ("/v1/load_lora_adapter", "/v1/lora_adapter/unload", "/adapters"):
        answer = await control.post(path, {}, lora_name="x", lora_path="tone")
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == 401
    assert control.house.worker.disk == {}


async def test_without_a_key_control_is_off_and_an_open_server_asks_for_none(
    live: Callable[..., Any],
) -> None:
    async with live() as house, httpx.AsyncClient(base_url=house.url) as http:
        answer = await http.post("/v1/adapters/pin", json={"adapter_id": "tone"}, headers=ADMIN)
        assert answer.status_code == 401
        assert "ADEX_ADMIN_KEY" in answer.json()["error"]["message"]
    async with live(open_admin=True) as house, httpx.AsyncClient(base_url=house.url) as http:
        house.publish("tone")
        answer = await http.post("/v1/adapters/pin", json={"adapter_id": "tone"})
        assert answer.json()["pinned"] == "device"


async def test_pin_keeps_and_unpin_lets_go(control: Control) -> None:
    assert (await control.act("pin", "tone"))["pinned"] == "device"
    assert (await control.listed())["tone"]["pinned"] == "device"
    assert (await control.act("unpin", "tone"))["pinned"] is None


async def test_pins_beyond_their_share_are_a_conflict(control: Control) -> None:
    control.house.publish("large", 4000)
    answer = await control.post("/v1/adapters/pin", adapter_id="large")
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "pin_refused"
    assert "40 pages" in answer.json()["error"]["message"]


async def test_reload_shows_the_new_version_and_forgets_a_failure(control: Control) -> None:
    key = AdapterKey("", "local", "tone")
    good = control.house.worker.published[key]
    control.house.worker.published[key] = AdapterMalformed("no weights")
    assert (await control.generate("tone")).status_code == 422
    control.house.worker.published[key] = good
    assert (await control.generate("tone")).status_code == 422
    assert (await control.act("reload", "tone"))["digest"] == "digest-of-tone"
    assert (await control.generate("tone")).status_code == 200
    control.house.publish("tone", digest="newer")
    assert (await control.act("reload", "tone"))["digest"] == "newer"


async def test_unload_waits_for_who_uses_it(control: Control) -> None:
    await control.act("preload", "tone")
    control.house.link.held.add("steps")
    running = asyncio.create_task(control.generate("tone"))
    while not control.house.worker.plans:
        await asyncio.sleep(0.01)
    unloading = asyncio.create_task(control.act("unload", "tone", disk=True))
    while "tone" in await control.listed():
        await asyncio.sleep(0.01)
    assert not unloading.done()
    control.house.link.release("steps")
    assert (await running).status_code == 200
    assert (await unloading)["tier"] == "absent"
    assert control.house.worker.disk == {}


async def test_a_credential_of_any_bytes_is_refused_and_not_stumbled_over(control: Control) -> None:
    odd: Any = {b"authorization": b"Bearer \xff\xfe"}
    answer = await control.post("/v1/adapters/pin", odd, adapter_id="tone")
    assert answer.status_code == 401
    listing = await control.http.get("/v1/adapters", headers={b"x-api-token": b"hf_\xff"})
    assert (listing.status_code, listing.json()["error"]["param"]) == (400, "x-api-token")


async def test_prefetch_answers_at_once_and_the_adapter_comes(control: Control) -> None:
    assert (await control.act("prefetch", "tone"))["id"] == "tone"
    async with asyncio.timeout(30.0):
        while (await control.listed()).get("tone", {"tier": ""})["tier"] != "host":
            await asyncio.sleep(0.01)


async def test_a_private_adapter_is_its_tokens_own(control: Control) -> None:
    mine = credential_tenant("", "hf_secret")
    control.house.publish("org/private", tenant=mine)
    named = {"adapter_source": "hub", "api_token": "hf_secret"}
    shown = await control.act("preload", "org/private", {}, **named)
    assert shown["tier"] == "device"
    assert "org/private" not in await control.listed()
    assert "org/private" in await control.listed(**{"x-api-token": "hf_secret"})
    assert "org/private" not in await control.listed(**{"x-api-token": "hf_other"})
    pinned = await control.act("pin", "org/private", **named)
    assert pinned["pinned"] == "device"


async def test_a_pin_of_a_private_adapter_is_renewed_with_its_token(control: Control) -> None:
    mine = credential_tenant("", "hf_secret")
    control.house.publish("org/private", tenant=mine)
    named = {"adapter_source": "hub", "api_token": "hf_secret"}
    await control.act("pin", "org/private", **named)
    control.house.worker.disk.clear()
    control.house.worker.host.clear()
    before = len(control.house.link.sent)
    control.house.link.lose("it died")
    key = AdapterKey(mine, "hub", "org/private")
    async with asyncio.timeout(30.0):
        while len(control.house.link.sent) < before + 3:
            await asyncio.sleep(0.01)
    assert control.house.link.sent[before].credential == "hf_secret"
    await control.act("unpin", "org/private", **named)
    status = control.house.engine.adapter(key)
    assert status is not None
    assert status.pinned is Tier.ABSENT


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "adapter_id"),
        ({"adapter_id": ""}, "adapter_id"),
        ({"adapter_id": "tone", "tier": "disk"}, "tier"),
        ({"adapter_id": "tone", "adapter_source": "ftp"}, "adapter_source"),
        ({"adapter_id": 7}, "adapter_id"),
        ({"adapter_id": "tone", "stream": "yes"}, "stream"),
    ],
)
async def test_a_wrong_field_is_named(control: Control, body: Any, field: str) -> None:
    answer = await control.http.post("/v1/adapters/preload", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field


# The runtime routes of others.


async def test_vllms_routes_give_and_take_a_name(control: Control) -> None:
    wish = {"lora_name": "mine", "lora_path": "tone"}
    answer = await control.post("/v1/load_lora_adapter", **wish)
    assert (answer.status_code, answer.text) == (
        200,
        "Success: LoRA adapter 'mine' added successfully.",
    )
    models = (await control.http.get("/v1/models")).json()["data"]
    card = next(model for model in models if model["id"] == "mine")
    assert (card["root"], card["parent"], card["tier"]) == ("tone", "base", "host")
    used = await control.http.post(
        "/v1/completions", json={"model": "mine", "prompt": "Hi", "max_tokens": 2}
    )
    assert used.json()["model"] == "mine"
    answer = await control.post("/v1/unload_lora_adapter", lora_name="mine")
    assert answer.text == "Success: LoRA adapter 'mine' removed successfully."
    gone = await control.http.post(
        "/v1/completions", json={"model": "mine", "prompt": "Hi", "max_tokens": 2}
    )
    assert gone.status_code == 404
    assert control.house.worker.host == set()


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (
            {"lora_name": "mine"},
            400,
            "InvalidUserInput",
            "Both 'lora_name' and 'lora_path' must be provided.",
        ),
        (
            {"lora_name": "base", "lora_path": "tone"},
            400,
            "InvalidUserInput",
            "The lora adapter 'base' conflicts with a served base model.",
        ),
        (
            {"lora_name": "mine", "lora_path": "nothing"},
            404,
            "NotFoundError",
            "Loading lora mine failed: No adapter found for nothing",
        ),
        ({"lora_name": "mine", "lora_path": "broken"}, 400, "BadRequestError", "no weights"),
        ({"lora_name": "mine", "lora_path": "huge"}, 400, "BadRequestError", "The adapter takes"),
    ],
)
async def test_vllms_errors_have_its_shape_and_user_faults_are_4xx(
    control: Control, body: Any, status: int, kind: str, message: str
) -> None:
    broken = AdapterKey("", "local", "broken")
    control.house.worker.published[broken] = AdapterMalformed("no weights")
    control.house.publish("huge", 50_000)
    answer = await control.post("/v1/load_lora_adapter", **body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"]) == (status, status, kind)
    assert error["message"].startswith(message)


async def test_a_path_is_not_read_through_the_name_it_is_given(control: Control) -> None:
    control.house.publish("other")
    await control.post("/v1/load_lora_adapter", lora_name="tone", lora_path="other")
    wish = {"lora_name": "tone", "lora_path": "tone", "load_inplace": True}
    assert (await control.post("/v1/load_lora_adapter", **wish)).status_code == 200
    named = (await control.http.get("/adapters", headers=ADMIN)).json()["adapters"]
    assert named == [{"name": "tone", "src": "tone"}]


async def test_a_name_is_given_twice_only_in_place(control: Control) -> None:
    wish = {"lora_name": "mine", "lora_path": "tone"}
    await control.post("/v1/lora_adapter/load", **wish)
    again = await control.post("/v1/lora_adapter/load", **wish)
    assert again.status_code == 400
    assert "set 'load_inplace' to True" in again.json()["error"]["message"]
    control.house.publish("tone", digest="newer")
    answer = await control.post("/v1/lora_adapter/load", **wish, load_inplace=True)
    assert answer.status_code == 200
    assert (await control.listed())["mine"]["digest"] == "newer"
    control.house.publish("other")
    wish["lora_path"] = "other"
    assert (await control.post("/v1/lora_adapter/load", **wish, load_inplace=True)).is_success
    assert (await control.listed())["mine"]["root"] == "other"
    answer = await control.post("/v1/lora_adapter/unload", lora_name="mine")
    assert answer.status_code == 200
    missing = await control.post("/v1/lora_adapter/unload", lora_name="mine")
    assert missing.json()["error"] == {
        "message": "The lora adapter 'mine' cannot be found.",
        "type": "NotFoundError",
        "param": None,
        "code": 404,
    }


async def test_sagemakers_routes_and_header_mean_the_same(control: Control) -> None:
    assert (await control.post("/adapters", name="mine", src="tone")).status_code == 200
    listed = await control.http.get("/adapters", headers=ADMIN)
    assert listed.json() == {"adapters": [{"name": "mine", "src": "tone"}]}
    header = {"X-Amzn-SageMaker-Adapter-Identifier": "mine"}
    named = await control.http.post(
        "/invocations", json={"inputs": "Hi", "parameters": {"max_new_tokens": 2}}, headers=header
    )
    assert named.headers["x-adapter-id"] == "mine"
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    named = await control.http.post("/invocations", json=chat, headers=header)
    assert named.json()["model"] == "mine"
    gone = await control.http.request("DELETE", "/adapters/mine", headers=ADMIN)
    assert gone.text == "Success: LoRA adapter 'mine' removed successfully."


async def test_an_adapter_pinned_under_its_own_name_outlives_a_runtime_name(
    control: Control,
) -> None:
    await control.act("pin", "tone")
    await control.post("/v1/load_lora_adapter", lora_name="mine", lora_path="tone")
    await control.post("/v1/unload_lora_adapter", lora_name="mine")
    assert (await control.listed())["tone"]["pinned"] == "device"
