"""An error keeps its meaning on the way from the scheduler's fronts into the caller's hands."""

import json

import pytest

from adex import errors as client
from adex.wire import error_of_reply
from adex_proto import errors as proto
from adex_scheduler.front.statuses import Family, body_of, headers_of, status_of

CODES = sorted(proto.ERRORS_BY_CODE)
# Codes the client makes itself, or reads from answers that are no AdexError of the server's.
CLIENT_ONLY = {
    "not_ready",
    "reply_malformed",
    "request_too_large",
    "route_not_found",
    "stream_broken",
    "timeout",
    "unauthorized",
    "unreachable",
}


def fault_of(error: type[Exception]) -> str:
    """Whose fault the class says it is."""
    sides = {"CallerError", "CapacityError", "ServerError", "TransportError"}
    (side,) = sides & {ancestor.__name__ for ancestor in error.__mro__}
    return side


def test_the_client_knows_every_code_of_the_server_and_blames_the_same_side() -> None:
    for code in CODES:
        theirs = proto.ERRORS_BY_CODE[code]
        ours = client.ERRORS_BY_CODE.get(code)
        assert ours is not None, f"add a class for {code!r} to client/adex/errors.py"
        assert ours.__name__ == theirs.__name__
        assert fault_of(ours) == fault_of(theirs), f"{code} changes sides on the way"


def test_the_client_invents_no_code_the_server_could_mean_otherwise() -> None:
    unknown = set(client.ERRORS_BY_CODE) - set(CODES) - CLIENT_ONLY
    assert not unknown, f"no server sends these; add them to adex_proto.errors too: {unknown}"


# vLLM's shape carries no code of ours; our client asks no route that answers in it.
@pytest.mark.parametrize("family", [Family.TGI, Family.OPENAI])
@pytest.mark.parametrize("code", CODES)
def test_an_error_arrives_as_the_class_it_left_as(code: str, family: Family) -> None:
    sent = proto.error_of(
        code, "rank 128 exceeds 64", field="adapter_id", remedy="Start with --rank-max 128"
    )
    body = json.dumps(body_of(sent, family)).encode()
    headers = {"content-type": "application/json", **headers_of(sent, family)}
    headers = {name.lower(): value for name, value in headers.items()}

    received = error_of_reply(status_of(sent, family), headers, body)

    assert type(received).__name__ == type(sent).__name__
    assert received.code == code
    assert received.field == "adapter_id"
    assert "rank 128 exceeds 64" in str(received)
    assert str(received).count("--rank-max 128") == 1, "the remedy is told, and told once"
