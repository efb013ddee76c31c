"""What one step tells the kernels: which rows belong to which sequence, block and adapter.

Built once per step and shared by all layers. The KV tensor that the indices speak of is
[pages, layers, 2, block_tokens, kv_heads, head_dim], contiguous; 2 is key, value; a page holds one
block of one sequence for all layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable

# Chunks of more queries than this are attended each on their own: padding them would cost more
# than the calls it saves.
GROUPED_QUERIES_MAX = 64

# Contexts of up to this many blocks share a group whatever their lengths.
_BLOCKS_MIN_CLASS = 8


class GroupWeights(NamedTuple):
    """An adapter's matrices for one group of linears in one layer, as views in the serving dtype.

    `a` is [rank_total, in]. A slice is (rank_start, rank_stop, out_start, out_stop, b) with b
    [rank, out]: those rows of `a`, and the output columns that their product with b adds to.
    """

    a: Tensor
    slices: tuple[tuple[int, int, int, int, Tensor], ...]


@dataclass(frozen=True, slots=True)
class LoraRecord:
    """An adapter's matrices of all layers as native/lora.c reads them: int64 `words`.

    They hold addresses: good for as long as the adapter stays where it is.
    """

    words: Tensor
    dtype: torch.dtype
    rank_total_max: int


class SlotViews(Protocol):
    """The resident adapters, by slot."""

    def group(self, slot: int, layer: int, group: int) -> GroupWeights | None:
        """The adapter's weights there, or None where it has none."""
        ...

    def record(self, slot: int) -> LoraRecord | None:
        """The whole adapter for the compiled path, or None where that cannot serve it."""
        ...


@dataclass(slots=True)
class ThinSegments:
    """The segments of a step that the compiled path serves, and those left to torch.

    `words` is [segments, 4] int64 (row_start, rows, address of the record, where its rows begin in
    `shrunk`); `records` keeps what they point to; `shrunk` is float32 scratch.
    """

    words: Tensor
    records: list[LoraRecord]
    shrunk: Tensor
    others: list[tuple[int, int, int]]


@dataclass(slots=True)
class LoraBatch:
    """Which rows go through which adapter: segments (row_start, row_stop, slot), slot > 0.

    Rows outside every segment belong to the base model. `thin` and `work` are made once for all
    layers, by the ways that need them; `table` is where Triton's finds the adapters.
    """

    segments: list[tuple[int, int, int]]
    slots: SlotViews
    thin: ThinSegments | None = None
    table: AdapterTable | None = None
    work: Any = None


@dataclass(slots=True)
class KeyView:
    """The keys that the queries of one group see through one window.

    `pages` is [sequences * blocks], the pages to gather, padded with a sequence's last page.
    `hidden` is [sequences, queries, keys] bool, true where a query must not see a key, or None when
    the plain causal triangle over exactly `keys` positions says the same. `biases` caches the
    additive form of `hidden` for each dtype, `key_value_rows` where layer 0 has the pages' keys and
    then their values, in rows of one block.
    """

    pages: Tensor
    blocks: int
    keys: int
    hidden: Tensor | None
    biases: dict[torch.dtype, Tensor] = field(default_factory=dict)
    key_value_rows: Tensor | None = None

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """[sequences, 1, queries, keys]: 0 where seen, minus infinity where hidden."""
        if self.hidden is None:
            return None
        bias = self.biases.get(dtype)
        if bias is None:
            bias = torch.zeros(self.hidden.shape, dtype=dtype, device=self.hidden.device)
            bias = bias.masked_fill_(self.hidden, float("-inf")).unsqueeze(1)
            self.biases[dtype] = bias
        return bias


@dataclass(slots=True)
class QueryGroup:
    """Sequences attended together, each padded to `queries` rows.

    Rows are [row_start, row_start + sequences * queries) of the step when `rows` is None; else
    `rows` [sequences * queries] names them, padding repeats a sequence's last row, and the results
    `picked` are those of rows `targets`. `tables` is [sequences, blocks_max]; `first_positions` and
    `last_positions` are those of each sequence's rows in this step.
    """

    queries: int
    row_start: int
    rows: Tensor | None
    picked: Tensor | None
    targets: Tensor | None
    tables: Tensor
    first_positions: list[int]
    last_positions: list[int]
    block_tokens: int
    views: dict[int | None, KeyView] = field(default_factory=dict)

    @property
    def sequences(self) -> int:
        return len(self.first_positions)

    def view(self, window: int | None) -> KeyView:
        """The keys within `window` positions, counting the query's own; None is all of them."""
        view = self.views.get(window)
        if view is None:
            view = self.views[window] = self._key_view(window)
        return view

    def _key_view(self, window: int | None) -> KeyView:
        tokens, device = self.block_tokens, self.tables.device
        reach = window if window is not None else self.last_positions[0] + 1
        if self.sequences == 1 and self.first_positions[0] == 0 and reach > self.last_positions[0]:
            keys = self.last_positions[0] + 1
            if keys == self.queries:
                blocks = -(-keys // tokens)
                return KeyView(self.tables[0, :blocks], blocks, keys, None)
        first_blocks = [
            max(0, first - window + 1) // tokens if window is not None else 0
            for first in self.first_positions
        ]
        spans = zip(self.last_positions, first_blocks, strict=True)
        blocks = max(last // tokens + 1 - block for last, block in spans)
        numbers = torch.tensor([first_blocks, self.first_positions, self.last_positions])
        first_block, first, last = uploaded(numbers, device).unsqueeze(2)
        # Padding repeats the sequence's own last page: whatever a foreign one holds, NaN included,
        # would get through a mask that is added.
        columns = torch.minimum(first_block + torch.arange(blocks, device=device), last // tokens)
        pages = self.tables.gather(1, columns).view(-1)
        keys = (first_block * tokens + torch.arange(blocks * tokens, device=device)).unsqueeze(1)
        queries = first + torch.arange(self.queries, device=device)
        queries = torch.minimum(queries, last).unsqueeze(2)
        hidden = keys > queries
        if window is not None:
            hidden |= keys <= queries - window
        return KeyView(pages, blocks, blocks * tokens, hidden)


@dataclass(slots=True)
class AttentionBatch:
    """Rows, sequences and blocks of one step.

    Rows of sequence i are [query_starts[i], query_starts[i + 1]); context_lens[i] positions are
    visible to its last row, this step's included. Row t's key and value go to write_pages[t],
    write_offsets[t]. `row_lens[t]` is the whole known length of row t's sequence, which chooses its
    rotation where that depends on length. `fresh_pages` are those that the step begins to fill.
    `query_groups` caches `groups`, `write_cells` where the keys go in layer 0, `work` what Triton's
    attention is given.
    """

    query_starts: list[int]
    context_lens: list[int]
    block_tables: Tensor
    block_tokens: int
    write_pages: Tensor
    write_offsets: Tensor
    row_lens: Tensor
    fresh_pages: Tensor | None
    query_groups: list[QueryGroup] | None = None
    write_cells: Tensor | None = None
    work: Any = None

    @classmethod
    def build(
        cls,
        query_starts: Sequence[int],
        context_lens: Sequence[int],
        block_tables: Sequence[Sequence[int]] | Tensor,
        block_tokens: int,
        device: torch.device | str = "cpu",
        sequence_lens: Sequence[int] | None = None,
    ) -> "AttentionBatch":
        """Build the step's indices on `device`; nothing here waits for the device.

        `block_tables` is one list of pages per sequence, or [sequences, blocks_max] int64 on the
        CPU, padded with anything. `sequence_lens` gives each sequence's whole known length (its
        prompt while that is being prefilled); without it, the context so far.
        """
        device = torch.device(device)
        starts, lens = list(query_starts), list(context_lens)
        assert len(starts) == len(lens) + 1, "query_starts has one entry more than sequences"
        counts = [stop - start for start, stop in pairwise(starts)]
        assert all(0 < n <= c for n, c in zip(counts, lens, strict=True)), "rows exceed context"
        tables = _padded_tables(block_tables)
        # In numpy, on this thread: torch would wake all of its own for some of these few numbers.
        ends, wholes = np.array(lens), np.array(lens if sequence_lens is None else sequence_lens)
        sequence_of = np.repeat(np.arange(len(lens)), counts)
        positions = np.arange(starts[-1]) + (ends - starts[1:])[sequence_of]
        blocks, offsets = np.divmod(positions, block_tokens)
        pages = tables.numpy()[sequence_of, blocks]
        row_lens = np.maximum(wholes, ends)[sequence_of]
        rows = uploaded(torch.from_numpy(np.stack((pages, offsets, row_lens))), device)
        fresh = torch.from_numpy(pages[offsets == 0])
        return cls(
            query_starts=starts,
            context_lens=lens,
            block_tables=uploaded(tables, device),
            block_tokens=block_tokens,
            write_pages=rows[0],
            write_offsets=rows[1],
            row_lens=rows[2],
            fresh_pages=uploaded(fresh, device) if len(fresh) else None,
        )

    @property
    def groups(self) -> list[QueryGroup]:
        """The sequences as torch attends them, some together."""
        if self.query_groups is None:
            starts, lens, tokens = self.query_starts, self.context_lens, self.block_tokens
            counts = [stop - start for start, stop in pairwise(starts)]
            self.query_groups = [
                _query_group(members, starts, lens, self.block_tables, tokens)
                for members in _members_by_size(counts, lens, tokens)
            ]
        return self.query_groups


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on `device`, without waiting for what the device still does."""
    if device.type == "cpu":
        return tensor
    # A copy from memory that is not pinned waits for the stream first.
    pinned = tensor.pin_memory() if device.type == "cuda" else tensor
    return pinned.to(device, non_blocking=True)


def _padded_tables(block_tables: Sequence[Sequence[int]] | Tensor) -> Tensor:
    if isinstance(block_tables, Tensor):
        return block_tables
    widest = max(map(len, block_tables))
    return torch.tensor([[*table, *[0] * (widest - len(table))] for table in block_tables])


def _members_by_size(counts: list[int], lens: list[int], block_tokens: int) -> list[list[int]]:
    """Sequences to attend together: sizes within a factor of two, so padding at most doubles."""
    groups: dict[tuple[int, int, int], list[int]] = {}
    for index, (count, length) in enumerate(zip(counts, lens, strict=True)):
        alone = index if count > GROUPED_QUERIES_MAX else -1
        blocks = max(_BLOCKS_MIN_CLASS, -(-length // block_tokens))
        key = (alone, (count - 1).bit_length(), (blocks - 1).bit_length())
        groups.setdefault(key, []).append(index)
    return list(groups.values())


def _query_group(
    members: list[int], starts: list[int], lens: list[int], tables: Tensor, block_tokens: int
) -> QueryGroup:
    counts = [starts[i + 1] - starts[i] for i in members]
    queries, device = max(counts), tables.device
    whole = members == list(range(members[0], members[-1] + 1))
    rows = picked = targets = None
    if not whole or min(counts) != queries:
        steps = torch.arange(queries)
        sizes = torch.tensor(counts).unsqueeze(1)
        first_rows = torch.tensor([starts[i] for i in members]).unsqueeze(1)
        rows = (first_rows + torch.minimum(steps, sizes - 1)).view(-1)
        valid = (steps < sizes).view(-1)
        picked = valid.nonzero().view(-1)
        targets = rows[picked]
        rows, picked, targets = (uploaded(each, device) for each in (rows, picked, targets))
    if whole:
        tables = tables[members[0] : members[-1] + 1]
    else:
        tables = tables[uploaded(torch.tensor(members), device)]
    return QueryGroup(
        queries=queries,
        row_start=starts[members[0]],
        rows=rows,
        picked=picked,
        targets=targets,
        tables=tables,
        first_positions=[lens[i] - n for i, n in zip(members, counts, strict=True)],
        last_positions=[lens[i] - 1 for i in members],
        block_tokens=block_tokens,
    )
