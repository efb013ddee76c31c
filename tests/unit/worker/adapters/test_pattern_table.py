"""Module patterns: what they match, and that no set of them can cost more than its bound."""

import re
import time
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adex_proto.errors import AdapterUnsupported
from adex_worker.adapters.core import pattern_table
from adex_worker.adapters.core.pattern_table import PatternTable

ALPHABET = "ab1_.-"
PIECES = st.recursive(
    st.sampled_from(
        [
            *("a", "b", "1", "_", ".", r"\.", "^", "$", r"\d", r"\w", r"\D", r"\W", r"\s", r"\S"),
            *("[ab]", "[^a]", "[a-b1]", r"[\d.]", "[_-]", "[.|&]"),
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"({'|'.join(parts)})"),
        inner.map(lambda part: f"(?:{part})*"),
        inner.map(lambda part: f"({part})+"),
        inner.map(lambda part: f"(?:{part})?"),
    ),
    max_leaves=8,
)


@given(PIECES, st.lists(st.text(ALPHABET, max_size=7), max_size=8))
@settings(max_examples=400)
def test_a_key_matches_exactly_what_re_matches(key: str, paths: list[str]) -> None:
    table = PatternTable([key], field="rank_pattern", file="f")
    theirs = re.compile(rf"(.*\.)?({key})$")
    for path in paths:
        assert (table.key_for(path) == key) == (theirs.match(path) is not None), (key, path)


# `re` warns of sets within sets, which a later version may give another meaning.
@pytest.mark.filterwarnings("ignore::FutureWarning")
@given(st.text("ab.*+?()[]{},|^$\\-d12", max_size=10))
@settings(max_examples=500)
def test_a_key_that_both_accept_means_the_same_to_both(key: str) -> None:
    try:
        table = PatternTable([key], field="rank_pattern", file="f")
        theirs = re.compile(rf"(.*\.)?({key})$")
    except (AdapterUnsupported, re.error):
        return
    for path in ("", "a", "ab", "a.b", "aab1", "d-1"):
        assert (table.key_for(path) == key) == (theirs.match(path) is not None), (key, path)


def test_the_first_key_that_matches_speaks_for_a_module() -> None:
    table = PatternTable(["q_proj", r".*\.q_proj", "v_proj"], field="rank_pattern", file="f")
    assert table.key_for("model.layers.0.self_attn.q_proj") == "q_proj"
    assert table.key_for("model.layers.0.self_attn.v_proj") == "v_proj"
    assert table.key_for("model.layers.0.self_attn.k_proj") is None


def test_a_key_matches_whole_parts_of_the_path_only() -> None:
    table = PatternTable(["proj", "1.self_attn.q_proj"], field="rank_pattern", file="f")
    assert table.key_for("model.layers.0.self_attn.q_proj") is None
    assert table.key_for("model.layers.11.self_attn.q_proj") is None
    assert table.key_for("model.layers.1.self_attn.q_proj") == "1.self_attn.q_proj"


def test_comparisons_beyond_the_bound_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern_table, "COMPARISONS_MAX", 10_000)
    table = PatternTable(["(.*.*.*)*x", "y"], field="rank_pattern", file="f.json")
    paths = (f"model.layers.{layer}.{layer * 7919}.q_proj" for layer in range(10_000))
    with pytest.raises(AdapterUnsupported, match=r"`rank_pattern` in `f.json` needs more than"):
        deque(map(table.key_for, paths), maxlen=0)


def test_a_thousand_modules_with_a_pattern_each_resolve_within_seconds() -> None:
    paths = [f"model.layers.{layer}.{part}_proj" for layer in range(150) for part in "abcdefg"]
    table = PatternTable(paths, field="rank_pattern", file="f")
    started = time.monotonic()
    assert [table.key_for(path) for path in paths] == paths
    assert time.monotonic() - started < 10
