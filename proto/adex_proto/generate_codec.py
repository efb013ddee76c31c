"""The public gRPC messages from and to the JSON values of the REST routes; nobody else knows both.

A request becomes the body that POST /generate would carry, so that one schema checks both fronts.
Raises nothing: every well-formed message has a JSON form.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from adex_proto.errors import AdexError
from adex_proto.v1 import generate_pb2 as pb

# The services by their full names, as reflection and health name them.
SERVICE_NAMES: tuple[str, ...] = tuple(
    pb.DESCRIPTOR.services_by_name[name].full_name for name in ("Generation", "Adapters")
)

ERROR_DOMAIN = "adex"
_REPEATED = frozenset({"stop", "stop_token_ids"})
_CARD = tuple(name for name in pb.ListedAdapter.DESCRIPTOR.fields_by_name if name != "name")
_FINISH_REASONS = {
    "length": pb.GENERATE_FINISH_REASON_LENGTH,
    "eos_token": pb.GENERATE_FINISH_REASON_EOS_TOKEN,
    "stop_sequence": pb.GENERATE_FINISH_REASON_STOP_SEQUENCE,
}


def body_of_request(message: pb.GenerateRequest) -> dict[str, object]:
    """The JSON body that asks for the same; unset fields are left out."""
    return {"inputs": message.inputs, "parameters": _given(message.parameters)}


def body_of_chat(message: pb.ChatRequest) -> dict[str, object]:
    """The JSON body of /v1/chat/completions that asks for the same."""
    said = [{"role": one.role, "content": one.content} for one in message.messages]
    return {**_given(message), "messages": said}


def body_of_control(message: pb.AdapterRequest) -> dict[str, object]:
    """The JSON body of a route under /v1/adapters that asks for the same."""
    return _given(message)


def body_of_tokenize(message: pb.TokenizeRequest) -> dict[str, object]:
    """The JSON body of /tokenize that asks for the same."""
    return {"inputs": message.inputs, **_given(message)}


def _given(message: Message) -> dict[str, object]:
    """The fields that are set, by name, as JSON has them."""
    fields: dict[str, object] = {}
    for descriptor, value in message.ListFields():
        name = descriptor.name
        if name == "logit_bias":
            biases = cast("Mapping[int, float]", value)
            fields[name] = {str(token_id): bias for token_id, bias in biases.items()}
        elif name == "grammar":
            fields[name] = _grammar(cast("pb.TextGrammar", value))
        elif name in _REPEATED:
            fields[name] = list(cast("Sequence[object]", value))
        else:
            fields[name] = value
    return fields


def _grammar(grammar: pb.TextGrammar) -> dict[str, object]:
    """As the field `grammar` of /generate writes it."""
    kind = grammar.WhichOneof("kind")
    if kind == "choice":
        return {"type": kind, "value": list(grammar.choice.texts)}
    return {"type": kind, "value": None if kind is None else getattr(grammar, kind)}


def reply_message(reply: Mapping[str, Any]) -> pb.GenerateReply:
    """The message of a reply of /generate."""
    details = reply.get("details")
    return pb.GenerateReply(
        generated_text=reply["generated_text"],
        details=None if details is None else _details(details),
    )


def event_message(event: Mapping[str, Any]) -> pb.GenerateEvent:
    """The message of an event of /generate_stream."""
    details = event.get("details")
    return pb.GenerateEvent(
        index=event["index"],
        token=_token(event["token"]),
        generated_text=event.get("generated_text"),
        details=None if details is None else _details(details),
    )


def adapters_message(cards: Sequence[Mapping[str, Any]]) -> pb.ListAdaptersReply:
    """The message of the adapters of /v1/adapters."""
    return pb.ListAdaptersReply(adapters=[_adapter(card) for card in cards])


def adapter_event_message(event: Mapping[str, Any]) -> pb.AdapterEvent:
    """The message of an event of a route under /v1/adapters."""
    adapter = event["adapter"]
    return pb.AdapterEvent(
        name=event["id"],
        tier=event["tier"],
        digest=event["digest"],
        bytes=event["bytes"],
        done=event["done"],
        adapter=None if adapter is None else _adapter(adapter),
    )


def chat_event_message(event: Mapping[str, Any]) -> pb.ChatEvent:
    """The message of one piece of an answer."""
    usage = event["usage"]
    return pb.ChatEvent(
        content=event["content"],
        finish_reason=event["finish_reason"],
        usage=None if usage is None else pb.ChatUsage(**usage),
    )


def tokens_message(tokens: Sequence[Mapping[str, Any]]) -> pb.TokenizeReply:
    """The message of a reply of /tokenize."""
    return pb.TokenizeReply(tokens=[pb.TextToken(**token) for token in tokens])


def model_message(info: Mapping[str, Any]) -> pb.ModelInfoReply:
    """The message of a reply of /info."""
    return pb.ModelInfoReply(
        model_id=info["model_id"],
        version=info["version"],
        dtype=info["model_dtype"],
        device_type=info["model_device_type"],
        architecture=info["architecture"],
        max_input_tokens=info["max_input_tokens"],
        max_total_tokens=info["max_total_tokens"],
        max_rank=info["max_rank"],
        max_adapters_resident=info["max_adapters_resident"],
    )


def status_message(error: AdexError, grpc_code: int) -> bytes:
    """A google.rpc.Status with what is known of the error, as its trailer carries it."""
    status = status_pb2.Status(code=grpc_code, message=str(error))
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.code, domain=ERROR_DOMAIN)]
    if error.field is not None:
        wrong = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=str(error)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[wrong]))
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(retry)
    for detail in details:
        status.details.add().Pack(detail)
    told: bytes = status.SerializeToString()
    return told


def _adapter(card: Mapping[str, Any]) -> pb.ListedAdapter:
    return pb.ListedAdapter(
        name=card["id"], **{name: card[name] for name in _CARD if card[name] is not None}
    )


def _details(details: Mapping[str, Any]) -> pb.GenerateDetails:
    return pb.GenerateDetails(
        finish_reason=_FINISH_REASONS[details["finish_reason"]],
        prompt_tokens=details["prompt_tokens"],
        generated_tokens=details["generated_tokens"],
        seed=details["seed"],
        tokens=[_token(token) for token in details.get("tokens", ())],
    )


def _token(token: Mapping[str, Any]) -> pb.GeneratedToken:
    return pb.GeneratedToken(
        id=token["id"],
        text=token["text"],
        logprob=token["logprob"],
        special=token["special"],
        alternatives=[
            pb.TokenAlternative(id=other["id"], text=other["text"], logprob=other["logprob"])
            for other in token.get("alternative_tokens", ())
        ],
    )
