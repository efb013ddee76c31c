"""What S3 says about objects, and what its errors mean here."""

import binascii
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

from adex_proto.errors import AdapterForbidden, AdexError, SourceUnavailable
from adex_worker.adapters.core.remote_names import S3Place
from adex_worker.adapters.sources.transfer import PassingFailureError, unavailable

S3 = "S3"
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NotFound", "NoSuchVersion", "404"})
# The credential itself is at fault, whatever it was used for.
_CREDENTIAL = frozenset(
    {"ExpiredToken", "InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken"}
    | {"SignatureDoesNotMatch", "TokenRefreshRequired"}
)
_CLOCK = "RequestTimeTooSkewed"


@dataclass(frozen=True, slots=True)
class S3Object:
    """One object as it was described. `etag` is without quotes, `version` "" where unversioned.

    `checksums` are those that cover the whole object, by boto3's names for them.
    """

    key: str
    bytes: int
    etag: str
    version: str
    encrypted: bool
    checksums: tuple[tuple[str, str], ...]


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value:08x}"


CHECKSUMS: Mapping[str, type[_Crc32] | Any] = {
    "ChecksumSHA256": hashlib.sha256,
    "ChecksumCRC32": _Crc32,
}


def object_of(key: str, told: Mapping[str, Any]) -> S3Object:
    version = str(told.get("VersionId", ""))
    whole = told.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
    found = [(name, str(told[name])) for name in CHECKSUMS if whole and name in told]
    return S3Object(
        key=key,
        bytes=int(told["ContentLength"]),
        etag=str(told["ETag"]).strip('"'),
        version="" if version == "null" else version,
        # The ETag of an object under a key of KMS, or of the customer, is no checksum.
        encrypted="SSECustomerAlgorithm" in told
        or str(told.get("ServerSideEncryption", "")).startswith("aws:"),
        checksums=tuple((name, _hexadecimal(value)) for name, value in found if "-" not in value),
    )


def _hexadecimal(text: str) -> str:
    return binascii.a2b_base64(text).hex()


def translated(
    error: Exception, place: S3Place, *, callers: bool
) -> AdexError | PassingFailureError | None:
    """What went wrong, in our words; None where the object is not there.

    `callers` says that the credential is the caller's own. Then what it may not read is not there,
    and what S3 says of the credential itself is the caller's to mend.
    """
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return _ours("it has no AWS credentials")
    if not isinstance(error, ClientError):
        return PassingFailureError(f"the connection failed ({type(error).__name__})")
    code = str(error.response.get("Error", {}).get("Code", ""))
    metadata = error.response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode", 0))
    if code in _MISSING or status == 404:
        return None
    if code == _CLOCK or (code in _CREDENTIAL and not callers):
        return _ours(f"S3 says {code}")
    if code in _CREDENTIAL:
        return AdapterForbidden(
            f"S3 does not accept the credential in `api_token`: it says {code}",
            field="api_token",
            remedy="Send a valid ACCESS_KEY:SECRET, with the session's token if it is temporary",
        )
    if status in (401, 403) and callers:
        return None
    if status in (401, 403):
        return AdapterForbidden(
            f"this server's credentials may not read the S3 bucket {place.bucket!r} there",
            field="adapter_id",
            remedy="Give the worker's role s3:GetObject (and s3:ListBucket) below its root",
        )
    if status in _PASSING or code == "SlowDown":
        return PassingFailureError(f"it answered {status}", _retry_after_s(metadata))
    return unavailable(S3, f"it answered {status or code}")


def _retry_after_s(metadata: Mapping[str, Any]) -> float | None:
    try:
        return min(max(float(metadata.get("HTTPHeaders", {}).get("retry-after", "")), 0.0), 3600.0)
    except ValueError:
        return None


def _ours(why: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"this server cannot read S3: {why}",
        field="adapter_source",
        remedy="Give the worker valid AWS credentials, or send some as `api_token`",
        retry_after_s=30.0,
    )


def changed(wanted: S3Object) -> SourceUnavailable:
    return SourceUnavailable(
        f"`{wanted.key[-200:]}` changed while it was read",
        field="adapter_id",
        remedy="Try again when the upload is complete",
        retry_after_s=1.0,
    )
