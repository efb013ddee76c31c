"""What one step's outcome means for its sequences: tokens known, blocks computed, ends reached."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from adex_proto.errors import AdexError, ProtocolViolation
from adex_proto.outcome import SampledToken, StepOutcome
from adex_proto.sampling import FinishReason
from adex_scheduler.core.batch import Flight
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.fairness import OUTPUT_TOKEN_WEIGHT, Tenants
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
    tenants: Tenants,
    eos: frozenset[int],
) -> Result:
    """Bring the sequences up to date. Ending them is the caller's part.

    Sequences that ended while the step was under way keep nothing of it; preempted ones do.
    """
    failed = _failures(flight, outcome, sequences)
    doomed = {sequence.number for sequence, _ in failed}
    _advance(flight, doomed, blocks)
    finished: list[tuple[Sequence, FinishReason]] = []
    dropped = False
    kept: list[SampledToken] = []
    for token in outcome.tokens:
        sequence = sequences.get(token.sequence)
        if sequence is None or sequence.stage is Stage.ENDING or token.sequence in doomed:
            dropped = True
            continue
        token_id = token.token_id
        sequence.tokens.append(token_id)
        sequence.pending -= 1
        tenants[sequence.tenant].served += OUTPUT_TOKEN_WEIGHT
        kept.append(token)
        if token_id in sequence.ends or (sequence.left == 0 and sequence.pending == 0):
            reason = sequence.reason_to_end(eos)
            assert reason is not None
            finished.append((sequence, reason))
    return Result(tuple(kept) if dropped else outcome.tokens, finished, failed)


def _failures(
    flight: Flight, outcome: StepOutcome, sequences: Mapping[int, Sequence]
) -> list[tuple[Sequence, AdexError]]:
    """Living sequences the step failed for, those it owes a token among them."""
    errors: dict[int, AdexError] = {f.sequence: f.error for f in outcome.failures}
    answered = [token.sequence for token in outcome.tokens]
    owed = [sequence.number for sequence in flight.decodes]
    owed += [sequence.number for sequence, _, samples in flight.prefills if samples]
    if len(answered) != len(owed) or set(answered) != set(owed):
        gained = Counter(answered)
        for number in owed:
            if number not in errors and gained[number] != 1:
                errors[number] = ProtocolViolation(
                    f"Step {outcome.step} gave {gained[number]} tokens instead of one"
                )
        for number in sorted(gained.keys() - set(owed)):
            errors[number] = ProtocolViolation(f"Step {outcome.step} gave a token nobody asked for")
    return [
        (sequence, error)
        for number, error in sorted(errors.items())
        if (sequence := sequences.get(number)) is not None
        and sequence.stage in (Stage.RUNNING, Stage.PREEMPTED)
    ]


def _advance(flight: Flight, doomed: set[int], blocks: Blocks) -> None:
    """Positions the step computed are in the cache for certain; full blocks may be shared."""
    block_tokens = blocks.block_tokens
    for sequence in flight.decodes:
        if sequence.stage is not Stage.ENDING and sequence.number not in doomed:
            sequence.computed += 1
            if sequence.computed % block_tokens == 0:
                blocks.enter(sequence)
    for sequence, stop, _ in flight.prefills:
        if sequence.stage is not Stage.ENDING and sequence.number not in doomed:
            sequence.computed = stop
            blocks.enter(sequence)
