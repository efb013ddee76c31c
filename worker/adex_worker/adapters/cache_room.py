"""A disk that takes no more: how it says so, and how a caller is told."""

import errno

from adex_proto.errors import CacheFull

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room."""
    return error.errno in _FULL


def cache_full(what: str) -> CacheFull:
    """The error for `what` could not be kept."""
    return CacheFull(
        f"the worker's adapter cache is full: {what}",
        remedy="Free space under --cache-dir, or lower --disk-memory below what the disk has",
        retry_after_s=30.0,
    )
