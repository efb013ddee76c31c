"""A key is read once for as long as its files stay the same."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterUnsupported,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters.bundle import pack
from adex_worker.adapters.format import read_adapter
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter

INTAKE = "adex_worker.adapters.intake"


def write(folder: Path, seed: int = 0, rank: int = 8) -> Path:
    return write_random_adapter(folder, tiny_shape(tiny_config()), seed=seed, rank=rank)


def test_an_unknown_source_is_refused_with_those_there_are(world: Any) -> None:
    with pytest.raises(ValidationError, match=r"`adapter_source` 'hub'.*local") as caught:
        world.store.fetch(AdapterKey("", "hub", "some/adapter"))
    assert caught.value.field == "adapter_source"
    assert "local" in str(caught.value.remedy)


def test_concurrent_fetches_of_one_key_read_it_once(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("a")
    reads: list[str] = []

    def counted(source: Any, resolved: Any, limits: Any) -> Any:
        reads.append(resolved.location)
        time.sleep(0.02)
        return read_adapter(source, resolved, limits)

    monkeypatch.setattr(f"{INTAKE}.read_adapter", counted)
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(world.store.fetch, [world.key("a")] * 32))
    assert len(set(versions)) == 1
    assert len(reads) == 1


def test_keys_of_the_same_content_share_one_bundle(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[str] = []

    def counted(adapter: Any, dtype: torch.dtype) -> torch.Tensor:
        packed.append(adapter.version.digest)
        return pack(adapter, dtype)

    monkeypatch.setattr(f"{INTAKE}.pack", counted)
    names = [f"a{n}" for n in range(6)]
    for name in names:
        write(world.root / name)
    with ThreadPoolExecutor(6) as pool:
        versions = list(pool.map(world.store.fetch, map(world.key, names)))
    assert len(set(versions)) == 1
    assert len(packed) == 1
    assert len(world.bundles) == 1


def test_an_unchanged_adapter_is_not_read_again_and_a_changed_one_is(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.write("a")
    first = world.store.fetch(world.key("a"))
    with monkeypatch.context() as patch:
        patch.setattr(f"{INTAKE}.read_adapter", None)
        started = time.perf_counter()
        for _ in range(100):
            assert world.store.fetch(world.key("a")) == first
        assert time.perf_counter() - started < 1.0
    world.write("a", seed=1)
    assert world.store.fetch(world.key("a")).digest != first.digest


def test_a_refused_adapter_is_refused_again_unread_until_it_changes(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.write("a")
    write_random_adapter(folder, world.shape, config={"use_dora": True})
    refusals: list[AdapterUnsupported] = []
    for _ in range(3):
        with pytest.raises(AdapterUnsupported) as caught:
            world.store.fetch(world.key("a"))
        refusals.append(caught.value)
        monkeypatch.setattr(f"{INTAKE}.read_adapter", None)
    assert len({(str(error), error.field, error.remedy) for error in refusals}) == 1
    assert len(set(map(id, refusals))) == 3
    monkeypatch.undo()
    write(folder)
    assert world.store.fetch(world.key("a")).modules == 14


def test_a_failed_fetch_is_tried_again_when_asked_again(world: Any) -> None:
    folder = world.write("a")
    config = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text("{")
    for _ in range(2):
        with pytest.raises(Exception, match="not valid JSON"):
            world.store.fetch(world.key("a"))
    (folder / "adapter_config.json").write_text(config)
    assert world.store.fetch(world.key("a")).modules == 14
    assert len(world.store._locks) == 0


def test_a_file_that_changes_while_it_is_read_is_not_believed(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.write("a")
    weights = folder / "adapter_model.safetensors"
    other = world.write("b", seed=1) / "adapter_model.safetensors"
    source = world.store._bringer._sources["local"]
    real_open = source.open

    def open_then_rewrite(resolved: Any, name: str) -> Any:
        stream = real_open(resolved, name)
        if name == weights.name:
            weights.write_bytes(other.read_bytes())
        return stream

    monkeypatch.setattr(source, "open", open_then_rewrite)
    with pytest.raises(SourceUnavailable, match="changed while it was read") as caught:
        world.store.fetch(world.key("a"))
    assert caught.value.retry_after_s
    assert world.bundles == []


def test_a_file_that_is_cut_while_it_is_read_is_not_believed(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = world.write("a")
    source = world.store._bringer._sources["local"]
    real_open = source.open

    def open_then_cut(resolved: Any, name: str) -> Any:
        stream = real_open(resolved, name)
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])
        return stream

    monkeypatch.setattr(source, "open", open_then_cut)
    with pytest.raises(SourceUnavailable, match="changed while it was read"):
        world.store.fetch(world.key("a"))


def test_keys_beyond_the_memory_are_read_again_and_nothing_else_changes(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(world.store._bringer._memory, "_keys_max", 2)
    for seed, name in enumerate("abc"):
        write(world.root / name, seed=seed)
    first = [world.store.fetch(world.key(name)) for name in "abc"]
    assert len(world.store._bringer._memory._known) == 2
    assert len(world.store._bringer._memory._keys) == 2
    assert [world.store.fetch(world.key(name)) for name in "abc"] == first
