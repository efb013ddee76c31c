"""KV blocks of sequences: growth, sharing of equal prefixes by reference counts, reclaim.

A full block enters the index only after the step that computed it has retired. The index is a tree
by (what comes before, tokens), rooted in tenant and adapter digest, so neither tenants nor adapters
ever share. Blocks that nobody uses stay until the page is wanted, the longest unused first; a
sequence gives its last block up first, so a block never outlives the ones it follows from.
"""

from collections import OrderedDict
from collections.abc import Sequence as Items

from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.sequence import BlockKey, Node, Root, Sequence

# More positions than any sequence has.
_NEVER = 2**62


class Blocks:
    """The KV blocks of one worker. One block fills one page of `block_tokens` tokens."""

    def __init__(self, pool: PagePool, block_tokens: int, *, share: bool) -> None:
        self.block_tokens = block_tokens
        self._pool = pool
        self._share = share
        self._nodes: dict[BlockKey, Node] = {}
        self._idle: OrderedDict[int, Node] = OrderedDict()
        self._numbers = 0
        self.hits = 0

    @property
    def available(self) -> int:
        """Pages that `take` could hand out now."""
        return self._pool.pages_free + len(self._idle)

    @property
    def pages_idle(self) -> int:
        """Pages that hold only a prefix nobody uses now."""
        return len(self._idle)

    @property
    def nodes(self) -> list[Node]:
        """All shared or shareable blocks, for checks."""
        return list(self._nodes.values())

    @property
    def idle_since(self) -> float | None:
        """Since when nobody has used the prefix that leaves first; None where none is idle."""
        return next(iter(self._idle.values())).idle_since if self._idle else None

    def blocks_for(self, tokens: int) -> int:
        """Blocks that `tokens` tokens fill, the last one perhaps in part."""
        return -(-tokens // self.block_tokens)

    def match(self, root: Root, tokens: Items[int]) -> list[Node]:
        """The longest chain of cached blocks that begins `tokens`, short of its last token."""
        matched: list[Node] = []
        if not self._share:
            return matched
        before: int | Root = root
        size = self.block_tokens
        for start in range(0, (len(tokens) - 1) // size * size, size):
            node = self._nodes.get((before, tuple(tokens[start : start + size])))
            if node is None:
                break
            matched.append(node)
            before = node.number
        return matched

    def idle_among(self, nodes: list[Node]) -> int:
        """How many of these blocks nobody uses, so that using them costs an available page."""
        return sum(node.users == 0 for node in nodes)

    def adopt(self, sequence: Sequence, nodes: list[Node]) -> None:
        """Begin the sequence's table with cached blocks; their positions count as computed."""
        assert not sequence.blocks
        for node in nodes:
            if node.users == 0:
                del self._idle[node.page]
                self._pool.tighten(node.page)
            node.users += 1
            sequence.blocks.append(node.page)
            sequence.nodes.append(node)
        sequence.chain = nodes[-1].number if nodes else (sequence.tenant, sequence.digest)
        sequence.planned = sequence.computed = len(nodes) * self.block_tokens
        sequence.share_at = sequence.computed + self.block_tokens if self._share else _NEVER
        self.hits += len(nodes)

    def take(self, count: int) -> list[int] | None:
        """Take `count` pages, of idle prefixes where too few are free; None if too few at all."""
        if count > self.available:
            return None
        from_free = min(count, self._pool.pages_free)
        taken = self._pool.take_pages(from_free)
        assert taken is not None
        while len(taken) < count:
            page, node = self._idle.popitem(last=False)
            del self._nodes[node.key]
            self._pool.tighten(page)
            taken.append(page)
        return taken

    def reclaim(self, start: int, stop: int) -> None:
        """Take the pages [start, stop), each of which is free or holds an idle prefix."""
        for page in self._pool.take_loose(start, stop):
            del self._nodes[self._idle.pop(page).key]

    def enter(self, sequence: Sequence) -> None:
        """Offer the sequence's newly computed full blocks for sharing."""
        size = self.block_tokens
        tokens = sequence.tokens
        while (stop := sequence.share_at) <= sequence.computed:
            key = (sequence.chain, tuple(tokens[stop - size : stop]))
            node = self._nodes.get(key)
            if node is None:
                self._numbers += 1
                node = Node(self._numbers, key, sequence.blocks[len(sequence.nodes)], users=1)
                self._nodes[key] = node
                sequence.nodes.append(node)
            else:
                sequence.nodes.append(None)
            sequence.chain = node.number
            sequence.share_at = stop + size

    def release(self, sequence: Sequence, now: float) -> None:
        """Give all blocks of the sequence back; no step in flight touches them."""
        nodes = sequence.nodes
        private = sequence.blocks[len(nodes) :]
        idle: list[int] = []
        for index in range(len(nodes) - 1, -1, -1):
            node = nodes[index]
            if node is None:
                private.append(sequence.blocks[index])
                continue
            node.users -= 1
            if node.users == 0:
                node.idle_since = now
                self._idle[node.page] = node
                idle.append(node.page)
        self._pool.give(private)
        self._pool.loosen(idle)
        sequence.blocks.clear()
        sequence.nodes.clear()
