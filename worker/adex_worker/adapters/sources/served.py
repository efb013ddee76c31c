"""The places that one worker's adapters come from, by the name that requests give them."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import get_token

from adex_worker.adapters.core.remote_names import S3Place
from adex_worker.adapters.sources.hub import HubSource
from adex_worker.adapters.sources.local import LocalSource
from adex_worker.adapters.sources.s3 import S3Source
from adex_worker.adapters.sources.source import Source


def served_sources(
    cache_dir: Path,
    local_roots: Sequence[Path],
    s3_roots: Sequence[S3Place],
    *,
    use_server_hf_token: bool,
) -> dict[str, Source]:
    """Folders and the hub, always; S3 where a root allows it. Raises OSError."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    server_token = get_token() if use_server_hf_token else None
    found: dict[str, Source] = {
        "local": LocalSource(local_roots),
        "hub": HubSource(cache_dir, server_token=server_token),
    }
    if s3_roots:
        found["s3"] = S3Source(s3_roots, cache_dir)
    return found
