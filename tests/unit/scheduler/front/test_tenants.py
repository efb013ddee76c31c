"""From a caller's name for an adapter to the key it stands for."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adex_proto.adapter import AdapterKey
from adex_proto.errors import ValidationError
from adex_scheduler.front.schema import AdapterName
from adex_scheduler.front.tenants import Directory

DIRECTORY = Directory(("base",), {"./odd": AdapterKey("", "local", "/adapters/odd")})


def key_of(name: str, source: str | None = None) -> AdapterKey | None:
    return DIRECTORY.key_of(AdapterName(name, source), "")


@given(st.lists(st.sampled_from(["a", "b c", ".", "..", "", "...", "é"]), min_size=1))
def test_every_way_to_write_a_path_is_one_name(parts: list[str]) -> None:
    written = "/".join(parts)
    kept = [part for part in parts if part not in ("", ".")]
    if written and written == written.strip() and kept:
        key = key_of(written)
        assert key is not None
        assert key == key_of(key.name)
        assert key.name.startswith("/") == written.startswith("/")
        # What the system itself makes of both, without links.
        assert posixpath.normpath(key.name).lstrip("/") == posixpath.normpath(written).lstrip("/")
        assert [part for part in key.name.split("/") if part] == kept


def test_parents_stay_for_the_worker_to_refuse() -> None:
    assert key_of("./a//../b/") == AdapterKey("", "local", "a/../b")
    assert key_of("..") == AdapterKey("", "local", "..")


def test_an_alias_wins_as_it_is_written_and_other_sources_keep_their_ids() -> None:
    assert key_of("./odd") == AdapterKey("", "local", "/adapters/odd")
    assert key_of("org/./x@main", "hub") == AdapterKey("", "hub", "org/./x", "main")


@pytest.mark.parametrize("name", [" a", "a ", "\t"])
def test_a_padded_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError) as caught:
        key_of(name)
    assert caught.value.field == "adapter_id"
