"""Who may send requests, and who each of them is charged to.

Without API keys everyone may, and all are one tenant. With them each key is a tenant: its requests
take turns with the others' by what each was given, and share no prefixes with theirs. What an
adapter's name means does not depend on the key.
"""

import hashlib
import hmac
from typing import Protocol

from adex_proto.errors import Unauthorized

# Whom names belong to that were asked for without a credential of their source.
EVERYONE = ""
_BEARER = "bearer "
_TENANT_CHARACTERS = 16


class Keys(Protocol):
    """The keys there are; an operator's admits too."""

    @property
    def api_keys(self) -> tuple[str, ...]: ...
    @property
    def admin_key(self) -> str: ...


def payer_of(keys: Keys, credential: str | None) -> str:
    """The tenant of a request; `credential` is its authorization header.

    Raises: Unauthorized where there are keys and it shows none of them.
    """
    if not keys.api_keys:
        return EVERYONE
    # Every key is compared, so that the time tells nothing of which was nearly right.
    found = [key for key in keys.api_keys if shows(credential, key)]
    operator = bool(keys.admin_key) and shows(credential, keys.admin_key)
    if found:
        # A digest: tenants are in no log, but in the books of the core.
        return hashlib.sha256(found[0].encode()).hexdigest()[:_TENANT_CHARACTERS]
    if operator:
        return EVERYONE
    raise Unauthorized(
        "this server asks for an API key", remedy="Send it as a bearer token in `authorization`"
    )


def shows(credential: str | None, key: str) -> bool:
    """Whether the header carries the key, compared in constant time."""
    given = credential or ""
    if given[: len(_BEARER)].lower() == _BEARER:
        given = given[len(_BEARER) :]
    # A header holds whatever bytes its sender liked.
    return hmac.compare_digest(given.strip().encode(errors="surrogateescape"), key.encode())
