"""Which adapters a server can name, and under which names."""

from pathlib import Path

import pytest

from adex_proto.adapter import AdapterKey, Tier
from adex_scheduler.engine import AdapterStatus
from adex_scheduler.front.catalogue import find_local_adapters, known_adapters
from adex_scheduler.front.tenants import Directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """tmp/{one, team/two, .hidden} hold adapters; tmp/empty and tmp/a/b/c/deep do not count."""
    for name in ("one", "team/two", ".hidden", "a/b/c/deep"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    return tmp_path


def status(name: str, source: str = "local", tier: Tier = Tier.DEVICE) -> AdapterStatus:
    return AdapterStatus(AdapterKey("", source, name), "d" * 64, tier, 4096, 8, 0, 0.0)


def test_adapters_are_found_below_the_root_and_no_deeper_than_owner_and_name(root: Path) -> None:
    assert find_local_adapters([str(root)]) == (str(root / "one"), str(root / "team" / "two"))


def test_a_root_that_is_itself_an_adapter_and_one_that_is_missing_do_no_harm(root: Path) -> None:
    roots = [str(root / "one"), str(root / "nowhere")]
    assert find_local_adapters(roots) == (str(root / "one"),)


def test_folders_in_a_ring_end(root: Path) -> None:
    (root / "empty" / "again").symlink_to(root)
    found = find_local_adapters([str(root)])
    assert str(root / "one") in found


def test_one_adapter_has_one_card_whatever_names_it_goes_by(root: Path) -> None:
    aliases = {"friendly": AdapterKey("", "local", str(root / "one"))}
    cards = known_adapters(
        Directory(("base",), aliases),
        [str(root)],
        find_local_adapters([str(root)]),
        [status("one"), status(str(root / "team" / "two")), status("team/two", tier=Tier.HOST)],
    )
    assert [(card.name, card.tier) for card in cards] == [
        ("friendly", "device"),
        ("team/two", "device"),
    ]


def test_adapters_of_other_sources_keep_their_ids(root: Path) -> None:
    cards = known_adapters(
        Directory(("base",)), [str(root)], (), [status("org/name", "hub", Tier.DISK)]
    )
    assert [(card.name, card.source, card.tier) for card in cards] == [("org/name", "hub", "disk")]


def test_what_nobody_has_read_has_no_bytes_and_no_rank(root: Path) -> None:
    [card, _] = known_adapters(
        Directory(("base",)), [str(root)], find_local_adapters([str(root)]), []
    )
    assert (card.name, card.tier, card.bundle_bytes, card.rank) == ("one", "absent", None, None)
