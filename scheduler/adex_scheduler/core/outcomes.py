"""What one step's outcome means for its sequences: tokens known, blocks computed, ends reached."""

from collections import Counter, deque
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from adex_proto.errors import AdexError, ProtocolViolation
from adex_proto.outcome import SampledTokens, StepOutcome
from adex_proto.sampling import FinishReason
from adex_scheduler.core.batch import Flight
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.sequence import Sequence, Stage


@dataclass(slots=True)
class Result:
    """Tokens that somebody still waits for, and the sequences that end with this step."""

    tokens: SampledTokens
    finished: list[tuple[Sequence, FinishReason]]
    failed: list[tuple[Sequence, AdexError]]


def apply_outcome(
    flight: Flight,
    outcome: StepOutcome,
    sequences: Mapping[int, Sequence],
    *,
    ended: set[int],
    ends: AbstractSet[int],
    blocks: Blocks,
    eos: frozenset[int],
) -> Result:
    """Bring the sequences up to date. Ending them is the caller's part.

    Those that `ended` while the step was under way keep nothing of it; preempted ones do. `ends`
    are the tokens that end any of the sequences.
    """
    as_owed = not outcome.failures and outcome.tokens.sequences == flight.owed
    errors = {} if as_owed else _errors(flight, outcome)
    failed: list[tuple[Sequence, AdexError]] = []
    dropped = ended
    if errors:
        failed = [
            (sequence, error)
            for number, error in sorted(errors.items())
            if (sequence := sequences.get(number)) is not None
            and sequence.stage in (Stage.RUNNING, Stage.PREEMPTED)
        ]
        dropped = errors.keys() | ended
    for sequence, computed in flight.computed:
        if sequence.number not in dropped:
            sequence.computed = computed
            blocks.offer(sequence)
    tokens = outcome.tokens
    if as_owed:
        # The one thing done for each token, in one go. Of those that have ended nobody reads it.
        deque(map(list[int].append, flight.gaining, tokens.token_ids), maxlen=0)
        tokens = tokens.without(dropped)
    else:
        tokens = tokens.without(dropped)
        for number, token_id in zip(tokens.sequences, tokens.token_ids, strict=True):
            sequences[number].tokens.append(token_id)
    over = {s.number: s for s in flight.last if s.number not in dropped}
    if not ends.isdisjoint(tokens.token_ids):
        for number, token_id in zip(tokens.sequences, tokens.token_ids, strict=True):
            if token_id in ends and token_id in sequences[number].ends:
                over[number] = sequences[number]
    return Result(tokens, [(s, s.reason_to_end(eos)) for s in over.values()], failed)


def _errors(flight: Flight, outcome: StepOutcome) -> dict[int, AdexError]:
    """By sequence, what the step failed with, and whose count of tokens is not what was owed."""
    answered, owed = outcome.tokens.sequences, flight.owed
    errors: dict[int, AdexError] = {f.sequence: f.error for f in outcome.failures}
    if not errors and len(answered) == len(owed) and set(answered) == set(owed):
        return errors
    due, gained = frozenset(owed), Counter(answered)
    for number in due | gained.keys():
        count = 1 if number in due else 0
        if number not in errors and gained[number] != count:
            errors[number] = ProtocolViolation(
                f"Step {outcome.step} gave {gained[number]} tokens where {count} was due"
            )
    return errors
