"""From a plan to the rows of one forward pass.

Rows are ordered so that the rows of one slot are neighbours, and within a slot short spans come
first: each adapter is one segment, and the decodes lie together. What a plan says wrongly about one
sequence fails that sequence; the others are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from adex_kernels.batch import AttentionBatch
from adex_proto.adapter import BASE_SLOT
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import SequenceFailure
from adex_proto.plan import Span
from adex_worker.run.arrays import BoolArray, IntArray
from adex_worker.run.sequences import SequenceTable


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """What pages a block table may name, and how many rows and sequences a step may have."""

    pages: int
    block_tokens: int
    step_tokens_max: int
    step_sequences_max: int
    positions_max: int
    holds_adapter: Callable[[int], bool]


@dataclass(slots=True)
class StepInputs:
    """One step on the host, [rows] where rows are positions of all spans.

    `segments` are (row_start, row_stop, slot) of the adapters. `logit_rows` [sampled] are the rows
    whose logits are wanted, `sampled` [sampled] the table rows of their sequences, in that order.
    `table_rows` [sequences], `starts` and `stops` [sequences] say which positions are computed, and
    `query_starts` [sequences + 1] in which rows. `tables` [sequences, blocks_max] are their pages,
    `known` [sequences] how many tokens each has.
    """

    token_ids: IntArray
    positions: IntArray
    segments: list[tuple[int, int, int]]
    logit_rows: IntArray
    sampled: IntArray
    table_rows: IntArray
    starts: IntArray
    stops: IntArray
    query_starts: IntArray
    tables: IntArray
    known: IntArray
    block_tokens: int

    def attention(self, device: torch.device) -> AttentionBatch:
        """The rows, sequences and blocks of the step on the device."""
        return AttentionBatch.build(
            self.query_starts.tolist(),
            self.stops.tolist(),
            torch.from_numpy(self.tables),
            self.block_tokens,
            device,
            self.known.tolist(),
        )


@dataclass(slots=True)
class _Columns:
    """The spans of a plan as columns, [spans] each; `rows` are table rows."""

    rows: IntArray
    starts: IntArray
    counts: IntArray
    samples: BoolArray

    def at(self, index: IntArray) -> "_Columns":
        return _Columns(
            self.rows[index], self.starts[index], self.counts[index], self.samples[index]
        )


def step_inputs(
    spans: tuple[Span, ...],
    table: SequenceTable,
    limits: PoolLimits,
    is_resident: Callable[[int], bool],
) -> tuple[StepInputs | None, list[SequenceFailure]]:
    """Check the spans and lay them out. Block tables are extended by the spans' new blocks.

    Returns: the step, None when no span is left to compute, and the sequences refused.
    """
    failures: list[SequenceFailure] = []
    reason = _unfit_as_a_whole(spans, limits)
    if reason is not None:
        error = ProtocolViolation(reason, field="spans")
        return None, [SequenceFailure(span.sequence, error) for span in spans]
    columns = _Columns(
        rows=table.rows_of([span.sequence for span in spans]),
        starts=np.array([span.start for span in spans], np.int64),
        counts=np.array([span.count for span in spans], np.int64),
        samples=np.array([span.samples for span in spans], np.bool_),
    )
    bad = _extend_block_tables(spans, columns.rows, table, limits, failures)
    good = _fit(spans, columns, table, limits, is_resident, bad, failures)
    if not good.any():
        return None, failures
    columns = columns.at(np.flatnonzero(good))
    order = np.lexsort((columns.counts, table.slot[columns.rows]))
    return _laid_out(columns.at(order), table, limits), failures


def _unfit_as_a_whole(spans: tuple[Span, ...], limits: PoolLimits) -> str | None:
    """Why no span of the plan can be computed, if so."""
    if len(spans) > limits.step_sequences_max:
        return f"a step of {len(spans)} sequences exceeds {limits.step_sequences_max}"
    tokens = sum(max(span.count, 0) for span in spans)
    if tokens > limits.step_tokens_max:
        return f"a step of {tokens} tokens exceeds {limits.step_tokens_max}"
    if len({span.sequence for span in spans}) != len(spans):
        return "a step names one sequence twice"
    return None


def _extend_block_tables(
    spans: tuple[Span, ...],
    rows: IntArray,
    table: SequenceTable,
    limits: PoolLimits,
    failures: list[SequenceFailure],
) -> BoolArray:
    """Returns: [spans], which of them named pages they may not."""
    bad = np.zeros(len(spans), np.bool_)
    for index, span in enumerate(spans):
        if not span.new_blocks or rows[index] < 0:
            continue
        pages = span.new_blocks
        outside = min(pages) < 0 or max(pages) >= limits.pages
        if outside or any(map(limits.holds_adapter, pages)):
            why = f"are outside the {limits.pages} there are" if outside else "hold an adapter"
            failures.append(_refused(span, f"new blocks {list(pages)} {why}", "new_blocks"))
            bad[index] = True
        else:
            table.extend_blocks(int(rows[index]), pages)
    return bad


def _fit(
    spans: tuple[Span, ...],
    columns: _Columns,
    table: SequenceTable,
    limits: PoolLimits,
    is_resident: Callable[[int], bool],
    bad: BoolArray,
    failures: list[SequenceFailure],
) -> BoolArray:
    """Returns: [spans], which of them can be computed; the others are added to `failures`."""
    rows, starts, counts = columns.rows, columns.starts, columns.counts
    stops = starts + counts
    here = rows >= 0
    safe = np.where(here, rows, 0)
    slots = table.slot[safe]
    absent = [int(slot) for slot in np.unique(slots[here]) if slot != BASE_SLOT]
    absent = [slot for slot in absent if not is_resident(slot)]
    # A position is computable from the tokens given, or it is that of the last token sampled here.
    known, given = table.known[safe], table.given[safe]
    from_given = stops <= given
    from_last = (counts == 1) & (stops == known)
    checks = (
        (here, "belongs to no sequence here"),
        (table.failed[safe] == 0, "follows a step that failed"),
        # A sum that overflows is less than what it is the sum of.
        ((counts > 0) & (starts >= 0) & (stops > starts), "has no positions"),
        (from_given | from_last, "lacks the tokens at its positions"),
        ((starts <= table.computed[safe]) | (table.computed[safe] == 0), "leaves a gap"),
        (stops <= limits.positions_max, f"goes beyond position {limits.positions_max}"),
        (stops <= table.block_count[safe] * limits.block_tokens, "goes beyond its blocks"),
        (~columns.samples | (stops == known), "samples before its last token"),
        (~np.isin(slots, absent), "has no resident adapter in its slot"),
    )
    good = ~bad
    for passes, complaint in checks:
        _keep(good, passes, complaint, spans, failures)
    unshared = _writes_alone(columns, table, limits, good)
    _keep(good, unshared, "writes a block that another span writes", spans, failures)
    return good


def _keep(
    good: BoolArray,
    passes: BoolArray,
    complaint: str,
    spans: tuple[Span, ...],
    failures: list[SequenceFailure],
) -> None:
    """Take those that do not pass out of `good`, each with a failure."""
    for index in np.flatnonzero(good & ~passes):
        span = spans[index]
        text = f"span [{span.start}, {span.start + span.count}) {complaint}"
        failures.append(_refused(span, text, "spans"))
    good &= passes


def _writes_alone(
    columns: _Columns, table: SequenceTable, limits: PoolLimits, good: BoolArray
) -> BoolArray:
    """Returns: [spans], false for a span that writes a block an earlier span of the step writes."""
    alone = np.ones(len(good), np.bool_)
    index = np.flatnonzero(good)
    if not len(index):
        return alone
    chosen = columns.at(index)
    firsts = chosen.starts // limits.block_tokens
    blocks = (chosen.starts + chosen.counts - 1) // limits.block_tokens - firsts + 1
    owners = np.repeat(np.arange(len(index)), blocks)
    offsets = np.repeat(firsts - (np.cumsum(blocks) - blocks), blocks) + np.arange(len(owners))
    pages = table.blocks[chosen.rows[owners], offsets]
    by_page = np.argsort(pages, kind="stable")
    again = np.flatnonzero(np.diff(pages[by_page]) == 0) + 1
    alone[index[owners[by_page[again]]]] = False
    return alone


def _laid_out(columns: _Columns, table: SequenceTable, limits: PoolLimits) -> StepInputs:
    rows, starts, counts = columns.rows, columns.starts, columns.counts
    stops = starts + counts
    query_starts = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=query_starts[1:])
    positions = np.arange(query_starts[-1]) + np.repeat(starts - query_starts[:-1], counts)
    blocks_max = -(-int(stops.max()) // limits.block_tokens)
    sampling = np.flatnonzero(columns.samples)
    return StepInputs(
        token_ids=_token_ids(columns, table, query_starts),
        positions=positions,
        segments=_segments(table.slot[rows], query_starts),
        logit_rows=query_starts[1:][sampling] - 1,
        sampled=rows[sampling],
        table_rows=rows,
        starts=starts,
        stops=stops,
        query_starts=query_starts,
        tables=table.blocks[rows, :blocks_max],
        known=table.known[rows],
        block_tokens=limits.block_tokens,
    )


def _token_ids(columns: _Columns, table: SequenceTable, query_starts: IntArray) -> IntArray:
    token_ids = np.empty(query_starts[-1], np.int64)
    sampled_here = columns.starts >= table.given[columns.rows]
    token_ids[query_starts[:-1][sampled_here]] = table.last_token[columns.rows[sampled_here]]
    for index in np.flatnonzero(~sampled_here):
        start, count = columns.starts[index], columns.counts[index]
        into = query_starts[index]
        prompt = table.prompt(int(columns.rows[index]))
        token_ids[into : into + count] = prompt[start : start + count]
    return token_ids


def _segments(slots: IntArray, query_starts: IntArray) -> list[tuple[int, int, int]]:
    """Runs of equal slots, in rows; the base model's are left out."""
    edges = np.flatnonzero(np.diff(slots)) + 1
    firsts = np.concatenate(([0], edges))
    lasts = np.concatenate((edges, [len(slots)]))
    runs = zip(
        query_starts[firsts].tolist(),
        query_starts[lasts].tolist(),
        slots[firsts].tolist(),
        strict=True,
    )
    return [run for run in runs if run[2] != BASE_SLOT]


def _refused(span: Span, complaint: str, field: str) -> SequenceFailure:
    error = ProtocolViolation(f"sequence {span.sequence}: {complaint}", field=field)
    return SequenceFailure(span.sequence, error)
