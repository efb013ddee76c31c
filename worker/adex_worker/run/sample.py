"""From the logits of a step to one token per row.

In order: the model's own log probabilities are read; then penalties, bias, the ban on ending before
min_new_tokens, what a grammar forbids; then, for rows that are drawn, temperature, top-k, top-p,
min-p and typical-p. Every operation runs only over the rows that need it, and not at all when none
does.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from adex_kernels import dispatch
from adex_kernels.draw import DrawnRows
from adex_kernels.noise import draw_keys
from adex_worker.run.arrays import BoolArray, ByteArray, Download, FloatArray, IntArray, upload
from adex_worker.run.constraints import Masks
from adex_worker.run.sampling_table import Needs, SamplingTable


@dataclass(slots=True)
class Logprobs:
    """For the rows that asked, by index into the step's sampled rows.

    `chosen` is each one's own token's; `top_ids` and `top` [asked, most asked for] those of the
    most probable tokens, in that order.
    """

    index: dict[int, int]
    chosen: FloatArray
    top_ids: IntArray
    top: FloatArray


@dataclass(slots=True)
class Sampled:
    """[rows] each: the tokens, and whether the row's logits were all finite; if not, no token."""

    token_ids: IntArray
    finite: BoolArray
    logprobs: Logprobs | None = None


class Draws:
    """What was chosen: `token_ids` [rows] on the device, and all of it on its way to the host."""

    def __init__(
        self,
        both: Tensor,
        asked: IntArray | None = None,
        logprobs: tuple[Tensor, ...] = (),
    ) -> None:
        """`both` as `dispatch.greedy` answers, so that there is one transfer; `logprobs` as
        `_logprobs` answers for the rows that `asked`."""
        self._both, self._asked = both, asked
        self.arrival = Download(both.device, both, *logprobs)

    @property
    def token_ids(self) -> Tensor:
        return self._both[0]

    def read(self) -> Sampled:
        """Waits for the device."""
        both, *told = self.arrival.read()
        sampled = Sampled(both[0], both[1].astype(np.bool_))
        if self._asked is not None:
            index = {row: at for at, row in enumerate(self._asked.tolist())}
            sampled.logprobs = Logprobs(index, *told)
        return sampled


@dataclass(slots=True)
class _Batch:
    """One step's rows: logits [rows, vocabulary], changed in place, and what goes with them."""

    logits: Tensor
    rows: IntArray
    generated: IntArray
    table: SamplingTable
    needs: IntArray
    device: torch.device = field(init=False)

    def __post_init__(self) -> None:
        self.device = self.logits.device

    def needing(self, need: Needs) -> IntArray:
        """Indexes of the rows that need it."""
        return np.flatnonzero(self.needs & need)


def sample(
    logits: Tensor,
    rows: IntArray,
    generated: IntArray,
    table: SamplingTable,
    masks: Masks | None = None,
) -> Draws:
    """Choose one token for each row.

    Args:
        logits: [rows, vocabulary] float32; overwritten.
        rows: [rows], their rows in `table`.
        generated: [rows], how many tokens each sequence has generated so far.
        masks: which tokens the rows under a grammar may have.
    """
    batch = _Batch(logits, rows, generated, table, table.needs[rows])
    needed = int(np.bitwise_or.reduce(batch.needs))
    if not needed & ~Needs.LOGPROBS:
        return _greedy(batch)
    # A sum is finite if all its terms are: no model's logits reach 1e30.
    finite = logits.sum(1).isfinite()
    asked = batch.needing(Needs.LOGPROBS)
    own = logits[upload(asked, batch.device)] if len(asked) else None
    if needed & Needs.PENALTY:
        _penalise_(batch)
    if needed & Needs.BIAS:
        _bias_(batch)
    if needed & Needs.MIN_TOKENS:
        _forbid_ends_(batch, masks)
    if masks is not None and len(masks.index):
        _forbid_others_(batch, masks)
    chosen = _choose(batch, finite) if needed & Needs.DRAW else logits.argmax(1)
    both = torch.stack((chosen, finite.to(torch.int64)))
    if own is None:
        return Draws(both)
    own_ids = chosen[upload(asked, batch.device)]
    return Draws(both, asked, _logprobs(own, own_ids, table.logprobs[rows[asked]]))


def _greedy(batch: _Batch) -> Draws:
    """Of rows that need nothing, or to be told log probabilities."""
    both, asked = dispatch.greedy(batch.logits), batch.needing(Needs.LOGPROBS)
    if not len(asked):
        return Draws(both)
    own, own_ids = batch.logits, both[0]
    if len(asked) < len(batch.rows):
        index = upload(asked, batch.device)
        own, own_ids = own[index], own_ids[index]
    return Draws(both, asked, _logprobs(own, own_ids, batch.table.logprobs[batch.rows[asked]]))


def _penalise_(batch: _Batch) -> None:
    """Repetition over prompt and output (Keskar et al. 2019, arXiv:1909.05858), then frequency and
    presence over the output, on the tokens each row has had."""
    table, index = batch.table, batch.needing(Needs.PENALTY)
    table_rows = batch.rows[index]
    histories = [table.history[row] for row in table_rows.tolist()]
    sizes = np.array([len(history.ids) for history in histories])
    where = upload(np.repeat(index, sizes), batch.device)
    tokens = upload(np.concatenate([history.ids for history in histories]), batch.device)
    counts = upload(np.concatenate([history.counts for history in histories]), batch.device)
    columns = np.stack((table.repetition, table.frequency, table.presence))[:, table_rows]
    per_token = np.repeat(columns, sizes, axis=1).astype(np.float32)
    repetition, frequency, presence = upload(per_token, batch.device)
    values = batch.logits[where, tokens]
    values = torch.where(values < 0, values * repetition, values / repetition)
    values -= frequency * counts + presence * (counts > 0)
    batch.logits[where, tokens] = values


def _bias_(batch: _Batch) -> None:
    index = batch.needing(Needs.BIAS)
    pairs = [batch.table.bias[row] for row in batch.rows[index].tolist()]
    sizes = np.array([len(ids) for ids, _ in pairs])
    where = upload(np.repeat(index, sizes), batch.device)
    tokens = upload(np.concatenate([ids for ids, _ in pairs]), batch.device)
    biases = np.concatenate([biases for _, biases in pairs]).astype(np.float32)
    # Accumulating, so that a token named twice gets both.
    batch.logits.index_put_((where, tokens), upload(biases, batch.device), accumulate=True)


def _forbid_ends_(batch: _Batch, masks: Masks | None) -> None:
    too_short = batch.generated < batch.table.min_new_tokens[batch.rows]
    too_short &= batch.needs & Needs.MIN_TOKENS > 0
    if masks is not None:
        for at, bits in zip(masks.index.tolist(), masks.bits, strict=True):
            # A complete text is no better for what no longer fits it: the grammar ends it early.
            too_short[at] &= _allows_more(bits, batch.table.end_ids.get(int(batch.rows[at])))
    index = np.flatnonzero(too_short)
    if not len(index):
        return
    ends = [batch.table.end_ids[row] for row in batch.rows[index].tolist()]
    where = upload(np.repeat(index, [len(ids) for ids in ends]), batch.device)
    batch.logits[where, upload(np.concatenate(ends), batch.device)] = float("-inf")


def _allows_more(bits: ByteArray, ends: IntArray | None) -> bool:
    """Whether a mask allows a token that is none of `ends`."""
    if ends is None:
        return True
    others = bits.copy()
    np.bitwise_and.at(others, ends >> 3, ~(1 << (ends & 7)).astype(np.uint8))
    return bool(others.any())


def _forbid_others_(batch: _Batch, masks: Masks) -> None:
    """-inf for what the grammars do not allow."""
    bits = upload(masks.bits, batch.device).unsqueeze(2)
    places = 1 << torch.arange(8, dtype=torch.uint8, device=batch.device)
    forbidden = (bits & places).view(len(masks.index), -1)[:, : batch.logits.shape[1]] == 0
    index = upload(masks.index, batch.device)
    batch.logits[index] = batch.logits[index].masked_fill_(forbidden, float("-inf"))


def _choose(batch: _Batch, finite: Tensor) -> Tensor:
    """[rows] int64: the most probable token of greedy rows, a drawn one of the others."""
    index = batch.needing(Needs.DRAW)
    if len(index) == len(batch.rows):
        chosen = torch.zeros(len(index), dtype=torch.int64, device=batch.device)
    else:
        chosen = batch.logits.argmax(1)
    dispatch.draw_(chosen, batch.logits, finite, _drawn(batch, index))
    return chosen


def _drawn(batch: _Batch, index: IntArray) -> DrawnRows:
    table, rows = batch.table, batch.rows[index]
    # A temperature that float32 rounds to 0 is as good as greedy.
    temperature = np.maximum(table.temperature[rows].astype(np.float32), np.finfo(np.float32).tiny)
    return DrawnRows(
        rows=index,
        keys=draw_keys(table.seed[rows], batch.generated[index]),
        temperature=temperature,
        top_k=table.top_k[rows],
        top_p=table.top_p[rows].astype(np.float32),
        min_p=table.min_p[rows].astype(np.float32),
        typical_p=table.typical_p[rows].astype(np.float32),
    )


def _logprobs(own: Tensor, token_ids: Tensor, wanted: IntArray) -> tuple[Tensor, Tensor, Tensor]:
    """Of the model's own logits [asked, vocabulary]: the chosen tokens' [asked], and the most
    probable tokens and theirs [asked, most asked for]; `wanted` [asked] alternatives each."""
    totals = dispatch.log_totals(own)
    chosen = own.gather(1, token_ids.unsqueeze(1)).squeeze(1) - totals
    most = min(int(wanted.max()), own.shape[1])
    if not most:
        nothing = own.new_empty((len(own), 0), dtype=torch.float64)
        return chosen.double(), nothing.long(), nothing
    top, top_ids = own.topk(most, dim=1)
    return chosen.double(), top_ids, (top - totals.unsqueeze(1)).double()
