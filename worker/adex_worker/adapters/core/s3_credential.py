"""What a caller may send as a credential of its own for S3."""

import re
from dataclasses import dataclass, field

from adex_proto.errors import ValidationError

_ACCESS_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_FORM = "ACCESS_KEY:SECRET, or ACCESS_KEY:SECRET:SESSION_TOKEN"


@dataclass(frozen=True, slots=True)
class S3Credential:
    """An access key, its secret, and the token of a session ("" where the key needs none)."""

    access_key: str = field(repr=False)
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def s3_credential(text: str) -> S3Credential:
    """The credential that an `api_token` spells. Raises ValidationError, which never quotes it."""
    access_key, _, rest = text.partition(":")
    secret, colon, session_token = rest.partition(":")
    if not _ACCESS_KEY.fullmatch(access_key) or not secret or (colon and not session_token):
        raise ValidationError(
            f"`api_token` is no credential for S3: it must be {_FORM}",
            field="api_token",
            remedy=f"Send {_FORM}, or leave it out to read what this server may read",
        )
    return S3Credential(access_key, secret, session_token)
