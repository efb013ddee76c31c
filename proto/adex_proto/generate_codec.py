"""The public gRPC messages from and to the JSON values of the REST routes; nobody else knows both.

A request becomes the body that POST /generate would carry, so that one schema checks both fronts.
Raises nothing: every well-formed message has a JSON form.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from adex_proto.v1 import generate_pb2 as pb

# The service by its full name, as reflection and health name it.
SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Generation"].full_name

_REPEATED = frozenset({"stop", "stop_token_ids"})
_FINISH_REASONS = {
    "length": pb.GENERATE_FINISH_REASON_LENGTH,
    "eos_token": pb.GENERATE_FINISH_REASON_EOS_TOKEN,
    "stop_sequence": pb.GENERATE_FINISH_REASON_STOP_SEQUENCE,
}


def body_of_request(message: pb.GenerateRequest) -> dict[str, object]:
    """The JSON body that asks for the same; unset fields are left out."""
    parameters: dict[str, object] = {}
    for descriptor, value in message.parameters.ListFields():
        name = descriptor.name
        if name == "logit_bias":
            biases = cast("Mapping[int, float]", value)
            parameters[name] = {str(token_id): bias for token_id, bias in biases.items()}
        elif name == "grammar":
            parameters[name] = _grammar(cast("pb.TextGrammar", value))
        elif name in _REPEATED:
            parameters[name] = list(cast("Sequence[object]", value))
        else:
            parameters[name] = value
    return {"inputs": message.inputs, "parameters": parameters}


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
    """The message of the adapters' cards of /v1/models."""
    return pb.ListAdaptersReply(
        adapters=[
            pb.ListedAdapter(
                name=card["id"],
                source=card["source"],
                root=card["root"],
                parent=card["parent"],
                tier=card["tier"],
                bytes=card["bytes"],
                rank=card["rank"],
            )
            for card in cards
        ]
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
