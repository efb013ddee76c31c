"""Sequences that begin with the same tokens at the same time."""

from adex_scheduler.core.limits import Limits
from adex_scheduler.testing.desk import Desk


def test_a_sequence_that_computed_what_another_did_too_needs_no_more_room_than_alone() -> None:
    desk = Desk(Limits(watermark_fraction=0.0), pages=12)
    prompt = [5] * 17
    desk.arrive(prompt=prompt, new=1)
    # Begins before the blocks of the first are on offer, and fills the device by itself.
    alone = desk.arrive(prompt=prompt, new=12 * 4 - 17 + 1)
    desk.settle()
    assert desk.tokens[alone] == desk.expected(alone)


def test_what_two_have_computed_alike_is_offered_once_and_their_answers_are_found_again() -> None:
    desk = Desk(pages=64)
    prompt = [5] * 17
    first, second = (desk.arrive(prompt=[*prompt, last], new=8) for last in (1, 2))
    desk.settle()
    blocks = desk.core.blocks
    for number, last in ((first, 1), (second, 2)):
        known = [*prompt, last, *desk.tokens[number]]
        assert len(blocks.match(("", ""), [*known, 0]).pages) == (len(known) - 1) // 4
    # Four blocks in common, and two of each one's own.
    assert blocks.pages_idle == 8
    assert desk.core.pool.pages_free == 56
