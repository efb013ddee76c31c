"""What a worker remembers of the sequences it computes, one table row for each.

Columns, not objects: a step reads one column at all its rows at once. Prompts are kept whole; of
the tokens generated here only the last is, since that is all the next step needs.
"""

import numpy as np

from adex_proto.errors import ProtocolViolation
from adex_proto.plan import NewSequence
from adex_worker.run.arrays import BoolArray, IntArray, grown

_ROWS_MIN = 64
_BLOCKS_MIN = 16
_NO_TOKENS: IntArray = np.zeros(0, np.int64)


def rows_max(sequences_max: int) -> int:
    """How many rows a table of that many sequences may have: it doubles when it is full."""
    rows = _ROWS_MIN
    while rows < sequences_max:
        rows *= 2
    return rows


class SequenceTable:
    """Sequences by number, their rows, and their columns, all [rows] int64 but `blocks`.

    Attributes:
        numbers: the sequence's number.
        slot: its adapter's slot, 0 for the base model.
        known: tokens known, those sampled here included.
        computed: positions whose keys and values are in the cache.
        given: tokens that the scheduler gave; those after them were sampled here.
        output_start: how many of the tokens are the prompt's.
        last_token: the token at position known - 1, once one was sampled here and `unread` is 0.
        unread: how many of the last tokens known are on the device only.
        block_count: how many of `blocks` are set.
        failed: one more than the step that has failed for it, 0 for none; nothing after that can
            be trusted.
        blocks: [rows, blocks_max], the block table, 0 beyond block_count.
    """

    def __init__(self, *, vocabulary: int, positions_max: int, sequences_max: int) -> None:
        self._vocabulary = vocabulary
        self._positions_max = positions_max
        self._sequences_max = sequences_max
        self._clear()

    def _clear(self) -> None:
        self.numbers, self.slot, self.known, self.computed, self.given = _columns(5)
        self.output_start, self.last_token, self.block_count, self.failed = _columns(4)
        (self.unread,) = _columns(1)
        self.blocks: IntArray = np.zeros((_ROWS_MIN, _BLOCKS_MIN), np.int64)
        self._prompts: list[IntArray] = [_NO_TOKENS] * _ROWS_MIN
        self._row_by_number: dict[int, int] = {}
        self._free = list(range(_ROWS_MIN))[::-1]

    def __len__(self) -> int:
        return len(self._row_by_number)

    def rows_of(self, numbers: list[int]) -> IntArray:
        """[len(numbers)] rows, -1 for a sequence that is not here."""
        row_of = self._row_by_number.get
        return np.array([row_of(number, -1) for number in numbers], np.int64)

    def prompt(self, row: int) -> IntArray:
        """The tokens that the scheduler gave."""
        return self._prompts[row]

    def add(self, new: NewSequence) -> int:
        """Meet a sequence. Returns: its row.

        Raises ProtocolViolation, and changes nothing, when it is here already, has no tokens, too
        many, ones outside the vocabulary, or would be one sequence too many.
        """
        tokens = np.array(new.token_ids, np.int64)
        self._refuse(new, tokens)
        if not self._free:
            self._grow()
        row = self._free.pop()
        self._row_by_number[new.sequence] = row
        self._prompts[row] = tokens
        self.numbers[row] = new.sequence
        self.slot[row] = new.slot
        self.known[row] = self.given[row] = len(tokens)
        self.output_start[row] = new.output_start
        self.blocks[row] = 0
        self.computed[row] = self.last_token[row] = self.block_count[row] = self.failed[row] = 0
        self.unread[row] = 0
        return row

    def remove(self, number: int) -> int | None:
        """Forget a sequence. Returns: the row it had, or None when it was not here."""
        row = self._row_by_number.pop(number, None)
        if row is not None:
            self._prompts[row] = _NO_TOKENS
            self._free.append(row)
        return row

    def clear(self) -> None:
        """Forget every sequence, and the memory they took."""
        self._clear()

    def extend_blocks(self, row: int, pages: tuple[int, ...]) -> None:
        """Append to a block table. The caller has checked the pages."""
        start = int(self.block_count[row])
        stop = start + len(pages)
        if stop > self.blocks.shape[1]:
            wider = np.zeros((len(self.blocks), max(stop, 2 * self.blocks.shape[1])), np.int64)
            wider[:, : self.blocks.shape[1]] = self.blocks
            self.blocks = wider
        self.blocks[row, start:stop] = pages
        self.block_count[row] = stop

    def expect(self, rows: IntArray) -> None:
        """Each of `rows` (all different) gains a token, which `learn` will tell."""
        self.known[rows] += 1
        self.unread[rows] += 1

    def learn(self, rows: IntArray, token_ids: IntArray) -> None:
        """What the earliest of the tokens expected for each of `rows` is."""
        self.last_token[rows] = token_ids
        self.unread[rows] -= 1

    def fail(self, numbers: list[int], step: int) -> None:
        """A step has failed for these sequences; those that are not here are passed over."""
        rows = self.rows_of(numbers)
        rows = rows[rows >= 0]
        earlier = self.failed[rows]
        # The first of them counts: of two steps the later may be known to fail before the earlier.
        self.failed[rows] = np.where(earlier > 0, np.minimum(earlier, step + 1), step + 1)

    def failed_before(self, rows: IntArray, step: int) -> BoolArray:
        """For which of `rows` a step before this one has failed."""
        failed = self.failed[rows]
        return (failed > 0) & (failed <= step)

    def _refuse(self, new: NewSequence, tokens: IntArray) -> None:
        number = new.sequence
        if number in self._row_by_number:
            raise ProtocolViolation(f"sequence {number} arrived twice", field="arrived")
        if len(self) >= self._sequences_max:
            raise ProtocolViolation(
                f"sequence {number} is one more than the {self._sequences_max} a worker keeps",
                field="arrived",
            )
        if not 0 < len(tokens) <= self._positions_max:
            raise ProtocolViolation(
                f"sequence {number} arrived with {len(tokens)} tokens, where 1 to"
                f" {self._positions_max} fit the model",
                field="token_ids",
            )
        if tokens.min() < 0 or tokens.max() >= self._vocabulary:
            raise ProtocolViolation(
                f"sequence {number} has a token outside the vocabulary of {self._vocabulary}",
                field="token_ids",
            )
        if not 0 <= new.output_start <= len(tokens) or new.slot < 0:
            raise ProtocolViolation(
                f"sequence {number} has output_start {new.output_start} of {len(tokens)} tokens"
                f" and slot {new.slot}",
                field="arrived",
            )

    def _grow(self) -> None:
        old = len(self._prompts)
        new = 2 * old
        names = ("numbers", "slot", "known", "computed", "given", "output_start", "last_token")
        for name in (*names, "unread", "block_count", "failed", "blocks"):
            setattr(self, name, grown(getattr(self, name), new))
        self._prompts.extend([_NO_TOKENS] * old)
        self._free.extend(range(old, new)[::-1])


def _columns(count: int) -> list[IntArray]:
    return [np.zeros(_ROWS_MIN, np.int64) for _ in range(count)]
