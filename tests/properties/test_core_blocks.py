"""Shared prefixes: what is offered, found again, and given back."""

from hypothesis import given
from hypothesis import strategies as st

from adex_proto.sampling import SamplingParams
from adex_scheduler.core.block_table import Blocks
from adex_scheduler.core.pool import PagePool
from adex_scheduler.core.sequence import Sequence, Tenant

SIZE = 4
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=20)


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


def compute(blocks: Blocks, one: Sequence) -> list[int]:
    """Match, take the rest, compute everything. Returns: the pages that were shared."""
    nodes = blocks.match((one.tenant, one.digest), one.tokens)
    blocks.adopt(one, nodes)
    rest = blocks.take(blocks.blocks_for(len(one.tokens)) - len(nodes))
    assert rest is not None
    one.blocks.extend(rest)
    one.computed = len(one.tokens)
    blocks.enter(one)
    return [node.page for node in nodes]


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
    assert compute(blocks, sequence(2, tokens, *other)) == []


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
        assert len(blocks.match(("", ""), [*prompt, 9])) == len(prompt) // SIZE
    assert blocks.take(60) is not None
    assert all(not blocks.match(("", ""), [*prompt, 9]) for prompt in prompts)


@given(TOKENS, TOKENS)
def test_a_reclaimed_prefix_loses_its_end_before_its_beginning(
    first: list[int], second: list[int]
) -> None:
    blocks = Blocks(PagePool(20), SIZE, share=True)
    for number, tokens in enumerate((first, second)):
        one = sequence(number, tokens)
        compute(blocks, one)
        blocks.release(one, 0.0)
    while blocks.available > blocks.pages_idle:
        assert blocks.take(1)
    while blocks.pages_idle:
        parents = {node.key[0] for node in blocks.nodes}
        numbers = {node.number for node in blocks.nodes}
        assert all(isinstance(parent, tuple) or parent in numbers for parent in parents)
        assert blocks.take(1)


def test_without_sharing_nothing_is_offered() -> None:
    blocks = Blocks(PagePool(20), SIZE, share=False)
    compute(blocks, sequence(1, [1] * 8))
    assert compute(blocks, sequence(2, [1] * 8)) == []


def test_a_question_about_prefixes_changes_nothing() -> None:
    blocks = Blocks(PagePool(4), SIZE, share=True)
    one = sequence(1, [1] * 8)
    compute(blocks, one)
    blocks.release(one, 0.0)
    before = blocks.available, blocks.pages_idle
    blocks.match(("", ""), [1] * 8)
    assert (blocks.available, blocks.pages_idle) == before
