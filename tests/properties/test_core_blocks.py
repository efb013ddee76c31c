"""Shared prefixes: what is offered, found again, and given back."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from adex_proto.sampling import SamplingParams
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.sequence import Sequence, Tenant

SIZE = 4
PAGES = 16
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)
ROOTS = [("", ""), ("a", ""), ("", "d1")]


def sequence(number: int, tokens: list[int], tenant: str = "", digest: str = "") -> Sequence:
    return Sequence(
        number=number,
        payer=Tenant(tenant, 0),
        key=None,
        sampling=SamplingParams(max_new_tokens=1),
        prompt=tuple(tokens),
        arrived_at=0.0,
        ends=frozenset(),
        tokens=list(tokens),
        length_max=len(tokens) + 1,
        digest=digest,
    )


def begin(blocks: Blocks, one: Sequence) -> tuple[int, ...]:
    """Match, and take the rest; nothing is computed yet. Returns: the pages that were shared."""
    match = blocks.match((one.tenant, one.digest), one.tokens)
    blocks.adopt(one, match)
    rest = blocks.take(blocks.blocks_for(len(one.tokens)) - len(match.pages))
    assert rest is not None
    one.blocks.extend(rest)
    return match.pages


def compute(blocks: Blocks, one: Sequence) -> tuple[int, ...]:
    """Match, take the rest, compute everything. Returns: the pages that were shared."""
    shared = begin(blocks, one)
    one.computed = len(one.tokens)
    blocks.offer(one)
    return shared


def common_blocks(left: list[int], right: list[int]) -> int:
    same = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        same += 1
    return min(same, len(right) - 1) // SIZE


@given(TOKENS, TOKENS)
def test_a_prompt_finds_every_full_block_it_has_in_common_short_of_its_last_token(
    first: list[int], second: list[int]
) -> None:
    blocks = Blocks(PagePool(20), SIZE, share=True)
    compute(blocks, sequence(1, first))
    # A block counts as common only where the first sequence filled it.
    expected = min(common_blocks(first, second), len(first) // SIZE)
    assert len(compute(blocks, sequence(2, second))) == expected


@given(TOKENS, st.sampled_from([("a", ""), ("", "d1"), ("a", "d1")]))
def test_neither_tenants_nor_adapters_ever_share(tokens: list[int], other: tuple[str, str]) -> None:
    blocks = Blocks(PagePool(20), SIZE, share=True)
    compute(blocks, sequence(1, tokens))
    assert compute(blocks, sequence(2, tokens, *other)) == ()


@given(st.lists(TOKENS, max_size=8), st.data())
def test_pages_are_conserved_and_released_blocks_stay_findable_until_wanted(
    prompts: list[list[int]], data: st.DataObject
) -> None:
    pool = PagePool(60)
    blocks = Blocks(pool, SIZE, share=True)
    living: list[Sequence] = []
    for number, prompt in enumerate(prompts):
        one = sequence(number, prompt)
        compute(blocks, one)
        living.append(one)
        if data.draw(st.booleans()):
            blocks.release(living.pop(data.draw(st.integers(0, len(living) - 1))), 0.0)
    for one in living:
        blocks.release(one, 0.0)
    assert blocks.available == 60
    for prompt in prompts:
        assert len(blocks.match(("", ""), [*prompt, 9]).pages) == len(prompt) // SIZE
    assert blocks.take(60) is not None
    assert all(not blocks.match(("", ""), [*prompt, 9]).pages for prompt in prompts)
    assert not blocks.prefixes


@given(TOKENS, TOKENS, st.data())
def test_a_reclaimed_prefix_loses_its_end_before_its_beginning(
    first: list[int], second: list[int], data: st.DataObject
) -> None:
    pool = PagePool(20)
    blocks = Blocks(pool, SIZE, share=True)
    for number, tokens in enumerate((first, second)):
        one = sequence(number, tokens)
        compute(blocks, one)
        blocks.release(one, 0.0)
    assert blocks.take(pool.pages_free) is not None
    found = [len(blocks.match(("", ""), [*tokens, 9]).pages) for tokens in (first, second)]
    while blocks.pages_idle:
        count = data.draw(st.integers(1, blocks.pages_idle))
        assert blocks.take(count) is not None
        now = [len(blocks.match(("", ""), [*tokens, 9]).pages) for tokens in (first, second)]
        # What is left can still be found, all of it.
        assert max(now) <= blocks.pages_idle <= sum(now)
        assert all(after <= before for after, before in zip(now, found, strict=True))
        found = now


def test_the_longest_unused_goes_first_and_a_part_that_is_used_stays() -> None:
    blocks = Blocks(PagePool(6), SIZE, share=True)
    old, new = [1] * 8, [2] * 8
    for at, tokens in ((1.0, old), (2.0, new)):
        one = sequence(int(at), tokens)
        compute(blocks, one)
        blocks.release(one, at)
    assert blocks.idle_since == 1.0
    user = sequence(3, [*old[:4], 3])
    assert len(begin(blocks, user)) == 1
    # One page is free, one holds the rest of the old tokens, and two the new ones.
    assert blocks.available == 4
    assert blocks.take(2) is not None
    assert len(blocks.match(("", ""), [*old, 9]).pages) == 1
    assert len(blocks.match(("", ""), [*new, 9]).pages) == 2
    assert blocks.idle_since == 2.0


def test_a_prefix_in_use_again_is_not_taken() -> None:
    blocks = Blocks(PagePool(4), SIZE, share=True)
    for number in (1, 2):
        one = sequence(number, [number] * 4)
        compute(blocks, one)
        blocks.release(one, float(number))
    user = sequence(3, [1] * 5)
    assert len(begin(blocks, user)) == 1
    assert blocks.take(3) is None
    assert blocks.take(2) is not None
    assert len(blocks.match(("", ""), [1] * 5).pages) == 1


def test_a_run_taken_out_of_a_prefix_frees_what_followed_from_it() -> None:
    pool = PagePool(12)
    blocks = Blocks(pool, SIZE, share=True)
    for number, tokens in enumerate(([1] * 16, [1] * 8 + [2] * 8)):
        one = sequence(number, tokens)
        compute(blocks, one)
        blocks.release(one, 0.0)
    second = blocks.match(("", ""), [1] * 17).pages[1]
    free = pool.pages_free
    blocks.reclaim(second, second + 1)
    # Of six blocks the first stays, and the taken one is not free.
    assert pool.pages_free == free + 4
    assert blocks.pages_idle == 1
    assert len(blocks.match(("", ""), [1] * 17).pages) == 1


def test_without_sharing_nothing_is_offered() -> None:
    blocks = Blocks(PagePool(20), SIZE, share=False)
    compute(blocks, sequence(1, [1] * 8))
    assert compute(blocks, sequence(2, [1] * 8)) == ()


def test_a_question_about_prefixes_changes_nothing() -> None:
    blocks = Blocks(PagePool(4), SIZE, share=True)
    one = sequence(1, [1] * 8)
    compute(blocks, one)
    blocks.release(one, 0.0)
    before = blocks.available, blocks.pages_idle
    blocks.match(("", ""), [1] * 8)
    assert (blocks.available, blocks.pages_idle) == before


class SharingAgainstContents(RuleBasedStateMachine):
    """Sequences begin, are computed, write and end, and others take their pages, in any order.

    Witness: what was written into each page. A page that is found must hold the very tokens asked
    for, behind the very tokens they follow from; and what living sequences have offered is found.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(PAGES)
        self.blocks = Blocks(self.pool, SIZE, share=True)
        self.living: list[Sequence] = []
        self.taken: list[list[int]] = []
        self.contents: dict[int, tuple[tuple[str, str], tuple[int, ...]]] = {}
        self.numbers = 0

    def write(self, one: Sequence) -> None:
        """The worker writes the blocks that are computed; those that others use it leaves alone."""
        root = one.tenant, one.digest
        for block in range(one.computed // SIZE):
            content = root, tuple(one.tokens[: (block + 1) * SIZE])
            if block < one.offered:
                assert self.contents[one.blocks[block]] == content
            self.contents[one.blocks[block]] = content

    @rule(tokens=TOKENS, root=st.sampled_from(ROOTS), blindly=st.booleans())
    def begin(self, tokens: list[int], root: tuple[str, str], blindly: bool) -> None:
        self.numbers += 1
        one = sequence(self.numbers, tokens, *root)
        match = self.blocks.match(root, one.tokens)
        for block, page in enumerate(match.pages):
            assert self.contents[page] == (root, tuple(tokens[: (block + 1) * SIZE]))
            assert not self.pool.is_free(page)
        idle = sum(self.pool.is_loose(page) for page in match.pages)
        assert match.idle == idle
        if blindly:
            match = self.blocks.match(root, [tokens[0]])
        need = self.blocks.blocks_for(len(tokens)) - len(match.pages)
        if need + match.idle > self.blocks.available:
            return
        self.blocks.adopt(one, match)
        pages = self.blocks.take(need)
        assert pages is not None
        one.blocks.extend(pages)
        self.living.append(one)

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.living))
        one.computed = data.draw(st.integers(one.computed, len(one.tokens)))
        self.write(one)
        self.blocks.offer(one)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), token=st.integers(0, 1))
    def answer(self, data: st.DataObject, token: int) -> None:
        one = data.draw(st.sampled_from(self.living))
        if self.blocks.blocks_for(len(one.tokens) + 1) > len(one.blocks):
            pages = self.blocks.take(1)
            if pages is None:
                return
            one.blocks.extend(pages)
        one.tokens.append(token)

    @precondition(lambda self: self.living)
    @rule(data=st.data(), computed=st.booleans())
    def end(self, data: st.DataObject, computed: bool) -> None:
        one = self.living.pop(data.draw(st.integers(0, len(self.living) - 1)))
        if computed:
            one.computed = len(one.tokens)
            self.write(one)
        self.blocks.release(one, float(self.numbers))
        assert not one.blocks

    @rule(count=st.integers(1, 12))
    def take(self, count: int) -> None:
        pages = self.blocks.take(count)
        if pages is not None:
            self.taken.append(pages)

    @rule(count=st.integers(1, 12))
    def reclaim(self, count: int) -> None:
        start = self.pool.find_loose(count)
        if start is not None:
            self.blocks.reclaim(start, start + count)
            self.taken.append(list(range(start, start + count)))

    @precondition(lambda self: self.taken)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.pool.give(self.taken.pop(data.draw(st.integers(0, len(self.taken) - 1))))

    @invariant()
    def what_the_living_offer_is_found_and_every_page_has_one_owner(self) -> None:
        owned = [page for pages in self.taken for page in pages]
        for one in self.living:
            offered = one.tokens[: one.offered * SIZE]
            match = self.blocks.match((one.tenant, one.digest), [*offered, 9])
            assert len(match.pages) == one.offered
            assert match.idle == 0
            owned += one.blocks[one.offered :]
        for run in self.blocks.prefixes:
            owned += run.pages
            idle = [self.pool.is_loose(page) for page in run.pages]
            assert idle == [run.users == 0] * len(run.pages)
            assert sum(one.users for one in run.below.values()) <= run.users
            assert run.pages or run.users or run.below
        assert len(set(owned)) == len(owned)
        assert len(owned) == PAGES - self.pool.pages_free
        loose = sum(self.pool.is_loose(page) for page in range(PAGES))
        assert loose == self.blocks.available
        # Whatever else there is can be had: nobody keeps a page that no living sequence reads.
        read = {page for one in self.living for page in one.blocks}
        assert loose == PAGES - len(read) - sum(map(len, self.taken))


TestSharingAgainstContents = SharingAgainstContents.TestCase
