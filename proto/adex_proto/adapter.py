"""Adapters by name and by content, and the tiers their bytes live in."""

import hashlib
from dataclasses import dataclass
from enum import IntEnum

# The slot by which a step addresses the base model itself.
BASE_SLOT = 0


# What the tenant of a name begins with that only the holder of one credential may resolve.
_CREDENTIAL_TENANT = "t:"


class Tier(IntEnum):
    """How near the device an adapter's bundle is. ABSENT: only its source has it."""

    ABSENT = 0
    DISK = 1
    HOST = 2
    DEVICE = 3


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """What a request names: an alias that may come to mean other bytes later.

    `tenant` is who may see it ("" is everyone); `source` is "local", "hub" or "s3"; `name` is the
    source's own id; `revision` is "" for whatever is newest.
    """

    tenant: str
    source: str
    name: str
    revision: str = ""

    @property
    def credentialed(self) -> bool:
        """Whether the name belongs to the holders of one credential (`credential_tenant`)."""
        return self.tenant.startswith(_CREDENTIAL_TENANT)


def credential_tenant(tenant: str, credential: str) -> str:
    """The tenant for names that `tenant` resolves with a credential of its own.

    One per credential, and nothing of the credential can be read from it.
    """
    told = len(tenant.encode()).to_bytes(4, "big") + tenant.encode() + credential.encode()
    return _CREDENTIAL_TENANT + hashlib.sha256(told).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """One adapter by content: what every cache, slot and KV prefix is keyed by.

    `digest` is the BLAKE3 (hex) over the adapter's config and weights; `bundle_bytes` is what its
    packed bundle takes in any tier; `rank_max` its largest rank; `modules` how many (layer, linear)
    pairs it changes.
    """

    digest: str
    bundle_bytes: int
    rank_max: int
    modules: int
