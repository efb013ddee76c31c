"""Outcomes that are wrong fail the sequences they are wrong about, and nobody else."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.errors import StepFailed
from adex_proto.outcome import SampledToken, SampledTokens, SequenceFailure, StepOutcome
from adex_proto.sampling import SamplingParams
from adex_scheduler.core.events import Cancelled, StopFound
from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk

UNKNOWN = 9999
WRONGS = ("lacks one", "has one twice", "has another's", "fails one", "fails and has one")
PROMPTS = st.lists(st.integers(1, 3), min_size=1, max_size=17)
SAMPLINGS = st.builds(
    SamplingParams,
    max_new_tokens=st.sampled_from((1, 2, 5, 20)),
    ignore_eos=st.booleans(),
    prompt_logprobs=st.sampled_from((None, None, None, 0)),
)
DEEDS = st.sampled_from(("arrive", "step", "step", "step", "step", "leave", "stop", "wrong"))


def wronged(outcome: StepOutcome, what: str, other: int, pick: int) -> tuple[StepOutcome, int]:
    """The outcome with something wrong, and about whom."""
    rows = list(outcome.tokens)
    if what == "has another's" or not rows:
        rows.append(SampledToken(other, 3))
        return replace(outcome, tokens=SampledTokens.of(rows)), other
    index = pick % len(rows)
    about = rows[index].sequence
    failures = outcome.failures
    if what in ("lacks one", "fails one"):
        del rows[index]
    elif what == "has one twice":
        rows.insert(pick % 3, SampledToken(about, 3))
    if what in ("fails one", "fails and has one"):
        failures = (*failures, SequenceFailure(about, StepFailed("broken")))
    return replace(outcome, tokens=SampledTokens.of(rows), failures=failures), about


@settings(max_examples=100)
@given(
    st.data(),
    st.sampled_from((12, 20)),
    st.sampled_from((8, 16, 64)),
    st.integers(1, 3),
    st.booleans(),
)
def test_whoever_a_wrong_outcome_is_not_about_gets_what_it_would_have_got(
    data: st.DataObject, pages: int, step_tokens: int, plans: int, share: bool
) -> None:
    limits = Limits(plans_in_flight_max=plans, prefix_cache=share)
    # One token in five is the end.
    desk = Desk(
        limits, pages=pages, step_tokens_max=step_tokens, step_sequences_max=8, vocabulary=5
    )
    adapters = (None, desk.publish("a", 100))
    digests: dict[int, str] = {}
    about: set[int] = set()
    gone: dict[int, int] = {}
    for deed in data.draw(st.lists(DEEDS, min_size=10, max_size=60)):
        pick = data.draw(st.integers(0, 20))
        if deed == "arrive" or not digests:
            adapter = adapters[pick % 2]
            prompt, sampling = data.draw(PROMPTS), data.draw(SAMPLINGS)
            digests[desk.arrive(adapter, prompt, sampling=sampling)] = "digest-a" if adapter else ""
            desk.settle_commands()
        elif deed in ("leave", "stop"):
            number = sorted(digests)[pick % len(digests)]
            gone.setdefault(number, len(desk.tokens[number]))
            desk.tell(Cancelled(number) if deed == "leave" else StopFound(number))
        elif desk.worker.plans:
            outcome = desk.worker.run_plan()
            if deed == "wrong":
                other = (UNKNOWN, *sorted(digests))[pick % (len(digests) + 1)]
                what = data.draw(st.sampled_from(WRONGS))
                outcome, number = wronged(outcome, what, other, pick)
                about.add(number)
            desk.tell(outcome)
    desk.settle()
    assert not desk.core.sequences
    assert not desk.blamed
    assert desk.errors.keys() <= about
    for number in digests.keys() - desk.errors.keys() - gone.keys():
        assert number in desk.finish
        assert desk.tokens[number] == desk.expected(number, digests[number])
    for number, shown in gone.items():
        assert len(desk.tokens[number]) == shown, "a token for somebody who had left"
    # What is counted of those who run counts nobody any more.
    assert not desk.core.batch.ends
    assert desk.core.statistics().pages_kv == 0
