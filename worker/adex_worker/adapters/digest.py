"""The hash that names adapters and proves bundles."""

from blake3 import blake3

from adex_worker.adapters.byte_views import Digest


def digest_of_content() -> Digest:
    """One that has seen nothing yet: BLAKE3, 64 hexadecimal digits.

    All callers share what lies under one name, so nobody may be able to make another's; and every
    byte that comes nearer passes through it, so it is the one that a processor's vectors are for.
    """
    return blake3()
