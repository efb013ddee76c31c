"""Every dataclass of the wire survives the trip through bytes, and nothing else does."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adex_proto import codec
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import ERRORS_BY_CODE, AdexError, ProtocolViolation, error_of
from adex_proto.grammar import Grammar, GrammarKind
from adex_proto.outcome import (
    Evicted,
    Fetched,
    FetchFailed,
    Heartbeat,
    Held,
    Hello,
    Moved,
    MoveFailed,
    PromptScores,
    SampledToken,
    SampledTokens,
    SequenceFailure,
    StepOutcome,
    TokenScore,
    WorkerInfo,
)
from adex_proto.plan import Decodes, Evict, Fetch, NewSequence, PageIn, Span, Stage, StepPlan
from adex_proto.sampling import (
    COUNT_MAX,
    LOGIT_BIAS_MAX,
    SEED_MAX,
    TOP_LOGPROBS_MAX,
    SamplingParams,
)

INT32, INT64 = st.integers(0, 2**31 - 1), st.integers(0, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
FLOAT = st.floats(allow_nan=False)


def many(items: st.SearchStrategy[Any], most: int = 4) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(items, max_size=most).map(tuple)


def some(low: float, high: float, **options: bool) -> st.SearchStrategy[float]:
    return st.floats(low, high, **options)  # type: ignore[arg-type]


GRAMMARS = st.builds(
    Grammar,
    st.sampled_from(GrammarKind),
    st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20),
)


@st.composite
def samplings(draw: Callable[[st.SearchStrategy[Any]], Any]) -> SamplingParams:
    most = draw(st.integers(1, COUNT_MAX))
    grammar = draw(st.none() | GRAMMARS)
    return SamplingParams(
        max_new_tokens=most,
        min_new_tokens=draw(st.integers(0, most)),
        temperature=draw(some(0, 100)),
        top_k=draw(INT32),
        top_p=draw(some(0, 1, exclude_min=True)),
        min_p=draw(some(0, 1)),
        typical_p=draw(some(0, 1, exclude_min=True)),
        repetition_penalty=draw(some(0, 100, exclude_min=True)),
        frequency_penalty=draw(some(-2, 2)),
        presence_penalty=draw(some(-2, 2)),
        logit_bias=draw(many(st.tuples(INT32, some(-100, 100)))),
        seed=draw(st.integers(0, SEED_MAX)),
        stop_token_ids=draw(many(INT32)),
        ignore_eos=grammar is None and draw(st.booleans()),
        logprobs=draw(st.none() | st.integers(0, TOP_LOGPROBS_MAX)),
        grammar=grammar,
        prompt_logprobs=draw(st.none() | st.integers(0, TOP_LOGPROBS_MAX)),
    )


TIERS = st.sampled_from(Tier)
KEYS = st.builds(AdapterKey, TEXT, TEXT, TEXT, TEXT)
VERSIONS = st.builds(AdapterVersion, TEXT, INT64, INT32, INT32)
HELD = st.builds(Held, VERSIONS, TIERS)
SPANS = st.builds(Span, INT64, INT64, INT32, st.booleans(), many(INT64))
ARRIVED = st.builds(NewSequence, INT64, many(INT64), INT64, INT32, samplings())
PAGES = many(st.tuples(INT64, INT64)).map(lambda pairs: tuple(zip(*pairs, strict=True)) or ((), ()))
DECODES = st.builds(lambda numbers, pages: Decodes(numbers, *pages), many(INT64), PAGES)
PLANS = st.builds(StepPlan, INT64, many(ARRIVED), many(SPANS), many(INT64), DECODES)
DOWN = st.one_of(
    PLANS,
    st.builds(Fetch, KEYS),
    st.builds(Stage, TEXT),
    st.builds(PageIn, TEXT, INT32, INT64, INT64),
    st.builds(Evict, TEXT, TIERS),
)
ERRORS = st.builds(
    error_of,
    st.sampled_from(sorted(ERRORS_BY_CODE)),
    TEXT,
    field=st.none() | TEXT,
    remedy=st.none() | TEXT,
    retry_after_s=st.none() | FLOAT,
)
INFOS = st.builds(
    WorkerInfo,
    *(TEXT, TEXT, TEXT, TEXT, INT32, INT32, INT64, INT32, INT64, INT64),
    *(INT32, INT64, INT64, INT32, INT32, INT32, many(INT64)),
)
TOKENS = st.builds(SampledToken, INT64, INT64, st.none() | FLOAT, many(st.tuples(INT64, FLOAT)))
SCORES = st.builds(
    PromptScores, INT64, INT64, many(st.builds(TokenScore, FLOAT, many(st.tuples(INT64, FLOAT))))
)
OUTCOMES = st.builds(
    StepOutcome,
    INT64,
    st.lists(TOKENS, max_size=4, unique_by=lambda token: token.sequence).map(SampledTokens.of),
    many(st.builds(SequenceFailure, INT64, ERRORS)),
    some(0, 1e9),
    many(SCORES),
)
UP = st.one_of(
    st.builds(Hello, INFOS, many(HELD)),
    OUTCOMES,
    st.builds(Fetched, KEYS, VERSIONS),
    st.builds(FetchFailed, KEYS, ERRORS),
    st.builds(Moved, TEXT, TIERS),
    st.builds(MoveFailed, TEXT, TIERS, ERRORS),
    st.builds(Evicted, TEXT, TIERS),
    st.builds(Heartbeat, st.integers(-1, 2**63 - 1)),
)


def plain(value: Any) -> Any:
    """`value` with every error replaced by what it says, since exceptions compare by identity."""
    if isinstance(value, AdexError):
        return (type(value), value.message, value.field, value.remedy, value.retry_after_s)
    if isinstance(value, tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, StepOutcome | SequenceFailure | FetchFailed | MoveFailed):
        return (type(value), *(plain(getattr(value, name)) for name in value.__slots__))
    return value


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(DOWN)
def test_what_goes_down_arrives_as_it_was(down: codec.Down) -> None:
    wire = codec.encode_to_worker(down).SerializeToString()
    assert codec.decode_to_worker(codec.ToWorkerMessage.FromString(wire)) == down


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(UP)
def test_what_goes_up_arrives_as_it_was(up: codec.Up) -> None:
    wire = codec.encode_from_worker(up).SerializeToString()
    assert plain(codec.decode_from_worker(codec.FromWorkerMessage.FromString(wire))) == plain(up)


@given(st.binary(max_size=200))
def test_bytes_of_a_stranger_are_refused_or_read_but_never_crash(wire: bytes) -> None:
    try:
        message = codec.ToWorkerMessage.FromString(wire)
    except DecodeError:  # which gRPC answers for us
        return
    with suppress(ProtocolViolation):
        codec.decode_to_worker(message)


def test_a_message_without_a_kind_is_a_protocol_violation() -> None:
    with pytest.raises(ProtocolViolation, match="no kind"):
        codec.decode_to_worker(codec.ToWorkerMessage())
    with pytest.raises(ProtocolViolation, match="no kind"):
        codec.decode_from_worker(codec.FromWorkerMessage())


def test_a_tier_nobody_knows_is_a_protocol_violation() -> None:
    message = codec.ToWorkerMessage.FromString(b"\x2a\x02\x10\x09")  # evict { tier: 9 }
    with pytest.raises(ProtocolViolation, match="tier 9"):
        codec.decode_to_worker(message)


def test_sampling_the_dataclass_refuses_is_a_protocol_violation() -> None:
    plan = StepPlan(0, (NewSequence(1, (5,), 1, 0, SamplingParams(max_new_tokens=1)),), ())
    message = codec.encode_to_worker(plan)
    message.plan.arrived[0].sampling.top_p = 2.0
    with pytest.raises(ProtocolViolation, match="top_p"):
        codec.decode_to_worker(message)


def test_columns_of_unequal_lengths_are_a_protocol_violation() -> None:
    plan = codec.encode_to_worker(StepPlan(0, (), (), (), Decodes((1, 2), (1,), (7,))))
    plan.plan.decodes.growing.append(2)
    with pytest.raises(ProtocolViolation, match="2 growing sequences come with 1 new blocks"):
        codec.decode_to_worker(plan)
    outcome = codec.encode_from_worker(StepOutcome(0, SampledTokens((1, 2), (5, 6))))
    outcome.outcome.sampled.token_ids.pop()
    with pytest.raises(ProtocolViolation, match="2 sequences gained 1 tokens"):
        codec.decode_from_worker(outcome)


@pytest.mark.parametrize("seconds", [-1.0, math.inf, -math.inf, math.nan])
def test_a_step_that_took_no_time_there_is_is_a_protocol_violation(seconds: float) -> None:
    with pytest.raises(ProtocolViolation, match=r"step 7 took .* s, which is no time"):
        codec.decode_from_worker(codec.encode_from_worker(StepOutcome(7, seconds=seconds)))


def test_as_many_logit_biases_as_allowed_pass() -> None:
    bias = tuple((token, 1.0) for token in range(LOGIT_BIAS_MAX))
    sampling = SamplingParams(max_new_tokens=1, logit_bias=bias)
    plan = StepPlan(0, (NewSequence(1, (5,), 1, 0, sampling),), ())
    assert codec.decode_to_worker(codec.encode_to_worker(plan)) == plan


def test_an_error_of_a_newer_peer_keeps_its_words() -> None:
    message = codec.encode_from_worker(MoveFailed("d", Tier.HOST, ProtocolViolation("why")))
    message.move_failed.error.code = "from_the_future"
    event = codec.decode_from_worker(message)
    assert isinstance(event, MoveFailed)
    assert event.error.message == "why"
