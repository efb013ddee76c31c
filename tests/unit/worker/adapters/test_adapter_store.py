"""The store moves adapters between tiers on the scheduler's word, if the word fits."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adex_kernels.layout import Group, LinearShape, ModelShape, Module
from adex_proto.adapter import AdapterKey, Tier
from adex_proto.errors import (
    ProtocolViolation,
    SourceUnavailable,
    ValidationError,
)
from adex_worker.adapters import device_tier
from adex_worker.testing import tiny_config, tiny_shape, write_random_adapter


def write(folder: Path, seed: int = 0, rank: int = 8) -> Path:
    return write_random_adapter(folder, tiny_shape(tiny_config()), seed=seed, rank=rank)


def test_an_adapter_goes_through_every_tier_and_back(world: Any) -> None:
    world.write("a")
    digest = world.page_in("a", slot=1, first_page=0)
    assert 1 in world.store.slots
    (held,) = world.store.held()
    assert held.tier is Tier.HOST
    world.store.evict(digest, Tier.DEVICE)
    assert 1 not in world.store.slots
    assert world.arena.adapter_pages == 0
    world.store.evict(digest, Tier.HOST)
    (held,) = world.store.held()
    assert held.tier is Tier.DISK
    world.store.evict(digest, Tier.DISK)
    assert world.store.held() == ()
    assert world.bundles == []
    world.page_in("a", slot=1, first_page=0)


def test_the_version_tells_what_the_bundle_takes(world: Any) -> None:
    world.write("a", rank=8)
    version = world.store.fetch(world.key("a"))
    q, kv, wide = 64, 32, 96
    a_elements = 8 * (3 * 64 + q + 2 * 64 + wide)
    b_elements = 8 * (q + kv + kv + 64 + wide + wide + 64)
    assert version.bundle_bytes == 2 * (a_elements + b_elements) * 4
    assert (version.rank_max, version.modules) == (8, 14)


def test_an_absent_module_costs_nothing(world: Any) -> None:
    shape = tiny_shape(tiny_config())
    write_random_adapter(world.root / "a", shape, rank=8, modules=[Module.V], layers=[1])
    version = world.store.fetch(world.key("a"))
    assert version.bundle_bytes == 8 * (64 + 32) * 4
    world.page_in("a", slot=1, first_page=0)
    present = [
        (layer, group)
        for layer in range(2)
        for group in Group
        if world.store.slots.group(1, layer, group) is not None
    ]
    assert present == [(1, Group.QKV)]
    ((rank_start, rank_stop, out_start, out_stop, b),) = world.store.slots.group(1, 1, 0).slices
    assert (rank_start, rank_stop, out_start, out_stop) == (0, 8, 96, 128)
    assert b.shape == (8, 32)


def test_a_slot_without_an_adapter_never_reads_as_the_base_model(world: Any) -> None:
    with pytest.raises(ProtocolViolation, match="slot 4"):
        world.store.slots.group(4, 0, Group.QKV)


def staged(world: Any, name: str = "a", **arguments: Any) -> tuple[str, int]:
    write(world.root / name, **arguments)
    version = world.store.fetch(world.key(name))
    world.store.stage(version.digest)
    return version.digest, world.arena.pages_for(version.bundle_bytes)


@pytest.mark.parametrize(
    ("slot", "first_page", "extra_pages", "words"),
    [
        (0, 0, 0, "slot 0"),
        (-1, 0, 0, "slot -1"),
        (1, -1, 0, "not a run inside"),
        (1, 250, 0, "not a run inside"),
        (1, 10**12, 0, "not a run inside"),
        (1, 0, 1, "takes 8 pages, the command gives 9"),
        (1, 0, -1, "takes 8 pages, the command gives 7"),
    ],
)
def test_a_page_in_that_does_not_fit_is_a_violation_and_changes_nothing(
    slot: int, first_page: int, extra_pages: int, words: str, world: Any
) -> None:
    digest, pages = staged(world)
    with pytest.raises(ProtocolViolation, match=words):
        world.store.page_in(digest, slot, first_page, pages + extra_pages)
    assert world.arena.adapter_pages == 0
    assert slot not in world.store.slots
    world.store.page_in(digest, 1, 0, pages)


def test_two_adapters_cannot_share_a_slot_or_a_page(world: Any) -> None:
    a, pages = staged(world, "a")
    b, _ = staged(world, "b", seed=1)
    world.store.page_in(a, 1, 10, pages)
    with pytest.raises(ProtocolViolation, match="slot 1"):
        world.store.page_in(b, 1, 100, pages)
    for first_page in (10, 10 - pages + 1, 10 + pages - 1):
        with pytest.raises(ProtocolViolation, match="overlap"):
            world.store.page_in(b, 2, first_page, pages)
    world.store.page_in(b, 2, 10 + pages, pages)
    assert world.arena.adapter_pages == 2 * pages


def test_an_adapter_is_on_the_device_once(world: Any) -> None:
    digest, pages = staged(world)
    world.store.page_in(digest, 1, 0, pages)
    with pytest.raises(ProtocolViolation, match="already on the device"):
        world.store.page_in(digest, 2, 100, pages)
    assert 2 not in world.store.slots


def test_commands_for_a_tier_the_adapter_is_not_in_are_violations(world: Any) -> None:
    world.write("a")
    digest = world.store.fetch(world.key("a")).digest
    with pytest.raises(ProtocolViolation, match="not in host memory"):
        world.store.page_in(digest, 1, 0, 8)
    with pytest.raises(ProtocolViolation, match="not on the device"):
        world.store.evict(digest, Tier.DEVICE)
    with pytest.raises(ProtocolViolation, match="ABSENT"):
        world.store.evict(digest, Tier.ABSENT)
    with pytest.raises(SourceUnavailable):
        world.store.stage("0" * 64)


def test_a_source_that_is_not_served_is_named_with_those_that_are(world: Any) -> None:
    with pytest.raises(ValidationError, match="`adapter_source` 's3' is not served") as refused:
        world.store.fetch(AdapterKey("", "s3", "s3://bucket/x"))
    assert refused.value.remedy == "Send one of: local"


def test_host_memory_is_never_exceeded(make_world: Any) -> None:
    world = make_world(host_bytes=100_000)
    a, _ = staged(world, "a")
    world.write("b", seed=1)
    b = world.store.fetch(world.key("b")).digest
    with pytest.raises(ProtocolViolation, match="59392 of 100000"):
        world.store.stage(b)
    world.store.evict(a, Tier.HOST)
    world.store.stage(b)
    assert world.store._host.bytes_used == 59392


def test_staging_what_is_staged_costs_nothing(world: Any) -> None:
    digest, _ = staged(world)
    copy = world.store._host.get(digest)
    world.store.stage(digest)
    assert world.store._host.get(digest) is copy


def test_the_device_is_released_and_the_other_tiers_stay(world: Any) -> None:
    a, pages = staged(world, "a")
    b, _ = staged(world, "b", seed=1)
    world.store.page_in(a, 1, 0, pages)
    world.store.page_in(b, 2, pages, pages)
    world.store.release_device()
    assert 1 not in world.store.slots
    assert world.arena.adapter_pages == 0
    assert [held.tier for held in world.store.held()] == [Tier.HOST, Tier.HOST]
    world.store.page_in(b, 1, 0, pages)


def test_a_copy_under_way_when_the_stream_ends_is_waited_for_and_not_published(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest, pages = staged(world)
    copying, go_on = threading.Event(), threading.Event()
    real_copy = device_tier.DeviceTier._copy

    def slow_copy(self: Any, *where: Any) -> Any:
        copying.set()
        assert go_on.wait(10)
        return real_copy(self, *where)

    monkeypatch.setattr(device_tier.DeviceTier, "_copy", slow_copy)
    with ThreadPoolExecutor(2) as pool:
        paging = pool.submit(world.store.page_in, digest, 1, 0, pages)
        assert copying.wait(10)
        releasing = pool.submit(world.store.release_device)
        time.sleep(0.05)
        assert not releasing.done()
        assert 1 not in world.store.slots
        go_on.set()
        releasing.result(10)
        with pytest.raises(ProtocolViolation, match="ended"):
            paging.result(10)
    assert 1 not in world.store.slots
    assert world.arena.adapter_pages == 0
    world.store.page_in(digest, 1, 0, pages)


def test_steps_may_read_while_other_threads_page_in_and_evict(world: Any) -> None:
    """The reader sees a whole adapter or none, and always the right one."""
    names = "abc"
    digests = [staged(world, name, seed=seed)[0] for seed, name in enumerate(names)]
    expected: list[float] = []
    for digest in digests:
        world.store.page_in(digest, 1, 0, 8)
        expected.append(checksum_of_slot(world, 1))
        world.store.evict(digest, Tier.DEVICE)
    assert len(set(expected)) == 3
    stop = threading.Event()

    def churn(index: int) -> None:
        while not stop.is_set():
            world.store.page_in(digests[index], index + 1, 8 * index, 8)
            time.sleep(0.002)
            world.store.evict(digests[index], Tier.DEVICE)

    seen = [0, 0, 0]
    with ThreadPoolExecutor(3) as pool:
        churning = [pool.submit(churn, index) for index in range(3)]
        deadline = time.monotonic() + 20
        while min(seen) < 20 and time.monotonic() < deadline:
            for index in range(3):
                with suppress(ProtocolViolation):
                    assert checksum_of_slot(world, index + 1) == expected[index]
                    seen[index] += 1
        stop.set()
        for done in churning:
            done.result(10)
    assert min(seen) >= 20


def checksum_of_slot(world: Any, slot: int) -> float:
    weights = [world.store.slots.group(slot, layer, group) for layer in (0, 1) for group in Group]
    return sum(float(w.a.sum()) + sum(float(part[4].sum()) for part in w.slices) for w in weights)


def test_a_model_of_mixed_ranks_and_shapes_keeps_every_matrix(make_world: Any) -> None:
    """Shapes that share no factor show every confusion of rows, columns and offsets."""
    sizes = ((24, 40), (24, 8), (24, 8), (40, 24), (24, 56), (24, 56), (56, 24))
    shape = ModelShape(3, tuple(LinearShape(*size) for size in sizes))
    world = make_world(shape=shape)
    ranks = {"q_proj": 3, "k_proj": 1, "layers.1.mlp.up_proj": 13, "down_proj": 5}
    write_random_adapter(world.root / "a", shape, rank=7, rank_pattern=ranks)
    world.page_in("a", slot=2, first_page=4)
    weights = world.store.slots.group(2, 1, Group.GATE_UP)
    assert weights.a.shape == (20, 24)
    assert [part[:4] for part in weights.slices] == [(0, 7, 0, 56), (7, 20, 56, 112)]
    assert [part[4].shape for part in weights.slices] == [(7, 56), (13, 56)]
