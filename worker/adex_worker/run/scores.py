"""How probable a prompt's own tokens are: the rows that tell it, and what their logits say."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import PromptScores, TokenScore
from adex_proto.plan import STEP_SCORED_MAX
from adex_worker.run.arrays import IntArray, upload
from adex_worker.run.inputs import StepInputs
from adex_worker.run.sampling_table import SamplingTable
from adex_worker.run.sequences import SequenceTable


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """The rows of a step that score a prompt.

    `rows` [scored] are rows of the step, `tokens` [scored] the tokens that follow them. `parts` are
    (sequence, position of the first of its tokens, how many, alternatives wanted), in that order.
    """

    rows: IntArray
    tokens: IntArray
    parts: list[tuple[int, int, int, int]]


def scored_rows(
    inputs: StepInputs, table: SequenceTable, sampling: SamplingTable
) -> ScoredRows | None:
    """The rows before prompt tokens whose scores were asked for; None where there are none.

    Raises ProtocolViolation for more than a step may have.
    """
    asking = np.flatnonzero(sampling.prompt_logprobs[inputs.table_rows] >= 0)
    rows: list[IntArray] = []
    tokens: list[IntArray] = []
    parts: list[tuple[int, int, int, int]] = []
    for index in asking.tolist():
        row, start = int(inputs.table_rows[index]), int(inputs.starts[index])
        # The last prompt token is followed by what is sampled.
        stop = min(int(inputs.stops[index]), int(table.output_start[row]) - 1)
        if stop <= start:
            continue
        first = int(inputs.query_starts[index])
        rows.append(np.arange(first, first + stop - start))
        tokens.append(table.prompt(row)[start + 1 : stop + 1])
        wanted = int(sampling.prompt_logprobs[row])
        parts.append((int(table.numbers[row]), start + 1, stop - start, wanted))
    if not parts:
        return None
    count = sum(part[2] for part in parts)
    if count > STEP_SCORED_MAX:
        raise ProtocolViolation(
            f"a step scores {count} positions, more than {STEP_SCORED_MAX}", field="spans"
        )
    return ScoredRows(np.concatenate(rows), np.concatenate(tokens), parts)


def with_scored(logit_rows: IntArray, scored: ScoredRows | None) -> IntArray:
    """The rows whose logits a step needs: those that are sampled, then those that score."""
    return logit_rows if scored is None else np.concatenate((logit_rows, scored.rows))


def prompt_scores(logits: Tensor, scored: ScoredRows) -> tuple[PromptScores, ...]:
    """What logits [scored, vocabulary] float32 say of the tokens that follow."""
    totals = logits.logsumexp(1, keepdim=True)
    tokens = upload(scored.tokens, logits.device).unsqueeze(1)
    own = (logits.gather(1, tokens) - totals).squeeze(1).double().tolist()
    most = min(max(wanted for *_, wanted in scored.parts), logits.shape[1])
    top, top_ids = logits.topk(most, dim=1)
    top_logprobs, ids = (top - totals).double().tolist(), top_ids.tolist()
    found: list[PromptScores] = []
    at = 0
    for sequence, start, count, wanted in scored.parts:
        told = tuple(
            TokenScore(
                own[row], tuple(zip(ids[row][:wanted], top_logprobs[row][:wanted], strict=True))
            )
            for row in range(at, at + count)
        )
        found.append(PromptScores(sequence, start, told))
        at += count
    return tuple(found)
