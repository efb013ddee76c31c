"""Whatever the order of commands: no byte is lost or owned twice, and views tell the truth."""

import shutil
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from adex_kernels.layout import Group, LinearShape, ModelShape, Module
from adex_proto.adapter import AdapterKey, AdapterVersion, Tier
from adex_proto.errors import ProtocolViolation
from adex_worker.adapters.arena import Arena
from adex_worker.adapters.byte_views import byte_view
from adex_worker.testing import adapter_store, write_random_adapter

SHAPE = ModelShape(
    2,
    tuple(
        LinearShape(*sizes)
        for sizes in ((16, 16), (16, 8), (16, 8), (16, 16), (16, 24), (16, 24), (24, 16))
    ),
)
NAMES = "abcd"
PAGES, PAGE_BYTES = 48, 1024
HOST_BYTES = 24_000
SLOTS = 4


class Tiers(RuleBasedStateMachine):
    """Commands as a scheduler might send them, some of which no sound scheduler would."""

    @initialize(dtype=st.sampled_from([torch.float32, torch.bfloat16]))
    def build(self, dtype: torch.dtype) -> None:
        self.folder = Path(tempfile.mkdtemp())
        for seed, name in enumerate(NAMES):
            write_random_adapter(
                self.folder / "root" / name,
                SHAPE,
                rank=seed + 1,
                modules=list(Module)[seed:],
                seed=seed,
            )
        self.arena = Arena(pages=PAGES, page_bytes=PAGE_BYTES, dtype=dtype, device="cpu")
        self.store = adapter_store(
            cache_dir=self.folder / "cache",
            roots=[self.folder / "root"],
            shape=SHAPE,
            dtype=dtype,
            arena=self.arena,
            host_bytes=HOST_BYTES,
            disk_bytes=1 << 20,
            rank_max=8,
        )
        self.versions: dict[str, AdapterVersion] = {}
        self.disk: set[str] = set()
        self.host: set[str] = set()
        self.device: dict[str, tuple[int, int]] = {}
        self.first_seen: dict[str, bytes] = {}
        for name in NAMES:
            self.fetch(name)

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    @rule(name=st.sampled_from(NAMES))
    def fetch(self, name: str) -> None:
        version = self.store.fetch(AdapterKey("", "local", name))
        assert self.versions.setdefault(name, version) == version
        self.disk.add(name)

    @rule(name=st.sampled_from(NAMES))
    def stage(self, name: str) -> None:
        used = sum(self.versions[other].bundle_bytes for other in self.host)
        fits = name in self.host or used + self.versions[name].bundle_bytes <= HOST_BYTES
        if name not in self.host:
            # A bundle that is gone from the disk is made again from its key.
            self.disk.add(name)
        try:
            self.store.stage(self.versions[name].digest)
        except ProtocolViolation:
            assert not fits
        else:
            assert fits
            self.host.add(name)

    @rule(
        name=st.sampled_from(NAMES),
        slot=st.integers(-1, SLOTS),
        first_page=st.integers(-1, PAGES),
    )
    def page_in(self, name: str, slot: int, first_page: int) -> None:
        version = self.versions[name]
        pages = self.arena.pages_for(version.bundle_bytes)
        run = range(first_page, first_page + pages)
        allowed = (
            name in self.host
            and name not in self.device
            and slot > 0
            and all(slot != taken for taken, _ in self.device.values())
            and first_page >= 0
            and run.stop <= PAGES
            and not any(page in owned for page in run for owned in self.runs())
        )
        try:
            self.store.page_in(version.digest, slot, first_page, pages)
        except ProtocolViolation:
            assert not allowed
        else:
            assert allowed
            self.device[name] = slot, first_page

    @rule(name=st.sampled_from(NAMES))
    def evict_from_device(self, name: str) -> None:
        try:
            self.store.evict(self.versions[name].digest, Tier.DEVICE)
        except ProtocolViolation:
            assert name not in self.device
        else:
            del self.device[name]

    @rule(name=st.sampled_from(NAMES), tier=st.sampled_from([Tier.HOST, Tier.DISK]))
    def evict_below(self, name: str, tier: Tier) -> None:
        self.store.evict(self.versions[name].digest, tier)
        (self.host if tier is Tier.HOST else self.disk).discard(name)

    @rule()
    @precondition(lambda self: bool(self.device))
    def end_of_stream(self) -> None:
        self.store.release_device()
        self.device.clear()

    def runs(self) -> list[range]:
        return [
            range(first, first + self.arena.pages_for(self.versions[name].bundle_bytes))
            for name, (_, first) in self.device.items()
        ]

    @invariant()
    def every_page_is_free_or_owned_once(self) -> None:
        if not hasattr(self, "device"):
            return
        owned = [page for run in self.runs() for page in run]
        assert len(owned) == len(set(owned)) == self.arena.adapter_pages
        assert [p for p in range(PAGES) if self.arena.holds_adapter(p)] == sorted(owned)

    @invariant()
    def the_tiers_hold_what_the_commands_put_there(self) -> None:
        if not hasattr(self, "device"):
            return
        expected = {
            self.versions[name].digest: Tier.HOST if name in self.host else Tier.DISK
            for name in self.disk | self.host
        }
        assert {held.version.digest: held.tier for held in self.store.held()} == expected
        used = sum(self.versions[name].bundle_bytes for name in self.host)
        assert self.store._host.bytes_used == used
        for slot in range(1, SLOTS + 1):
            assert (slot in self.store.slots) == any(
                slot == taken for taken, _ in self.device.values()
            )

    @invariant()
    def an_adapter_reads_the_same_wherever_and_however_often_it_is_paged_in(self) -> None:
        if not hasattr(self, "device"):
            return
        for name, (slot, first_page) in self.device.items():
            size = self.versions[name].bundle_bytes
            start = first_page * PAGE_BYTES
            whole = bytes(byte_view(self.arena.bytes[start : start + size]))
            seen = whole + b"".join(self.matrices(slot))
            assert self.first_seen.setdefault(name, seen) == seen

    def matrices(self, slot: int) -> list[bytes]:
        found: list[bytes] = []
        for layer in range(SHAPE.layers):
            for group in Group:
                weights = self.store.slots.group(slot, layer, group)
                if weights is not None:
                    found.append(bytes(byte_view(weights.a)))
                    found += [bytes(byte_view(part[4])) for part in weights.slices]
        return found


Tiers.TestCase.settings = settings(
    max_examples=50,
    stateful_step_count=25,
    suppress_health_check=[HealthCheck.too_slow],
)
TestTiers = Tiers.TestCase
