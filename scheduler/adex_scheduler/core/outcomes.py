"""What one step's outcome means for its sequences: tokens known, blocks computed, ends reached."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from adex_proto.errors import AdexError, ProtocolViolation
from adex_proto.outcome import SampledToken, StepOutcome
from adex_proto.sampling import FinishReason
from adex_scheduler.core.batch import Flight
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.sequence import Sequence, Stage


@dataclass(slots=True)
class Result:
    """Tokens that somebody still waits for, and the sequences that end with this step."""

    tokens: tuple[SampledToken, ...]
    finished: list[tuple[Sequence, FinishReason]]
    failed: list[tuple[Sequence, AdexError]]


def apply_outcome(
    flight: Flight,
    outcome: StepOutcome,
    sequences: Mapping[int, Sequence],
    *,
    blocks: Blocks,
    eos: frozenset[int],
) -> Result:
    """Bring the sequences up to date. Ending them is the caller's part.

    Sequences that ended while the step was under way keep nothing of it; preempted ones do.
    """
    failed = _failures(flight, outcome, sequences)
    doomed = {sequence.number for sequence, _ in failed}
    ending, find = Stage.ENDING, sequences.get
    for sequence, computed in flight.chunks:
        if sequence.stage is not ending and sequence.number not in doomed:
            sequence.computed = computed
            blocks.enter(sequence)
    finished: list[tuple[Sequence, FinishReason]] = []
    dropped: set[int] = set()
    for token in outcome.tokens:
        number, token_id = token.sequence, token.token_id
        known = find(number)
        if known is None or known.stage is ending or number in doomed:
            dropped.add(number)
            continue
        tokens = known.tokens
        # The step computed every token that was known, and yielded the one after them.
        known.computed = computed = len(tokens)
        if computed >= known.share_at:
            blocks.enter(known)
        tokens.append(token_id)
        known.payer.served += known.output_charge
        if token_id in known.ends or computed + 1 == known.length_max:
            reason = known.reason_to_end(eos)
            assert reason is not None
            finished.append((known, reason))
    kept = outcome.tokens
    if dropped:
        kept = tuple([token for token in kept if token.sequence not in dropped])
    return Result(kept, finished, failed)


def _failures(
    flight: Flight, outcome: StepOutcome, sequences: Mapping[int, Sequence]
) -> list[tuple[Sequence, AdexError]]:
    """Living sequences the step failed for, those it owes a token among them."""
    answered = [token.sequence for token in outcome.tokens]
    if answered == flight.sampling and not outcome.failures:
        return []
    owed = set(flight.sampling)
    if not outcome.failures and len(answered) == len(owed) and owed == set(answered):
        return []
    errors: dict[int, AdexError] = {f.sequence: f.error for f in outcome.failures}
    gained = Counter(answered)
    for number in sorted(owed | gained.keys()):
        due = 1 if number in owed else 0
        if number not in errors and gained[number] != due:
            errors[number] = ProtocolViolation(
                f"Step {outcome.step} gave {gained[number]} tokens where {due} was due"
            )
    return [
        (sequence, error)
        for number, error in sorted(errors.items())
        if (sequence := sequences.get(number)) is not None
        and sequence.stage in (Stage.RUNNING, Stage.PREEMPTED)
    ]
