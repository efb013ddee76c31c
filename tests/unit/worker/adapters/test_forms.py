"""What adapters share that were trained alike: all that their config and header say."""

from typing import Any

import pytest
import torch

from adex_worker.adapters.core import form
from adex_worker.adapters.format import CheckedAdapter, Limits, read_adapter
from adex_worker.adapters.sources.local import LocalSource


def read(world: Any, name: str) -> CheckedAdapter:
    source = LocalSource([world.root])
    return read_adapter(
        source, source.resolve(world.key(name)), Limits(world.shape, 4, 64, 1 << 30)
    )


def test_adapters_trained_alike_share_a_form_and_no_number(world: Any) -> None:
    world.write("one", seed=1)
    world.write("other", seed=2)
    one, other = read(world, "one"), read(world, "other")
    assert one.form is other.form
    assert one.version.digest != other.version.digest
    assert not torch.equal(one.weights, other.weights)


@pytest.mark.parametrize("change", [{"rank": 4}, {"alpha": 7.0}, {"dtype": torch.float16}])
def test_one_that_differs_in_its_texts_is_read_by_itself(change: Any, world: Any) -> None:
    world.write("one", rank=8, alpha=16.0)
    world.write("other", **{"rank": 8, "alpha": 16.0} | change)
    one, other = read(world, "one").form, read(world, "other").form
    assert one is not other
    assert one.terms != other.terms


def test_texts_too_long_to_keep_are_read_each_time(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "_REMEMBERED_BYTES_MAX", 100)
    world.write("one")
    one, again = read(world, "one").form, read(world, "one").form
    assert one is not again
    assert one.terms == again.terms
