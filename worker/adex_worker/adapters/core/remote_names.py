"""What a caller may write as the name of an adapter on the hub or in an S3 bucket.

The texts end in addresses and keys, so only what those are made of is let through. Judging looks at
the text alone: a refusal tells nothing about what exists.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from adex_proto.errors import AdapterForbidden, ValidationError

S3_SCHEME = "s3://"
HUB_REMEDY = "Write org/name, org/name@revision or org/name/folder@revision"
S3_REMEDY = "Write s3://bucket/prefix, or a prefix below one of the server's roots"
S3_FORBIDDEN_REMEDY = "Name a prefix below one of the server's roots (--s3-adapter-root)"

REPOSITORY_CHARACTERS_MAX = 96
FOLDERS_MAX = 8
# S3 keys have at most 1024 bytes; the longest file name below the prefix needs its share.
PREFIX_BYTES_MAX = 960

_REPOSITORY_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_FOLDER = re.compile(r"[A-Za-z0-9._+=-]{1,128}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,127}")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class HubPlace:
    """A folder ("" is the top) of a repository at a revision ("" is its default branch)."""

    repository: str
    folder: str
    revision: str


@dataclass(frozen=True, slots=True)
class S3Place:
    """A prefix of a bucket, without a slash at either end; "" is the whole bucket."""

    bucket: str
    prefix: str

    def key(self, name: str) -> str:
        """The key of a file below the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def holds(self, other: "S3Place") -> bool:
        """Whether `other` is this place or below it, by whole parts of the key."""
        if self.bucket != other.bucket:
            return False
        return not self.prefix or f"{other.prefix}/".startswith(f"{self.prefix}/")


def hub_place(name: str, revision: str) -> HubPlace:
    """The place that `org/name` or `org/name/folder` names. Raises ValidationError."""
    owner, _, rest = name.partition("/")
    repository, _, folder = rest.partition("/")
    whole = f"{owner}/{repository}"
    sound = all(_REPOSITORY_PART.fullmatch(part) for part in (owner, repository))
    if (
        not sound
        or len(whole) > REPOSITORY_CHARACTERS_MAX
        or any(bad in whole for bad in ("--", ".."))
        or whole.endswith(".git")
    ):
        raise _invalid("adapter_id", name, "is no hub repository", HUB_REMEDY)
    folders = folder.split("/") if folder else []
    bad = any(not _FOLDER.fullmatch(part) or part in (".", "..") for part in folders)
    if bad or len(folders) > FOLDERS_MAX or name.endswith("/"):
        raise _invalid("adapter_id", name, "names no folder of a hub repository", HUB_REMEDY)
    if revision and (
        not _REVISION.fullmatch(revision) or any(bad in revision for bad in ("..", "//"))
    ):
        remedy = "Send a branch, a tag or a commit"
        raise _invalid("revision", revision, "is no revision", remedy)
    return HubPlace(whole, folder, revision)


def s3_root(text: str) -> S3Place:
    """The place that `s3://bucket/prefix` names. Raises ValidationError."""
    bucket, _, prefix = text.removeprefix(S3_SCHEME).partition("/")
    if not text.startswith(S3_SCHEME) or not _BUCKET.fullmatch(bucket) or ".." in bucket:
        raise _invalid("adapter_id", text, "names no S3 bucket", S3_REMEDY)
    return S3Place(bucket, _prefix(text, prefix))


def s3_candidates(name: str, roots: Sequence[S3Place]) -> Iterator[S3Place]:
    """Where `name` may lie: itself below a root, or below each root in turn.

    Raises ValidationError, or AdapterForbidden where it lies below none.
    """
    if not name.startswith(S3_SCHEME):
        prefix = _prefix(name, name)
        if not prefix:
            raise _invalid("adapter_id", name, "is empty", S3_REMEDY)
        found = [S3Place(root.bucket, root.key(prefix)) for root in roots]
    else:
        place = s3_root(name)
        found = [place] if any(root.holds(place) for root in roots) else []
    if not found:
        raise AdapterForbidden(
            f"adapter {name[:200]!r} lies outside the buckets this server reads adapters from",
            field="adapter_id",
            remedy=S3_FORBIDDEN_REMEDY,
        )
    yield from found


def _prefix(text: str, prefix: str) -> str:
    parts = prefix.removesuffix("/").split("/") if prefix else []
    bad = any(part in ("", ".", "..") or not part.isprintable() for part in parts)
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        bad, size = True, 0
    if bad or size > PREFIX_BYTES_MAX:
        raise _invalid("adapter_id", text, "is no prefix of S3 keys", S3_REMEDY)
    return "/".join(parts)


def _invalid(field: str, value: str, what: str, remedy: str) -> ValidationError:
    return ValidationError(f"`{field}` {value[:200]!r} {what}", field=field, remedy=remedy)
