"""The gRPC door over a real engine: chats, tokens, the model, control of adapters, rich errors."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adex_proto.adapter import credential_tenant
from adex_proto.errors import AdapterMalformed
from adex_proto.v1 import generate_pb2 as pb
from adex_proto.v1.generate_pb2_grpc import AdaptersStub, GenerationStub

ADMIN = (("authorization", "Bearer sesame"),)


class Wire:
    """A channel to a running door."""

    def __init__(self, house: Any, channel: grpc.aio.Channel) -> None:
        self.house = house
        self.channel = channel
        self.generation: Any = GenerationStub(channel)  # type: ignore[no-untyped-call]
        self.adapters: Any = AdaptersStub(channel)  # type: ignore[no-untyped-call]

    async def act(self, action: str, name: str, metadata: Any = ADMIN, **fields: Any) -> Any:
        """The adapter when all is done."""
        request = pb.AdapterRequest(adapter_id=name, **fields)
        events = [
            event async for event in getattr(self.adapters, action)(request, metadata=metadata)
        ]
        assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
        return events[-1].adapter


@pytest.fixture
async def wire(live: Callable[..., Any]) -> AsyncIterator[Wire]:
    async with (
        live(admin_key="sesame") as house,
        grpc.aio.insecure_channel(house.rpc_address) as channel,
    ):
        house.publish("tone")
        yield Wire(house, channel)


def chat(text: str = "Hi", **fields: Any) -> pb.ChatRequest:
    return pb.ChatRequest(messages=[pb.ChatMessage(role="user", content=text)], **fields)


def details_of(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The rich details by the name of their type."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])  # type: ignore[arg-type]
    assert status.code == error.code().value[0]
    found: dict[str, Any] = {}
    for packed in status.details:
        for kind in ("ErrorInfo", "BadRequest", "RetryInfo"):
            message = getattr(error_details_pb2, kind)()
            if packed.Unpack(message):
                found[kind] = message
    return found


async def test_a_chat_streams_its_answer_and_says_why_it_ended(wire: Wire) -> None:
    request = chat(model="tone", max_tokens=4, temperature=0.0, ignore_eos=True)
    events = [event async for event in wire.generation.Chat(request)]
    assert events[-1].finish_reason == "length"
    assert events[-1].usage.completion_tokens == 4
    assert events[-1].usage.total_tokens == events[-1].usage.prompt_tokens + 4
    assert not any(event.HasField("usage") for event in events[:-1])


async def test_a_chat_means_what_it_means_in_rest(wire: Wire) -> None:
    for request, field in (
        (chat(temperature=-1.0), "temperature"),
        (pb.ChatRequest(), "messages"),
        (chat(logit_bias={5: 1000.0}), "logit_bias.5"),
        (chat(grammar=pb.TextGrammar(json_schema="{")), "grammar.value"),
        (chat(deadline_ms=0), "deadline_ms"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in wire.generation.Chat(request):
                pass
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        [violation] = details_of(failed.value)["BadRequest"].field_violations
        assert violation.field == field


async def test_tokens_lie_where_their_bytes_are(wire: Wire) -> None:
    text = "Hello, the end"
    reply = await wire.generation.Tokenize(pb.TokenizeRequest(inputs=text))
    assert "".join(text[token.start : token.stop] for token in reply.tokens) == text
    assert [token.text for token in reply.tokens] == [text[t.start : t.stop] for t in reply.tokens]


async def test_the_model_and_its_limits_are_told(wire: Wire) -> None:
    info = await wire.generation.ModelInfo(pb.ModelInfoRequest())
    assert info.model_id == "base"
    assert info.max_input_tokens == info.max_total_tokens - 1
    assert info.max_adapters_resident == 8


async def test_an_adapter_is_preloaded_pinned_reloaded_and_unloaded(wire: Wire) -> None:
    assert (await wire.act("Preload", "tone", tier="host")).tier == "host"
    assert (await wire.act("Pin", "tone")).pinned == "device"
    [listed] = (await wire.adapters.List(pb.ListAdaptersRequest())).adapters
    assert (listed.tier, listed.digest, listed.bytes) == ("device", "digest-of-tone", 300)
    [same] = (await wire.generation.ListAdapters(pb.ListAdaptersRequest())).adapters
    assert same.name == listed.name == "tone"
    wire.house.publish("tone", digest="newer")
    assert (await wire.act("Reload", "tone")).digest == "newer"
    assert not (await wire.act("Unpin", "tone")).HasField("pinned")
    assert (await wire.act("Unload", "tone", disk=True)).tier == "absent"
    assert not (await wire.adapters.List(pb.ListAdaptersRequest())).adapters
    assert (await wire.act("Prefetch", "tone", ())).name == "tone"


async def test_a_preload_tells_of_each_tier(wire: Wire) -> None:
    request = pb.AdapterRequest(adapter_id="tone")
    events = [event async for event in wire.adapters.Preload(request)]
    assert [event.tier for event in events] == ["disk", "host", "device"]


async def test_what_binds_others_needs_the_admin_key(wire: Wire) -> None:
    for action in ("Pin", "Unpin", "Reload", "Unload"):
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await wire.act(action, "tone", ())
        assert failed.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert details_of(failed.value)["ErrorInfo"].reason == "unauthorized"


async def test_errors_carry_their_code_and_how_long_to_wait(wire: Wire) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as missing:
        await wire.act("Preload", "nothing")
    info = details_of(missing.value)["ErrorInfo"]
    assert (info.reason, info.domain) == ("adapter_not_found", "adex")
    wire.house.publish("large", 4000)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wire.act("Pin", "large")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert details_of(refused.value)["ErrorInfo"].reason == "pin_refused"
    wire.house.engine._ready.clear()
    wire.house.engine._core = None
    with pytest.raises(grpc.aio.AioRpcError) as lost:
        await wire.act("Preload", "tone")
    assert details_of(lost.value)["RetryInfo"].retry_delay.seconds == 1


async def test_a_deadline_gives_a_preload_up(wire: Wire) -> None:
    wire.house.link.held.add("commands")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        async for _ in wire.adapters.Preload(pb.AdapterRequest(adapter_id="tone"), timeout=0.3):
            pass
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(30.0):
        while wire.house.engine._core.sequences:
            await asyncio.sleep(0.01)


async def test_a_caller_who_cancels_a_chat_ends_its_sequence(wire: Wire) -> None:
    wire.house.link.held.add("steps")
    call = wire.generation.Chat(chat(max_tokens=4))
    reading = asyncio.ensure_future(call.read())
    async with asyncio.timeout(30.0):
        while not wire.house.worker.plans:
            await asyncio.sleep(0.01)
        call.cancel()
        wire.house.link.release("steps")
        while wire.house.engine._core.sequences:
            await asyncio.sleep(0.01)
    reading.cancel()


async def test_a_private_adapter_is_listed_for_its_token(wire: Wire) -> None:
    wire.house.publish("org/mine", tenant=credential_tenant("", "hf_secret"))
    await wire.act("Preload", "org/mine", adapter_source="hub", api_token="hf_secret")
    anyone = await wire.adapters.List(pb.ListAdaptersRequest())
    holder = await wire.adapters.List(
        pb.ListAdaptersRequest(), metadata=(("x-api-token", "hf_secret"),)
    )
    assert [card.name for card in anyone.adapters] == []
    assert [card.name for card in holder.adapters] == ["org/mine"]


async def test_a_malformed_adapter_is_a_failed_precondition(wire: Wire) -> None:
    key = next(iter(wire.house.worker.published))
    wire.house.worker.published[key] = AdapterMalformed("no weights")
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await wire.act("Preload", "tone")
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_reflection_names_both_services(wire: Wire) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    [answer] = [one async for one in stub.ServerReflectionInfo(iter([request]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {"adex.v1.Generation", "adex.v1.Adapters"} <= names
