"""What a caller may ask of the sampler: bounded, and never more than the wire carries."""

from typing import Any

import pytest

from adex_proto.codec import decode_to_worker, encode_to_worker
from adex_proto.errors import ValidationError
from adex_proto.plan import NewSequence, StepPlan
from adex_proto.sampling import COUNT_MAX, SEED_MAX, SamplingParams


@pytest.mark.parametrize("field", ["max_new_tokens", "top_k", "temperature", "min_p", "seed"])
@pytest.mark.parametrize("value", [2**64, 10**400, -(10**400), float("nan")])
def test_no_number_is_too_large_to_be_refused_by_name(field: str, value: float) -> None:
    members: dict[str, Any] = {"max_new_tokens": 1, field: value}
    with pytest.raises(ValidationError) as refusal:
        SamplingParams(**members)
    assert refusal.value.field == field
    assert len(str(refusal.value)) < 400


def test_the_largest_values_survive_the_wire() -> None:
    sampling = SamplingParams(
        max_new_tokens=COUNT_MAX,
        min_new_tokens=COUNT_MAX,
        temperature=100.0,
        top_k=COUNT_MAX,
        repetition_penalty=100.0,
        frequency_penalty=-2.0,
        logit_bias=((COUNT_MAX, -100.0),),
        seed=SEED_MAX,
        stop_token_ids=(COUNT_MAX,),
        logprobs=20,
    )
    plan = StepPlan(0, (NewSequence(1, (5,), 1, 0, sampling),), ())
    assert decode_to_worker(encode_to_worker(plan)) == plan
