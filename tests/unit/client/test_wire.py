"""Requests, errors and retries as values: no server takes part."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex import wire
from adex.errors import (
    AdapterNotFound,
    AdexError,
    CallerError,
    NotReady,
    Overloaded,
    ReplyMalformed,
    RequestTimeout,
    RouteNotFound,
    ServerError,
    ServerUnreachable,
    StepFailed,
    StreamBroken,
    ValidationError,
)
from adex.types import ChatSampling, Sampling


def generate_body(sampling: Sampling, **given: Any) -> Any:
    arguments: dict[str, Any] = {
        "stream": False,
        "adapter_id": None,
        "adapter_source": None,
        "api_token": None,
        "details": True,
    }
    request = wire.generate_request("Hi", sampling=sampling, **(arguments | given))
    assert request.body is not None
    return json.loads(request.body)


def chat_body(sampling: ChatSampling, **given: Any) -> Any:
    arguments: dict[str, Any] = {
        "stream": False,
        "adapter_id": None,
        "adapter_source": None,
        "api_token": None,
    }
    messages: list[Any] = [{"role": "user", "content": "Hi"}]
    request = wire.chat_request(messages, sampling=sampling, **(arguments | given))
    assert request.body is not None
    return json.loads(request.body)


class Date:
    """As pydantic's models are: the class knows its schema."""

    @classmethod
    def model_json_schema(cls) -> Mapping[str, object]:
        return {"type": "object", "title": "Date"}


def test_what_a_text_must_belong_to_goes_as_it_is_and_a_model_as_its_schema() -> None:
    given: Any = {"type": "json_object"}
    assert generate_body({"grammar": given})["parameters"]["grammar"] == given
    named = {"name": "Date", "schema": {"type": "object", "title": "Date"}}
    expected = {"type": "json_schema", "json_schema": named}
    assert chat_body({"response_format": Date})["response_format"] == expected
    assert generate_body({"response_format": Date})["parameters"]["response_format"] == expected


def error(status: int, value: object, headers: Mapping[str, str] | None = None) -> AdexError:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return wire.error_of_reply(status, headers or {}, body)


def test_a_parameter_that_was_not_given_is_not_sent() -> None:
    assert generate_body({"top_k": None, "seed": 3}) == {
        "inputs": "Hi",
        "parameters": {"seed": 3, "details": True},
    }


def test_generate_spells_stop_sequences_as_tgi_does() -> None:
    assert generate_body({"stop_sequences": ["\n"]})["parameters"]["stop"] == ["\n"]


def test_the_adapter_and_its_credential_travel_in_the_parameters() -> None:
    body = generate_body({}, adapter_id="tone", adapter_source="hub", api_token="secret")
    sent = {"adapter_id": "tone", "adapter_source": "hub", "api_token": "secret"}
    assert body["parameters"] == sent | {"details": True}


def test_a_printed_request_shows_no_credential() -> None:
    request = wire.generate_request(
        "Hi",
        stream=False,
        adapter_id="tone",
        adapter_source=None,
        api_token="secret",
        details=False,
        sampling={},
    )
    assert "secret" not in repr(request)


def test_a_chat_spells_the_parameters_as_openai_does() -> None:
    body = chat_body({"max_new_tokens": 9, "stop_sequences": ["."], "top_n_tokens": 2})
    assert (body["max_tokens"], body["stop"]) == (9, ["."])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


def test_the_adapter_of_a_chat_is_its_model() -> None:
    assert chat_body({}, adapter_id="tone")["model"] == "tone"


def test_a_streamed_chat_asks_for_its_usage() -> None:
    assert chat_body({}, stream=True)["stream_options"] == {"include_usage": True}


def test_token_ids_of_a_logit_bias_become_json_keys() -> None:
    assert generate_body({"logit_bias": {7: -1.5}})["parameters"]["logit_bias"] == {"7": -1.5}


def test_a_misspelt_parameter_is_refused_with_the_right_name() -> None:
    wrong: Any = {"temprature": 1.0}
    with pytest.raises(TypeError, match="did you mean 'temperature'"):
        generate_body(wrong)


def test_a_name_of_another_client_is_refused_with_ours() -> None:
    wrong: Any = {"max_tokens": 3}
    with pytest.raises(TypeError, match="did you mean 'max_new_tokens'"):
        generate_body(wrong)


def test_a_number_that_json_cannot_carry_is_refused_before_it_is_sent() -> None:
    with pytest.raises(ValidationError, match="JSON"):
        generate_body({"temperature": float("nan")})


def test_an_error_is_known_by_its_type_before_its_status() -> None:
    found = error(424, {"error": "no such adapter", "error_type": "adapter_not_found"})
    assert type(found) is AdapterNotFound
    assert (found.message, found.status) == ("no such adapter", 424)


def test_an_openai_error_is_known_by_its_code() -> None:
    inner = {"message": "no such adapter", "code": "adapter_not_found", "param": "model"}
    found = error(404, {"error": inner | {"type": "invalid_request_error"}})
    assert type(found) is AdapterNotFound
    assert (found.message, found.field) == ("no such adapter", "model")


def test_the_field_and_the_remedy_arrive_with_the_error() -> None:
    told = {"error": "bad", "error_type": "validation", "field": "top_p", "remedy": "Send 1"}
    found = error(422, told)
    assert (found.field, found.remedy, str(found)) == ("top_p", "Send 1", "bad. Send 1")


def test_a_remedy_inside_the_message_is_not_said_twice() -> None:
    told = {"error": "bad. Send 1", "error_type": "validation", "remedy": "Send 1"}
    assert str(error(422, told)) == "bad. Send 1"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ValidationError),
        (404, RouteNotFound),
        (409, CallerError),
        (422, ValidationError),
        (429, Overloaded),
        (500, ServerError),
        (502, ServerError),
        (503, NotReady),
        (504, RequestTimeout),
    ],
)
def test_an_unknown_type_is_known_by_its_status(status: int, kind: type[AdexError]) -> None:
    assert type(error(status, {"error": "x", "error_type": "of the future"})) is kind
    assert type(error(status, b"<html>plain</html>")) is kind


def test_the_plain_text_of_a_proxy_is_told_in_one_short_line() -> None:
    found = error(502, b"<h1>Bad\nGateway</h1>" + b"x" * 10_000)
    assert found.message.startswith("the server answered 502: <h1>Bad Gateway</h1>")
    assert len(found.message) < 400


def test_the_wait_and_the_name_of_the_request_come_from_the_headers() -> None:
    told = {"error": "full", "error_type": "overloaded"}
    found = error(429, told, {"retry-after": "3", "x-request-id": "r-1"})
    assert (found.retry_after_s, found.request_id) == (3.0, "r-1")
    assert error(429, told, {"retry-after-ms": "250", "retry-after": "3"}).retry_after_s == 0.25
    for nonsense in ("Wed, 21 Oct 2026 07:28:00 GMT", "-1", "nan", "inf"):
        assert error(429, told, {"retry-after": nonsense}).retry_after_s is None


@given(st.binary(max_size=200), st.integers(400, 599))
def test_whatever_an_error_holds_it_is_one_of_ours(body: bytes, status: int) -> None:
    assert isinstance(wire.error_of_reply(status, {}, body), AdexError)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@given(JSON)
def test_whatever_json_an_error_field_holds_it_is_one_of_ours(value: object) -> None:
    told = json.dumps({"error": value, "error_type": value, "retry_after_s": value}).encode()
    assert isinstance(wire.error_of_reply(500, {}, told), AdexError)


@given(JSON)
def test_whatever_json_an_event_holds_it_is_read_or_refused_by_type(value: object) -> None:
    told = b"data: " + json.dumps({"token": value, "choices": value}).encode() + b"\n\n"
    for stream in (wire.generate_stream(), wire.chat_stream()):
        with contextlib.suppress(ReplyMalformed):
            list(stream.feed(told))


def wait_s(error: AdexError, attempt: int = 1, chance: float = 0.0) -> float | None:
    return wire.retry_wait_s(error, attempt=attempt, retries_max=2, chance=chance)


def test_a_refusal_waits_as_long_as_the_server_asks() -> None:
    assert wait_s(Overloaded("full", status=429, retry_after_s=7.0)) == 7.0


def test_a_refusal_without_a_wait_doubles_and_stops() -> None:
    full = Overloaded("full", status=429)
    assert [wait_s(full, attempt) for attempt in (1, 2, 3)] == [0.5, 1.0, None]


def test_a_wait_beyond_patience_is_the_callers_to_decide() -> None:
    assert wait_s(Overloaded("full", status=429, retry_after_s=3600.0)) is None


def test_callers_refused_together_do_not_return_together() -> None:
    full = NotReady("draining", status=503)
    assert wait_s(full, chance=0.0) != wait_s(full, chance=0.9)


def test_a_server_that_is_not_there_yet_is_asked_again() -> None:
    assert wait_s(ServerUnreachable("refused")) == 0.5


@pytest.mark.parametrize(
    "final",
    [
        ValidationError("bad", status=422),
        StepFailed("nan", status=500),
        RequestTimeout("slow"),
        StreamBroken("cut"),
        Overloaded("inside a stream"),
    ],
)
def test_nothing_else_is_asked_again(final: AdexError) -> None:
    assert wait_s(final) is None


TOKEN = {"id": 5, "text": "x", "logprob": -0.5, "special": False, "skipped": False}


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def test_the_tokens_before_an_error_are_given_before_it_is_raised() -> None:
    told = {"error": "the step failed", "error_type": "generation"}
    stream = wire.generate_stream().feed(event({"index": 1, "token": TOKEN}) + event(told))
    assert next(stream).token.text == "x"
    with pytest.raises(StepFailed, match="the step failed"):
        next(stream)


def test_a_stream_that_ends_before_its_last_token_is_broken() -> None:
    stream = wire.generate_stream()
    list(stream.feed(event({"index": 1, "token": TOKEN})))
    with pytest.raises(StreamBroken, match="after 1 event"):
        stream.close()


def test_a_stream_that_gave_the_whole_text_is_complete() -> None:
    stream = wire.generate_stream()
    (last,) = stream.feed(event({"index": 1, "token": TOKEN, "generated_text": "x"}))
    stream.close()
    assert last.generated_text == "x"


def test_lorax_events_without_an_index_are_counted() -> None:
    stream = wire.generate_stream()
    events = list(stream.feed(event({"token": TOKEN}) + event({"token": TOKEN})))
    assert [found.index for found in events] == [1, 2]


def test_a_field_of_the_wrong_kind_is_named() -> None:
    wrong = event({"index": 1, "token": TOKEN | {"id": "five"}})
    with pytest.raises(ReplyMalformed, match=r"`event\.token\.id` must be a whole number"):
        list(wire.generate_stream().feed(wrong))
