"""A worker's adapter store over a temporary disk, a small model's shape and a small arena."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from adex_kernels.layout import ModelShape
from adex_kernels.native import library
from adex_proto.adapter import AdapterKey
from adex_proto.errors import AdexError
from adex_worker import native
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.store import AdapterStore
from adex_worker.config import default_cache_dir
from adex_worker.testing import adapter_store, tiny_config, tiny_shape, write_random_adapter


@dataclass(slots=True)
class World:
    """`root` is the allowed adapter root; `key(name)` names an adapter in it."""

    root: Path
    cache_dir: Path
    shape: ModelShape
    arena: Arena
    store: AdapterStore

    def key(self, name: str) -> AdapterKey:
        return AdapterKey("", "local", name)

    def page_in(self, name: str, slot: int, first_page: int) -> str:
        """Bring an adapter all the way to the device; its digest."""
        version = self.store.fetch(self.key(name))
        self.store.stage(version.digest)
        pages = self.arena.pages_for(version.bundle_bytes)
        self.store.page_in(version.digest, slot, first_page, pages)
        return version.digest

    def write(self, name: str, **arguments: Any) -> Path:
        """A sound adapter in the root, made as `write_random_adapter` makes one; its folder."""
        return write_random_adapter(self.root / name, self.shape, **arguments)

    def refusal(self, kind: type[AdexError], name: str = "a") -> AdexError:
        """The refusal to fetch the adapter: it names a field and a remedy, and leaves no bundle."""
        with pytest.raises(AdexError) as caught:
            self.store.fetch(self.key(name))
        error = caught.value
        assert type(error) is kind, repr(error)
        assert error.field
        assert error.remedy
        assert self.bundles == []
        return error

    @property
    def bundles(self) -> list[Path]:
        return sorted((self.cache_dir / "bundles").iterdir())


MakeWorld = Callable[..., World]


@pytest.fixture(params=["compiled", "torch"])
def packer(request: Any) -> Iterator[str]:
    """What packs bundles: C, where there is a compiler, or torch."""
    if request.param == "compiled":
        if not any(map(shutil.which, native.COMPILERS)):
            pytest.skip("there is no C compiler here")
        native.load(default_cache_dir(os.environ))
        assert library.registered() is not None, "a compiler is here, and yet nothing was compiled"
    yield request.param
    library.register(None)


@pytest.fixture
def make_world(tmp_path: Path) -> MakeWorld:
    """Build a world; arguments replace the store's. Worlds of one test share root and cache."""

    def make(
        *,
        dtype: torch.dtype = torch.float32,
        shape: ModelShape | None = None,
        pages: int = 256,
        host_bytes: int = 1 << 26,
        disk_bytes: int = 1 << 26,
        rank_max: int = 64,
    ) -> World:
        shape = shape or tiny_shape(tiny_config())
        root, cache_dir = tmp_path / "adapters", tmp_path / "cache"
        root.mkdir(exist_ok=True)
        page_bytes = kv_page_bytes(16, shape.layers, 2, 16, dtype)
        arena = Arena(pages=pages, page_bytes=page_bytes, dtype=dtype, device="cpu")
        store = adapter_store(
            cache_dir=cache_dir,
            roots=[root],
            shape=shape,
            dtype=dtype,
            arena=arena,
            host_bytes=host_bytes,
            disk_bytes=disk_bytes,
            rank_max=rank_max,
        )
        return World(root, cache_dir, shape, arena, store)

    return make


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world()
