"""A worker that is killed between any two writes leaves nothing that is ever served."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

# What the fixtures of conftest.py give.
Hub = Any

# Where SIGKILL strikes: the statement that is replaced, and how many calls of it go well before.
STAGES = {
    "asking the hub": "strike(HfApi, 'get_hf_file_metadata')",
    "with half of a download here": "strike(hub, 'keep', 1, half_chunk)",
    "verifying what came": "strike(hub, 'checksum_of', 1)",
    "reading it": "strike(intake, 'read_adapter')",
    "converting it": "strike(bundle, '_packed', 3)",
    "before its bundle has a name": "strike(disk_tier.secrets, 'token_hex')",
    "with the header of its bundle written": "strike(os, 'write', 1)",
    "with half of its bundle written": "strike(os, 'write', 1, half_write)",
    "with its bundle written and not synced": "strike(os, 'fsync')",
    "before its bundle is published": "strike(os, 'replace')",
    "before its name is synced": "strike(os, 'fsync', 1)",
    "staging it": "strike(disk_tier, '_read_checked')",
    "sending it away": "strike(disk_tier.DiskTier, 'remove')",
}

SCRIPT = textwrap.dedent(
    """
    import os, signal, sys, torch
    from pathlib import Path
    from huggingface_hub import HfApi
    from adex_proto.adapter import AdapterKey, Tier
    from adex_worker.adapters import bundle, disk_tier, intake
    from adex_worker.adapters.arena import Arena
    from adex_worker.adapters.sources import hub
    from adex_worker.testing import adapter_store, tiny_config, tiny_shape

    url, cache = sys.argv[1], Path(sys.argv[2])

    def new_store():
        arena = Arena(pages=256, page_bytes=8192, dtype=torch.float32, device="cpu")
        return adapter_store(
            cache_dir=cache, roots=[], remote={"hub": hub.HubSource(cache, endpoint=url)},
            shape=tiny_shape(tiny_config()), dtype=torch.float32, arena=arena,
            host_bytes=1 << 26, disk_bytes=1 << 26, rank_max=64,
        )

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def half_write(real, number, view):
        real(number, view[: len(view) // 2])

    def half_chunk(real, room, at, data):
        real(room, at, data[: len(data) // 2])

    def strike(place, name, after=0, last=None):
        real, calls = getattr(place, name), []

        def struck(*given, **named):
            calls.append(name)
            if len(calls) <= after:
                return real(*given, **named)
            if last is not None:
                last(real, *given, **named)
            die()

        setattr(place, name, struck)

    def live():
        store = new_store()
        digest = store.fetch(AdapterKey("", "hub", "org/one")).digest
        store.stage(digest)
        store.evict(digest, Tier.HOST)
        store.evict(digest, Tier.DISK)

    for stage in sys.argv[3:]:
        child = os.fork()
        if not child:
            exec(stage)
            live()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (stage, status)
        # What comes after it, in a process of its own as before, for the source asks anew.
        store = new_store()
        for held in store.held():
            store.stage(held.version.digest)
        left = sorted(path.name for path in cache.rglob("*") if path.is_file())
        print(len(left), *(held.version.digest for held in store.held()))
        for held in store.held():
            store.evict(held.version.digest, Tier.DISK)
        assert not [path for path in cache.rglob("*") if path.is_file()], "something was left"
    """
)


@pytest.mark.slow
def test_whenever_it_is_killed_the_next_worker_finds_a_whole_bundle_or_none(
    hub: Hub, shop: Any, adapter: Path, tmp_path: Path
) -> None:
    hub.publish("org/one", adapter)
    expected = shop.fetch("org/one")
    cache = tmp_path / "killed"
    cache.mkdir()
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, hub.url, str(cache), *STAGES.values()],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(STAGES, done.stdout.splitlines(), strict=True))
    published = [stage for stage, line in found.items() if line != "0"]
    assert published == ["before its name is synced", "staging it", "sending it away"]
    assert {found[stage] for stage in published} == {f"1 {expected}"}
