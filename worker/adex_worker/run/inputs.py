"""From a plan to the rows of one forward pass.

Rows are ordered so that the rows of one slot are neighbours, and within a slot short spans come
first: each adapter is one segment, and the decodes lie together. What a plan says wrongly about one
sequence fails that sequence; the others are computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from adex_kernels.batch import AttentionBatch
from adex_proto.adapter import BASE_SLOT
from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import SequenceFailure
from adex_proto.plan import Decodes, Span
from adex_worker.run.arrays import BoolArray, IntArray
from adex_worker.run.sequences import SequenceTable

# Stands for a token that is on the device only.
UNREAD = -1


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

    A token that was sampled by a step under way is UNREAD in `token_ids`.
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
    """What a plan computes as columns, [parts] each: spans, then decodes.

    `rows` are table rows, -1 for a sequence that is not here.
    """

    numbers: IntArray
    rows: IntArray
    starts: IntArray
    counts: IntArray
    samples: BoolArray
    decodes: BoolArray

    @classmethod
    def of(cls, spans: tuple[Span, ...], decodes: Decodes, table: SequenceTable) -> Self:
        """A decode computes the last token that is known here, and samples."""
        chunks = [(span.sequence, span.start, span.count, span.samples) for span in spans]
        given = np.array(chunks, np.int64).reshape(-1, 4)
        ones = np.ones(len(decodes.sequences), np.int64)
        numbers = np.concatenate((given[:, 0], np.array(decodes.sequences, np.int64)))
        rows = table.rows_of(numbers.tolist())
        lasts = table.known[np.maximum(rows[len(given) :], 0)] - 1
        return cls(
            numbers=numbers,
            rows=rows,
            starts=np.concatenate((given[:, 1], lasts)),
            counts=np.concatenate((given[:, 2], ones)),
            samples=np.concatenate((given[:, 3], ones)).astype(np.bool_),
            decodes=np.arange(len(numbers)) >= len(given),
        )

    def at(self, index: IntArray) -> "_Columns":
        return _Columns(
            self.numbers[index],
            self.rows[index],
            self.starts[index],
            self.counts[index],
            self.samples[index],
            self.decodes[index],
        )


def step_inputs(
    spans: tuple[Span, ...],
    decodes: Decodes,
    table: SequenceTable,
    limits: PoolLimits,
    is_resident: Callable[[int], bool],
) -> tuple[StepInputs | None, list[SequenceFailure]]:
    """Check what is to be computed and lay it out. Block tables are extended by the new blocks.

    Returns: the step, None when nothing is left to compute, and the sequences refused.
    """
    failures: list[SequenceFailure] = []
    columns = _Columns.of(spans, decodes, table)
    reason = _unfit_as_a_whole(columns, limits)
    if reason is not None:
        error = ProtocolViolation(reason, field="spans")
        return None, [SequenceFailure(number, error) for number in columns.numbers.tolist()]
    bad = _extend_block_tables(_new_blocks(spans, decodes), columns, table, limits, failures)
    good = _fit(columns, table, limits, is_resident, bad, failures)
    if not good.any():
        return None, failures
    columns = columns.at(np.flatnonzero(good))
    order = np.lexsort((columns.counts, table.slot[columns.rows]))
    return _laid_out(columns.at(order), table, limits), failures


def _unfit_as_a_whole(columns: _Columns, limits: PoolLimits) -> str | None:
    """Why nothing of the plan can be computed, if so."""
    parts = len(columns.numbers)
    if parts > limits.step_sequences_max:
        return f"a step of {parts} sequences exceeds {limits.step_sequences_max}"
    tokens = int(np.maximum(columns.counts, 0).sum())
    if tokens > limits.step_tokens_max:
        return f"a step of {tokens} tokens exceeds {limits.step_tokens_max}"
    if len(set(columns.numbers.tolist())) != parts:
        return "a step names one sequence twice"
    return None


def _new_blocks(spans: tuple[Span, ...], decodes: Decodes) -> dict[int, tuple[int, ...]]:
    """What each sequence's block table is to be extended by."""
    blocks = {span.sequence: span.new_blocks for span in spans if span.new_blocks}
    grown = zip(decodes.growing, decodes.new_blocks, strict=True)
    return blocks | {number: (page,) for number, page in grown}


def _extend_block_tables(
    blocks: dict[int, tuple[int, ...]],
    columns: _Columns,
    table: SequenceTable,
    limits: PoolLimits,
    failures: list[SequenceFailure],
) -> BoolArray:
    """Returns: [parts], which of them named pages they may not."""
    bad = np.zeros(len(columns.numbers), np.bool_)
    if not blocks:
        return bad
    index_of = {number: index for index, number in enumerate(columns.numbers.tolist())}
    for number, pages in blocks.items():
        index = index_of.get(number)
        if index is None:
            failures.append(_refused(number, "grows without a part in the step", "growing"))
            continue
        row = int(columns.rows[index])
        if row < 0:
            continue
        why = _unfit_blocks(pages, limits)
        if why is not None:
            failures.append(_refused(number, f"new blocks {list(pages)} {why}", "new_blocks"))
            bad[index] = True
        else:
            table.extend_blocks(row, pages)
    return bad


def _unfit_blocks(pages: tuple[int, ...], limits: PoolLimits) -> str | None:
    """Why no sequence may have these pages, if so."""
    if min(pages) < 0 or max(pages) >= limits.pages:
        return f"are outside the {limits.pages} there are"
    return "hold an adapter" if any(map(limits.holds_adapter, pages)) else None


def _fit(
    columns: _Columns,
    table: SequenceTable,
    limits: PoolLimits,
    is_resident: Callable[[int], bool],
    bad: BoolArray,
    failures: list[SequenceFailure],
) -> BoolArray:
    """Returns: [parts], which of them can be computed; the others are added to `failures`."""
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
    room = table.block_count[safe] * limits.block_tokens
    checks = (
        (here, "belongs to no sequence here"),
        (table.failed[safe] == 0, "follows a step that failed"),
        # A sum that overflows is less than what it is the sum of.
        ((counts > 0) & (starts >= 0) & (stops > starts), "has no positions"),
        (from_given | from_last, "lacks the tokens at its positions"),
        ((starts <= table.computed[safe]) | (table.computed[safe] == 0), "leaves a gap"),
        (stops <= limits.positions_max, f"goes beyond position {limits.positions_max}"),
        (stops <= room, "goes beyond its blocks"),
        (~columns.decodes | (stops > room - limits.block_tokens), "has blocks to come already"),
        (~columns.samples | (stops == known), "samples before its last token"),
    )
    good = ~bad
    for passes, complaint in checks:
        _keep(good, passes, complaint, columns, failures)
    if absent:
        resident = ~np.isin(slots, absent)
        _keep(good, resident, "has no resident adapter in its slot", columns, failures)
    unshared = _writes_alone(columns, table, limits, good)
    _keep(good, unshared, "writes a block that another span writes", columns, failures)
    return good


def _keep(
    good: BoolArray,
    passes: BoolArray,
    complaint: str,
    columns: _Columns,
    failures: list[SequenceFailure],
) -> None:
    """Take those that do not pass out of `good`, each with a failure."""
    if passes.all():
        return
    for index in np.flatnonzero(good & ~passes).tolist():
        start, count = int(columns.starts[index]), int(columns.counts[index])
        text = f"span [{start}, {start + count}) {complaint}"
        failures.append(_refused(int(columns.numbers[index]), text, "spans"))
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
    rows = columns.rows[sampled_here]
    lasts = np.where(table.unread[rows] > 0, UNREAD, table.last_token[rows])
    token_ids[query_starts[:-1][sampled_here]] = lasts
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


def _refused(number: int, complaint: str, field: str) -> SequenceFailure:
    error = ProtocolViolation(f"sequence {number}: {complaint}", field=field)
    return SequenceFailure(number, error)
