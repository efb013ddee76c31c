"""Steps of decodes as graphs: recorded at the start, and then launched whole.

A decode step is a few hundred launches, and a GPU is done with each before a host has prepared the
next. So the launches are recorded once for some numbers of rows, to which a step is padded, with
adapters and without. All that differs between steps of one size lies in one buffer of words that
one copy fills: rows, what is attended, which rows go through which slot, block tables. What slots
hold is read from the table of the adapters. So no graph depends on which adapters there are, what
their ranks are, or how long contexts are, and nothing is recorded again while a worker serves.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from adex_kernels.adapter_table import AdapterTable
from adex_kernels.batch import AttentionBatch, LoraBatch, SlotViews
from adex_kernels.gpu.attention import AttentionWork, fill_static, static_words
from adex_kernels.gpu.launch import ENTRY_WORDS, ITEM_WORDS, TILE_WORDS, Words, entries_of
from adex_kernels.gpu.lora import LoraWork
from adex_kernels.layout import MODULES_PER_GROUP_MAX
from adex_worker.run.arrays import upload
from adex_worker.run.inputs import UNREAD, StepInputs

# Sections of the words begin on 16 bytes, so that wide loads stay possible.
_ALIGN_WORDS = 4
# Columns of a step's rows: token, position, length of the sequence, page, offset there, table row.
_COLUMNS = 6
_LENS, _PAGES = 2, 3
_TOLERANCE = 0.05

Launch = Callable[[], None]


class Recorder(Protocol):
    """Records what a function launches."""

    def __call__(self, launch: Launch) -> Launch:
        """Answers what launches the same again, on the same memory."""
        ...


class Model(Protocol):
    """The model, as `Decoder`."""

    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None = None,
        logit_rows: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Tensor: ...


class Slots(SlotViews, Protocol):
    """The resident adapters, and where a device's kernels find them."""

    @property
    def table(self) -> AdapterTable | None: ...


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """What recorded steps must have room for; `heads_per_kv` query heads share a key head."""

    rows_max: int
    positions_max: int
    block_tokens: int
    rank_max: int
    vocabulary: int
    heads_per_kv: int

    @property
    def blocks_max(self) -> int:
        return -(-self.positions_max // self.block_tokens)


def padded_sizes(rows_max: int) -> tuple[int, ...]:
    """The numbers of rows that are recorded; what a step is padded by is little from 8 rows on."""
    sizes = [1]
    while sizes[-1] < rows_max:
        last = sizes[-1]
        sizes.append(last + max(min(last, 8), (1 << (last.bit_length() - 1)) // 4))
    return (*sizes[:-1], rows_max)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where a step of `rows` rows lies in the words: columns, entries, attention, block tables."""

    rows: int
    stride: int
    entries: int
    attention: int
    tables: int

    @classmethod
    def of(cls, rows: int) -> "_Layout":
        stride = _aligned(rows)
        entries = _COLUMNS * stride
        attention = entries + _aligned(rows * ENTRY_WORDS)
        return cls(rows, stride, entries, attention, attention + _aligned(static_words(rows)))


class DecodeGraphs:
    """Recorded steps of decodes. Not thread-safe: the step thread calls it."""

    def __init__(
        self,
        model: Model,
        kv: Tensor,
        slots: Slots,
        last: Tensor,
        limits: GraphLimits,
        recorder: Recorder,
    ) -> None:
        """`kv`, `last` (as the runner's) and the table of `slots` are where they are for good.

        Nothing is recorded yet.
        """
        assert slots.table is not None, "the kernels that are recorded find adapters by the table"
        self._model, self._kv, self._slots, self._limits = model, kv, slots, limits
        self._recorder, self._last = recorder, last
        self._sizes = padded_sizes(limits.rows_max)
        device = kv.device
        words = _Layout.of(limits.rows_max).tables + limits.rows_max * limits.blocks_max
        self._words = torch.zeros(words, dtype=torch.int32, device=device)
        size = (limits.rows_max, limits.vocabulary)
        self._logits = torch.zeros(size, dtype=torch.float32, device=device)
        ranks_max = MODULES_PER_GROUP_MAX * limits.rank_max
        entries = self._words[: limits.rows_max * ENTRY_WORDS].view(-1, ENTRY_WORDS)
        self._shrunk = LoraWork.static(entries, ranks_max, slots.table).shrunk
        self._recorded: dict[tuple[int, bool], Launch] = {}

    @torch.inference_mode()
    def record(self, progress: Callable[[int, int], None]) -> None:
        """Record every size; `progress` is told how many are done, of how many."""
        # What ends during a recording may unload a kernel, which no device allows then.
        collects = gc.isenabled()
        gc.disable()
        try:
            # The largest first, so that the others find room in the memory that it took.
            wanted = [(rows, adapted) for rows in self._sizes[::-1] for adapted in (True, False)]
            for index, (rows, adapted) in enumerate(wanted):
                progress(index, len(wanted))
                self._fill(self._padding(_Layout.of(rows)))
                self._recorded[rows, adapted] = self._recorder(self._launch(rows, adapted))
            progress(len(wanted), len(wanted))
        finally:
            if collects:
                gc.enable()

    def take(self, inputs: StepInputs) -> bool:
        """Whether every row of the step is a decode, and there are not too many."""
        rows = len(inputs.token_ids)
        return rows == len(inputs.table_rows) and rows <= self._limits.rows_max

    @torch.inference_mode()
    def forward(self, inputs: StepInputs) -> Tensor:
        """Logits [logit_rows, vocabulary] float32, good until the next call."""
        count = len(inputs.token_ids)
        rows = next(size for size in self._sizes if size >= count)
        self._fill(self._packed(inputs, _Layout.of(rows)))
        self._recorded[rows, bool(inputs.segments)]()
        if len(inputs.logit_rows) == count:
            return self._logits[:count]
        return self._logits.index_select(0, upload(inputs.logit_rows, self._kv.device))

    @torch.inference_mode()
    def fault(self) -> str | None:
        """What is wrong with the recorded steps, if so: one of them beside the same step launched
        by the host. To be called before any page is in use."""
        rows = min(3, self._limits.rows_max, self._kv.shape[0])
        ones, each = np.ones(rows, np.int64), np.arange(rows)
        inputs = StepInputs(
            token_ids=each,
            positions=0 * ones,
            segments=[],
            logit_rows=each,
            sampled=each,
            table_rows=each,
            starts=0 * ones,
            stops=ones,
            query_starts=np.arange(rows + 1),
            tables=each.reshape(-1, 1),
            known=ones,
            block_tokens=self._limits.block_tokens,
        )
        device = self._kv.device
        ids, positions = upload(inputs.token_ids, device), upload(inputs.positions, device)
        attention = inputs.attention(device)
        expected = self._model.forward(ids, positions, self._kv, attention)
        worst = float((self.forward(inputs) - expected).abs().max() / expected.abs().max())
        return None if worst <= _TOLERANCE else f"a recorded step is off by {worst:.3g}"

    def _launch(self, rows: int, adapted: bool) -> Launch:
        """What computes a step of `rows` rows from the words; the tensors that it reads are made
        here, once."""
        at, words, table = _Layout.of(rows), self._words, self._slots.table
        columns = words[: at.entries].view(_COLUMNS, at.stride)[:, :rows]
        ids, positions, lens, pages, offsets, owners = columns
        work = AttentionWork.static(
            words[at.attention :][: static_words(rows)],
            # An item names where its sequence's pages begin: a line of one word.
            words[at.tables :][:rows].view(-1, 1),
            self._limits.heads_per_kv,
        )
        attention = AttentionBatch(
            query_starts=[],
            context_lens=[],
            block_tables=work.tables,
            block_tokens=self._limits.block_tokens,
            write_pages=pages,
            write_offsets=offsets,
            row_lens=lens,
            fresh_pages=None,
            work=work,
        )
        lora = None
        if adapted:
            assert table is not None
            entries = words[at.entries :][: rows * ENTRY_WORDS].view(-1, ENTRY_WORDS)
            lora = LoraBatch([(0, rows, 0)], self._slots, table=table)
            lora.work = LoraWork(entries, table, self._shrunk[:, :rows])
        return partial(self._compute, ids, owners, positions, attention, lora, self._logits[:rows])

    def _compute(
        self,
        ids: Tensor,
        owners: Tensor,
        positions: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None,
        into: Tensor,
    ) -> None:
        ids = torch.where(ids == UNREAD, self._last.index_select(0, owners), ids)
        self._model.forward(ids, positions, self._kv, attention, lora, None, into)

    def _fill(self, words: Tensor) -> None:
        """The one copy of a step, which waits for nothing."""
        self._words[: len(words)].copy_(words, non_blocking=True)

    def _padding(self, at: _Layout, blocks: int = 0) -> Tensor:
        """Words on the host of a step without rows: whatever is not set in them does nothing.

        Each step has words of its own, since the copy of the one before may be under way.
        """
        pinned = self._kv.is_cuda
        words = torch.empty(at.tables + blocks, dtype=torch.int32, pin_memory=pinned)
        array: Words = words.numpy()
        columns = array[: at.entries].reshape(_COLUMNS, at.stride)
        columns[:] = 0
        columns[_LENS] = 1
        columns[_PAGES] = -1
        array[at.entries : at.attention] = 0
        tiles = at.attention + 2 + at.rows * TILE_WORDS
        array[at.attention : tiles] = 0
        return words

    def _packed(self, inputs: StepInputs, at: _Layout) -> Tensor:
        """The step's words on the host."""
        limits, count = self._limits, len(inputs.token_ids)
        positions, tables = inputs.positions, inputs.tables
        blocks = -(-inputs.stops // limits.block_tokens)
        firsts = np.cumsum(blocks) - blocks
        words = self._padding(at, int(blocks.sum()))
        array: Words = words.numpy()
        nth, offsets = np.divmod(positions, limits.block_tokens)
        columns = array[: at.entries].reshape(_COLUMNS, at.stride)
        columns[:, :count] = (
            inputs.token_ids,
            positions,
            np.maximum(inputs.known, inputs.stops),
            tables[np.arange(count), nth],
            offsets,
            inputs.table_rows,
        )
        entries = entries_of(inputs.segments)
        array[at.entries :][: entries.size] = entries.ravel()
        attention = array[at.attention : at.tables]
        fill_static(attention, at.rows, inputs.stops.tolist(), limits.heads_per_kv)
        items = attention[2 + at.rows * TILE_WORDS :][: attention[0] * ITEM_WORDS]
        items = items.reshape(-1, ITEM_WORDS)
        items[:, 0] = firsts[items[:, 0]]
        array[at.tables :] = tables[np.arange(tables.shape[1]) < blocks[:, None]]
        return words


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        cuda: Any = torch.cuda
        self._device, self._stream = device, cuda.Stream(device)
        self._pool = cuda.graph_pool_handle()

    def __call__(self, launch: Launch) -> Launch:
        cuda: Any = torch.cuda
        # Once without recording: kernels are compiled and libraries take their workspace.
        self._stream.wait_stream(cuda.current_stream(self._device))
        with cuda.stream(self._stream):
            launch()
        self._stream.synchronize()
        graph = cuda.CUDAGraph()
        with cuda.graph(
            graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
        ):
            launch()
        replay: Launch = graph.replay
        return replay


def _aligned(words: int) -> int:
    return -(-words // _ALIGN_WORDS) * _ALIGN_WORDS
