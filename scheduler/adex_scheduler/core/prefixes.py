"""Blocks found again by the tokens they hold: a radix tree whose edges are runs of blocks.

Rooted in tenant and adapter digest, so neither tenants nor adapters ever share. A sequence stands
at the end of one node and counts as a user of every node above it, so whatever is below a node that
nobody uses is unused too, and fell idle no later: the longest idle is always a leaf. A run is taken
from its end, so a block never outlives the ones it follows from.

What is done for a sequence is done once for a run, not for each block: after RadixAttention of
SGLang (Zheng et al. 2023, arXiv:2312.07104), whose nodes lie on tokens where these lie on blocks.
"""

from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

# Where the blocks of a tenant and an adapter's digest ("" for the base model) begin.
Root = tuple[str, str]
# What a node is found by below another: a root, or the tokens of its first block.
Key = Root | tuple[int, ...]


@dataclass(slots=True, eq=False)
class Prefix:
    """A run of blocks that follow each other: their tokens, a page for each, and who goes on below.

    `users` are the sequences that stand at its end or below. Where there are none, there have been
    none since `idle_since`. A root has no blocks.
    """

    above: "Prefix | None"
    key: Key
    tokens: list[int] = field(default_factory=list[int])
    pages: list[int] = field(default_factory=list[int])
    users: int = 0
    below: "dict[Key, Prefix]" = field(default_factory=dict[Key, "Prefix"])
    idle_since: float = 0.0


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known beginning of some tokens: `pages` of its blocks, of which nobody uses the
    last `idle`. It ends behind `within` blocks of the node `last`; None: it has none.
    """

    last: Prefix | None
    within: int
    pages: tuple[int, ...]
    idle: int


NO_MATCH = Match(None, 0, (), 0)


class PrefixTree:
    """All blocks on offer, each of `block_tokens` tokens. Answers tell who owns which page."""

    def __init__(self, pages: int, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._top = Prefix(None, ())
        # Nodes without users, in the order in which they leave.
        self._idle: OrderedDict[Prefix, None] = OrderedDict()
        # By page, the node that got it last.
        self._holders = [self._top] * pages
        self.pages_idle = 0

    @property
    def idle_since(self) -> float | None:
        """Since when nobody has used the blocks that leave first; None where none are idle."""
        return next(iter(self._idle)).idle_since if self._idle else None

    @property
    def nodes(self) -> list[Prefix]:
        """Every root and every run of blocks, for checks."""
        found = list(self._top.below.values())
        for node in found:
            found += node.below.values()
        return found

    def match(self, root: Root, tokens: Items[int], blocks_max: int) -> Match:
        """What is known of the first `blocks_max` blocks of `tokens`. Changes nothing."""
        size = self._block_tokens
        last = self._top.below.get(root)
        pages: list[int] = []
        idle = within = 0
        while last is not None and len(pages) < blocks_max and within == len(last.pages):
            start = len(pages) * size
            node = last.below.get(tuple(tokens[start : start + size]))
            if node is None:
                break
            most = min(len(node.pages), blocks_max - len(pages))
            last, within = node, self._common(node, tokens, start, most)
            pages += node.pages[:within]
            if not node.users:
                idle += within
        return Match(last, within, tuple(pages), idle)

    def use(self, root: Root, match: Match) -> tuple[Prefix, list[int]]:
        """One more sequence begins with what was matched, and nothing has changed since.

        Returns: where it stands, and the pages that were idle until now.
        """
        last = match.last or self._top.below.get(root)
        if last is None:
            last = self._top.below[root] = Prefix(self._top, root)
        elif match.within < len(last.pages):
            last = self._split(last, match.within)
        woken: list[int] = []
        node: Prefix | None = last
        while node is not None:
            woken += self._wake(node)
            node = node.above
        return last, woken

    def goes_on(self, stand: Prefix, tokens: list[int], blocks: int) -> bool:
        """Whether somebody's blocks go on from there as the tokens do behind so many blocks."""
        start = blocks * self._block_tokens
        return tuple(tokens[start : start + self._block_tokens]) in stand.below

    def extend(
        self, stand: Prefix, tokens: list[int], pages: list[int], first: int, stop: int
    ) -> tuple[Prefix, list[int], list[int]]:
        """Offer the blocks [first, stop) of all its `tokens` and `pages`, with which one user goes
        on from where it stands.

        Returns: where it stands now; the pages whose blocks were on offer already, so that nobody
        else will read them; and the pages that were idle until now.
        """
        size = self._block_tokens
        double: list[int] = []
        woken: list[int] = []
        while first < stop:
            start = first * size
            key = tuple(tokens[start : start + size])
            node = stand.below.get(key)
            if node is None:
                new_tokens, new_pages = tokens[start : stop * size], pages[first:stop]
                return self._grow(stand, key, new_tokens, new_pages), double, woken
            within = self._common(node, tokens, start, min(len(node.pages), stop - first))
            double += pages[first : first + within]
            first += within
            stand = node if within == len(node.pages) else self._split(node, within)
            woken += self._wake(stand)
        return stand, double, woken

    def leave(self, stand: Prefix, now: float) -> list[int]:
        """A user is gone from where it stood. Returns: the pages that are idle from now on."""
        fallen: list[int] = []
        node: Prefix | None = stand
        while node is not None:
            node.users -= 1
            above = node.above
            if not node.users and node.pages:
                node.idle_since = now
                self._idle[node] = None
                fallen += node.pages
            self._forget_empty(node)
            node = above
        self.pages_idle += len(fallen)
        return fallen

    def take(self, count: int) -> list[int]:
        """Pages of the longest idle blocks, which are on offer no more; `count` of `pages_idle`."""
        taken: list[int] = []
        while (missing := count - len(taken)) > 0:
            node = next(iter(self._idle))
            taken += self._shorten(node, max(len(node.pages) - missing, 0))
        return taken

    def cut(self, page: int) -> list[int]:
        """Take back the idle block on this page. Returns: its page, and those of what follows."""
        node = self._holders[page]
        dropped: list[int] = []
        below = list(node.below.values())
        for one in below:
            below += one.below.values()
        for one in below:
            dropped += self._shorten(one, 0)
        return dropped + self._shorten(node, node.pages.index(page))

    def _common(self, node: Prefix, tokens: Items[int], start: int, most: int) -> int:
        """How many of the node's first `most` blocks are those from `start` on; the first is."""
        size = self._block_tokens
        low, high, tried = 1, most + 1, most
        while high - low > 1:
            if node.tokens[: tried * size] == list(tokens[start : start + tried * size]):
                low = tried
            else:
                high = tried
            tried = (low + high) // 2
        return low

    def _wake(self, node: Prefix) -> list[int]:
        """One more user. Returns: its pages, if it is the first."""
        node.users += 1
        if node.users > 1 or not node.pages:
            return []
        self._idle.pop(node, None)
        self.pages_idle -= len(node.pages)
        return node.pages

    def _grow(self, stand: Prefix, key: Key, tokens: list[int], pages: list[int]) -> Prefix:
        """Put a run that is new below where its one user stands; that user's own run grows."""
        if stand.users == 1 and stand.pages and not stand.below:
            stand.tokens += tokens
            stand.pages += pages
        else:
            above = stand
            stand = above.below[key] = Prefix(above, key, tokens, pages, users=1)
        self._note_holder(stand, pages)
        return stand

    def _split(self, node: Prefix, blocks: int) -> Prefix:
        """Make the node's first blocks one of their own, whom somebody uses next. Returns: that."""
        above, tokens = node.above, blocks * self._block_tokens
        upper = Prefix(above, node.key, node.tokens[:tokens], node.pages[:blocks], node.users)
        assert above is not None
        above.below[node.key] = upper
        del node.tokens[:tokens]
        del node.pages[:blocks]
        node.above, node.key = upper, tuple(node.tokens[: self._block_tokens])
        upper.below[node.key] = node
        self._note_holder(upper, upper.pages)
        return upper

    def _note_holder(self, node: Prefix, pages: list[int]) -> None:
        holders = self._holders
        for page in pages:
            holders[page] = node

    def _shorten(self, node: Prefix, keep: int) -> list[int]:
        """Take the blocks behind an idle node's first `keep`, which nothing follows any more.

        Returns: their pages.
        """
        pages = node.pages[keep:]
        del node.pages[keep:]
        del node.tokens[keep * self._block_tokens :]
        self.pages_idle -= len(pages)
        if not keep:
            del self._idle[node]
            self._forget_empty(node)
        return pages

    def _forget_empty(self, node: Prefix) -> None:
        """Take nodes out that have no blocks, no users and nothing below: the last, or a root."""
        above = node.above
        while above is not None and not (node.pages or node.users or node.below):
            del above.below[node.key]
            node.above = None
            node, above = above, above.above
