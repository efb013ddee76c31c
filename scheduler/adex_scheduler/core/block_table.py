"""KV blocks of sequences: growth, sharing of equal prefixes, reclaim.

A full block is offered for sharing only after the step that computed it has retired: those of a
prompt chunk by chunk, those of the answer when the sequence ends. Blocks that nobody uses stay
until their pages are wanted, the longest unused first.
"""

from collections.abc import Sequence as Items

from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.prefixes import NO_MATCH, Match, Prefix, PrefixTree, Root
from adex_scheduler.core.sequence import Sequence


class Blocks:
    """The KV blocks of one worker. One block fills one page of `block_tokens` tokens."""

    def __init__(self, pool: PagePool, block_tokens: int, *, share: bool) -> None:
        self.block_tokens = block_tokens
        self._pool = pool
        self._share = share
        self._tree = PrefixTree(pool.pages, block_tokens)
        self.hits = 0

    @property
    def available(self) -> int:
        """Pages that `take` could hand out now."""
        return self._pool.pages_free + self._tree.pages_idle

    @property
    def pages_idle(self) -> int:
        """Pages that hold only a prefix nobody uses now."""
        return self._tree.pages_idle

    @property
    def prefixes(self) -> list[Prefix]:
        """All roots and runs of blocks on offer, for checks."""
        return self._tree.nodes

    @property
    def idle_since(self) -> float | None:
        """Since when nobody has used the prefix that leaves first; None where none is idle."""
        return self._tree.idle_since

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_tokens)

    def match(self, root: Root, tokens: Items[int]) -> Match:
        """The longest chain of blocks on offer that begins `tokens`, short of its last token."""
        if not self._share:
            return NO_MATCH
        return self._tree.match(root, tokens, (len(tokens) - 1) // self.block_tokens)

    def adopt(self, sequence: Sequence, match: Match) -> None:
        """Begin the sequence's table with what was matched; its positions count as computed."""
        assert not sequence.blocks
        if not self._share:
            return
        root = sequence.tenant, sequence.digest
        sequence.stand, woken = self._tree.use(root, match)
        self._pool.tighten(woken)
        sequence.blocks.extend(match.pages)
        sequence.offered = len(match.pages)
        sequence.planned = sequence.computed = sequence.offered * self.block_tokens
        self.hits += sequence.offered

    def take(self, count: int) -> list[int] | None:
        """Take `count` pages, of idle prefixes where too few are free; None if too few at all."""
        if count > self.available:
            return None
        free = min(count, self._pool.pages_free)
        taken = self._pool.take_pages(free) if free else []
        assert taken is not None
        if len(taken) < count:
            idle = self._tree.take(count - len(taken))
            self._pool.tighten(idle)
            taken += idle
        return taken

    def reclaim(self, start: int, stop: int) -> None:
        """Take the pages [start, stop), each of which is free or holds an idle prefix.

        What follows from a block that goes can never be found again, so its page is free as well.
        """
        for page in self._pool.loose_among(start, stop):
            if not self._pool.is_free(page):
                self._pool.free_loose(self._tree.cut(page))
        self._pool.take_exact(start, stop)

    def offer(self, sequence: Sequence) -> None:
        """Offer the sequence's full blocks for sharing, as far as they are computed for certain.

        Where another has offered the same, it waits until it ends: it reads only its own, and would
        keep the other's from being taken as well.
        """
        stand = sequence.stand
        if stand is None or self._tree.goes_on(stand, sequence.tokens, sequence.offered):
            return
        self._extend(sequence)

    def release(self, sequence: Sequence, now: float) -> None:
        """Give all blocks of the sequence back; no step in flight touches them."""
        double = self._extend(sequence)
        self._pool.give(double + sequence.blocks[sequence.offered :])
        if sequence.stand is not None:
            self._pool.loosen(self._tree.leave(sequence.stand, now))
        sequence.forget_blocks()

    def _extend(self, sequence: Sequence) -> list[int]:
        """Offer all that can be. Returns: the pages whose blocks were on offer already."""
        first, full = sequence.offered, sequence.computed // self.block_tokens
        if sequence.stand is None or full <= first:
            return []
        sequence.stand, double, woken = self._tree.extend(
            sequence.stand, sequence.tokens, sequence.blocks, first, full
        )
        sequence.offered = full
        self._pool.tighten(woken)
        return double
