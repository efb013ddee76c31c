"""The gRPC front: the meaning of /generate, over the wire."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from adex_proto.v1 import generate_pb2 as pb
from adex_proto.v1.generate_pb2_grpc import GenerationStub
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.rpc import RpcFront

ANSWER = "Hello, Zürich 🙂! The end."


class Wire:
    """A running gRPC front, a channel to it, and the engine behind it."""

    def __init__(self, front: RpcFront, channel: grpc.aio.Channel, serving: Serving) -> None:
        self.front = front
        self.channel = channel
        self.stub: Any = GenerationStub(channel)  # type: ignore[no-untyped-call]
        self.engine: Any = serving.engine
        self.meters: Any = serving.meters


@pytest.fixture
async def wire(serving_of: Callable[..., Serving]) -> AsyncIterator[Wire]:
    serving = serving_of(requests_max=2)
    front = RpcFront(serving, "127.0.0.1:0")
    port = await front.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Wire(front, channel, serving)
    await front.stop(0)


def asking(**parameters: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(inputs="Hi", parameters=pb.GenerateParameters(**parameters))


async def test_generate_gives_text_and_details(wire: Wire) -> None:
    reply = await wire.stub.Generate(asking(details=True, top_n_tokens=2))
    assert reply.generated_text == ANSWER
    assert reply.details.finish_reason == pb.GENERATE_FINISH_REASON_EOS_TOKEN
    assert not reply.details.HasField("seed")
    assert len(reply.details.tokens) == reply.details.generated_tokens
    assert [other.id for other in reply.details.tokens[0].alternatives] == [0, 1]
    plain = await wire.stub.Generate(asking())
    assert not plain.HasField("details")


async def test_a_stream_has_one_event_for_each_token(wire: Wire) -> None:
    events = [event async for event in wire.stub.GenerateStream(asking(details=True))]
    assert [event.index for event in events] == list(range(1, len(events) + 1))
    assert "".join(e.token.text for e in events if not e.token.special) == ANSWER
    assert events[-1].generated_text == ANSWER
    assert events[-1].details.generated_tokens == len(events)
    assert not events[0].HasField("generated_text")


async def test_every_parameter_means_what_it_means_in_rest(wire: Wire) -> None:
    await wire.stub.Generate(
        asking(
            adapter_id="friendly",
            max_new_tokens=9,
            min_new_tokens=2,
            stop=["x", "y"],
            stop_token_ids=[3],
            ignore_eos_token=True,
            temperature=0.5,
            top_k=4,
            top_p=0.9,
            logit_bias={5: -1.0},
            seed=2**64 - 1,
        )
    )
    [request] = wire.engine.requests
    assert request.key.name == "/adapters/friendly"
    assert request.stops == ("x", "y")
    sampling = request.sampling
    assert (sampling.max_new_tokens, sampling.min_new_tokens) == (9, 2)
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.5, 4, 0.9)
    assert sampling.logit_bias == ((5, -1.0),)
    assert sampling.seed == 2**64 - 1
    assert sampling.ignore_eos


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (pb.TextGrammar(json_schema='{"type": "array"}'), ("json_schema", '{"type": "array"}')),
        (pb.TextGrammar(regex="a+"), ("regex", "a+")),
        (pb.TextGrammar(choice=pb.TextChoice(texts=["a", "b"])), ("choice", '["a", "b"]')),
        (pb.TextGrammar(lark='start: "a"'), ("lark", 'start: "a"')),
    ],
)
async def test_a_grammar_is_compiled_before_its_text_begins(
    wire: Wire, grammar: Any, expected: tuple[str, str]
) -> None:
    await wire.stub.Generate(asking(grammar=grammar))
    [request], [prepared] = wire.engine.requests, wire.engine.grammars
    assert request.sampling.grammar == prepared
    assert (prepared.kind.value, prepared.text) == expected


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [
        ({"grammar": pb.TextGrammar()}, grpc.StatusCode.INVALID_ARGUMENT, "validation"),
        (
            {"grammar": pb.TextGrammar(regex="[unmatchable]")},
            grpc.StatusCode.INVALID_ARGUMENT,
            "validation",
        ),
        ({"temperature": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, "validation"),
        ({"adapter_id": "missing"}, grpc.StatusCode.NOT_FOUND, "adapter_not_found"),
        ({"adapter_id": "busy"}, grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded"),
        ({"adapter_id": "dies"}, grpc.StatusCode.UNAVAILABLE, "worker_lost"),
        ({"adapter_id": "fails"}, grpc.StatusCode.ABORTED, "generation"),
        ({"adapter_id": "broken"}, grpc.StatusCode.INTERNAL, "internal"),
    ],
)
async def test_an_error_has_a_status_and_its_stable_code(
    wire: Wire, parameters: Any, status: grpc.StatusCode, code: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as whole:
        await wire.stub.Generate(asking(**parameters))
    with pytest.raises(grpc.aio.AioRpcError) as streamed:
        async for _ in wire.stub.GenerateStream(asking(**parameters)):
            pass
    for failed in (whole.value, streamed.value):
        assert failed.code() == status
        trailing = dict(failed.trailing_metadata() or ())
        assert trailing["adex-error-code"] == code
        if code == "overloaded":
            assert trailing["retry-after-ms"] == "2500"
        assert "a bug" not in (failed.details() or "")
    assert wire.meters.answered == [("grpc:Generate", code), ("grpc:GenerateStream", code)]


async def test_a_deadline_and_a_cancellation_end_the_sequence(wire: Wire) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await wire.stub.Generate(asking(adapter_id="hangs"), timeout=0.2)
    assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    call = wire.stub.GenerateStream(asking(adapter_id="hangs"))
    assert (await call.read()).index == 1
    call.cancel()
    for _ in range(200):
        if len(wire.engine.ended) == 2:
            break
        await asyncio.sleep(0.01)
    assert len(wire.engine.ended) == 2
    assert {code for _, code in wire.meters.answered} == {"cancelled"}


async def test_one_request_too_many_is_refused(wire: Wire) -> None:
    calls = [wire.stub.GenerateStream(asking(adapter_id="hangs")) for _ in range(2)]
    for call in calls:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await wire.stub.Generate(asking())
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


async def test_adapters_are_listed(wire: Wire) -> None:
    reply = await wire.stub.ListAdapters(pb.ListAdaptersRequest())
    cards = {adapter.name: adapter for adapter in reply.adapters}
    assert set(cards) == {"friendly", "tone"}
    assert (cards["tone"].tier, cards["tone"].rank) == ("device", 8)
    assert not cards["friendly"].HasField("bytes")


async def test_health_follows_readiness(wire: Wire) -> None:
    stub: Any = health_pb2_grpc.HealthStub(wire.channel)
    asked = health_pb2.HealthCheckRequest(service="adex.v1.Generation")
    kinds = health_pb2.HealthCheckResponse
    assert (await stub.Check(asked)).status == kinds.NOT_SERVING
    await wire.front.set_serving(True)
    assert (await stub.Check(asked)).status == kinds.SERVING


async def test_reflection_names_the_service(wire: Wire) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(wire.channel)
    call = stub.ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    reply = await call.read()
    names = {service.name for service in reply.list_services_response.service}
    assert "adex.v1.Generation" in names
    call.cancel()
