"""A request's trace, as a collector receives it over gRPC: its tree, its facts, and no secrets."""

import asyncio
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1 import (
    trace_service_pb2,
    trace_service_pb2_grpc,
)

from adex_proto.adapter import AdapterKey, AdapterVersion, credential_tenant
from adex_proto.errors import ValidationError
from adex_proto.v1 import generate_pb2, generate_pb2_grpc
from adex_scheduler.front.account import OPERATIONS, operation_of
from adex_scheduler.tracing import Tracing

Doors = Callable[..., AbstractAsyncContextManager[Any]]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
DIGEST = "d1" * 32
SECRETS = (b"Hello, who", b"acme/secret", b"hf_token", b"secret-project")


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    """Takes what is exported."""

    requests: list[Any] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the wire's name
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def spans(self) -> dict[str, Any]:
        """Every span by its name; names are told apart where they occur once."""
        return {span.name: span for span in self.every_span}

    @property
    def every_span(self) -> list[Any]:
        resources = [one for request in self.requests for one in request.resource_spans]
        return [span for one in resources for scope in one.scope_spans for span in scope.spans]

    @property
    def bytes(self) -> bytes:
        return b"".join(request.SerializeToString() for request in self.requests)

    def tree(self) -> dict[str, str]:
        """Each span's name and its parent's, "" for one whose parent is not here."""
        names = {span.span_id: span.name for span in self.every_span}
        return {span.name: names.get(span.parent_span_id, "") for span in self.every_span}


def facts(span: Any) -> dict[str, Any]:
    def value(said: Any) -> Any:
        kind = said.WhichOneof("value")
        if kind == "array_value":
            return [value(each) for each in said.array_value.values]
        return getattr(said, kind)

    return {attribute.key: value(attribute.value) for attribute in span.attributes}


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    taken = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taken, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield taken, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def tracing_to(endpoint: str) -> Tracing:
    return Tracing(endpoint, version="1.2.3", base_name="base")


async def posted(
    live: Doors, tracing: Tracing, path: str, body: object, headers: dict[str, str] | None = None
) -> httpx.Response:
    """One request through the REST door, and all its spans exported."""
    private = AdapterKey(credential_tenant("", "hf_token"), "hub", "acme/secret-project")
    try:
        async with live(traces=tracing) as doors:
            doors.worker.published[AdapterKey("", "hub", "org/tone")] = AdapterVersion(
                DIGEST, 300, 8, 4
            )
            doors.worker.published[private] = AdapterVersion("d2" * 32, 300, 8, 4)
            async with httpx.AsyncClient(base_url=doors.url, timeout=60) as client:
                return await client.post(path, json=body, headers=headers)
    finally:
        await asyncio.to_thread(tracing.close)


CHAT = {
    "model": "hf://org/tone",
    "messages": [{"role": "user", "content": "Hello, who are you?"}],
    "max_tokens": 5,
    "temperature": 0.5,
    "ignore_eos": True,
}


async def test_a_request_is_one_tree_below_its_callers_span(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    headers = {"traceparent": TRACEPARENT}
    answer = await posted(live, tracing_to(endpoint), "/v1/chat/completions", CHAT, headers)
    assert answer.status_code == 200
    root = "chat hf://org/tone"
    assert taken.tree() == {
        root: "",
        "validation": root,
        "queue": root,
        "fetch": "queue",
        "stage": "queue",
        "page_in": "queue",
        "prefill": root,
        "decode": root,
    }
    assert {span.trace_id.hex() for span in taken.every_span} == {TRACE}
    assert taken.spans[root].parent_span_id.hex() == PARENT
    assert taken.spans[root].kind == taken.spans[root].SPAN_KIND_SERVER
    [resource] = {
        one.resource.SerializeToString() for r in taken.requests for one in r.resource_spans
    }
    assert b"adex-scheduler" in resource


async def test_spans_lie_within_their_parents_and_follow_each_other(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    await posted(live, tracing_to(endpoint), "/v1/chat/completions", CHAT)
    by_id = {span.span_id: span for span in taken.every_span}
    for span in taken.every_span:
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        if span.parent_span_id in by_id:
            # Times are seconds in floating point: they are equal to within a microsecond.
            parent = by_id[span.parent_span_id]
            assert parent.start_time_unix_nano <= span.start_time_unix_nano + 1000
            assert span.end_time_unix_nano <= parent.end_time_unix_nano + 1000
    order = ["validation", "fetch", "stage", "page_in", "prefill", "decode"]
    starts = [taken.spans[name].start_time_unix_nano for name in order]
    assert starts == sorted(starts)


async def test_what_is_told_follows_the_conventions(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    headers = {"x-request-id": "mine-1"}
    await posted(live, tracing_to(endpoint), "/v1/chat/completions", CHAT, headers)
    told = facts(taken.spans["chat hf://org/tone"])
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0
    assert told.pop("gen_ai.usage.input_tokens") > 5
    assert told == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "adex",
        "gen_ai.request.model": "hf://org/tone",
        "gen_ai.response.model": "hf://org/tone",
        "gen_ai.response.id": "mine-1",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.request.top_k": 0,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ["length"],
        "adex.adapter.start": "remote",
        "adex.adapter.digest": DIGEST[:12],
    }
    assert facts(taken.spans["fetch"])["adex.source"] == "hub"


async def test_no_prompt_no_credential_and_no_private_name_is_told(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    body = {
        "inputs": "Hello, who are you?",
        "parameters": {
            "adapter_id": "acme/secret-project",
            "adapter_source": "hub",
            "api_token": "hf_token",
            "max_new_tokens": 5,
        },
    }
    answer = await posted(live, tracing_to(endpoint), "/generate", body)
    assert answer.status_code == 200
    assert f"text_completion private-{'d2' * 6}" in taken.spans
    for secret in (*SECRETS, answer.json()["generated_text"].encode()):
        assert secret not in taken.bytes


async def test_a_private_name_asked_for_without_its_credential_is_not_told_either(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    parameters = {"adapter_id": "acme/secret-project", "adapter_source": "hub"}
    body = {"inputs": "Hello, who are you?", "parameters": parameters}
    answer = await posted(live, tracing_to(endpoint), "/generate", body)
    assert answer.json()["error_type"] == "adapter_not_found"
    root = taken.spans["text_completion unresolved"]
    assert facts(root)["error.type"] == "adapter_not_found"
    assert root.status.code == root.status.STATUS_CODE_ERROR
    assert taken.tree()["fetch"] == "queue"
    assert facts(taken.spans["fetch"])["adex.source"] == "hub"
    assert not {"prefill", "decode"} & set(taken.spans)
    for secret in SECRETS:
        assert secret not in taken.bytes


async def test_each_sequence_of_a_request_has_a_span_of_its_own(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    await posted(live, tracing_to(endpoint), "/v1/chat/completions", {**CHAT, "n": 2})
    sequences = [span for span in taken.every_span if span.name == "sequence"]
    decodes = [span for span in taken.every_span if span.name == "decode"]
    assert len(sequences) == 2
    assert {span.parent_span_id for span in decodes} == {span.span_id for span in sequences}
    assert facts(taken.spans["chat hf://org/tone"])["gen_ai.request.choice.count"] == 2


async def test_the_grpc_door_traces_the_same_request_the_same_way(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    tracing = tracing_to(endpoint)
    async with (
        live(traces=tracing) as doors,
        grpc.aio.insecure_channel(doors.rpc_address) as channel,
    ):
        stub = generate_pb2_grpc.GenerationStub(channel)
        request = generate_pb2.GenerateRequest(inputs="Hello, who are you?")
        names = (("traceparent", TRACEPARENT), ("x-request-id", "mine-2"))
        call = stub.Generate(request, metadata=names)
        await call
        assert dict(await call.initial_metadata())["x-request-id"] == "mine-2"
    await asyncio.to_thread(tracing.close)
    root = taken.spans["text_completion base"]
    assert root.trace_id.hex() == TRACE
    assert root.parent_span_id.hex() == PARENT
    told = facts(root)
    assert (told["rpc.system"], told["rpc.method"]) == ("grpc", "Generate")
    assert told["rpc.response.status_code"] == "OK"
    assert {"queue", "prefill", "decode"} < set(taken.spans)
    assert SECRETS[0] not in taken.bytes


async def test_a_caller_who_samples_nothing_is_heeded_and_probes_are_not_traced(
    live: Doors, collector: tuple[Collector, str]
) -> None:
    taken, endpoint = collector
    tracing = tracing_to(endpoint)
    async with live(traces=tracing) as doors, httpx.AsyncClient(base_url=doors.url) as client:
        await client.get("/health")
        await client.get("/metrics")
        headers = {"traceparent": TRACEPARENT[:-2] + "00"}
        await client.post("/generate", json={"inputs": "Hello"}, headers=headers)
    await asyncio.to_thread(tracing.close)
    assert taken.every_span == []


async def test_a_collector_that_is_not_there_harms_no_request(live: Doors) -> None:
    tracing = tracing_to("http://127.0.0.1:1")
    async with live(traces=tracing) as doors, httpx.AsyncClient(base_url=doors.url) as client:
        answer = await client.post("/generate", json={"inputs": "Hello"})
    assert answer.status_code == 200
    await asyncio.to_thread(tracing.close)


def test_without_the_package_the_flag_is_refused_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValidationError, match=r"pip install 'adex\[otel\]'"):
        tracing_to("http://127.0.0.1:4317")


def test_every_way_to_generate_has_a_kind_of_operation() -> None:
    methods = [m.name for m in generate_pb2.DESCRIPTOR.services_by_name["Generation"].methods]
    generating = [name for name in methods if name.startswith(("Generate", "Chat"))]
    missing = [name for name in generating if f"grpc:{name}" not in OPERATIONS]
    assert not missing, f"add to OPERATIONS in front/account.py: {missing}"
    assert operation_of("POST", "/v1/chat/completions") == "chat"
    assert operation_of("GET", "/") == ""
