"""Adapters below allowed prefixes of S3 buckets, read with the server's or the caller's rights.

A caller with a credential of its own is let in by S3 alone, at each `resolve`; one without is
served with the server's. The config is read and the weights are described at once; every range of
these is asked for by the ETag (and version) that was seen then, and both are described again
afterwards, so that a new upload never mixes with an old one.
"""

import hashlib
import io
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
    AdexError,
    ValidationError,
)
from adex_worker.adapters.core.config import CONFIG_BYTES_MAX, CONFIG_FILE
from adex_worker.adapters.core.header import WEIGHTS_FILE
from adex_worker.adapters.core.remote_names import S3_REMEDY, S3Place, s3_candidates
from adex_worker.adapters.sources.local import PICKLE_REMEDY, PICKLES
from adex_worker.adapters.sources.s3_answers import (
    CHECKSUMS,
    S3,
    S3Object,
    changed,
    object_of,
    translated,
)
from adex_worker.adapters.sources.s3_clients import Access, S3Clients
from adex_worker.adapters.sources.source import Resolved, SourceFile
from adex_worker.adapters.sources.transfer import (
    PassingFailureError,
    Patience,
    Room,
    checksum_of,
    patiently,
    room_for,
    unavailable,
)

_T = TypeVar("_T")

_PART_BYTES = 8 << 20
_PARTS_AT_ONCE = 8
CONNECTIONS_MAX = 2 * _PARTS_AT_ONCE
_ALTERED = "the bytes that came are not those in the bucket"
# Small enough to pass through a processor's cache on its way.
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class _Pinned:
    place: S3Place
    access: Access
    objects: Mapping[str, S3Object]
    config: Room | None


class S3Source:
    """Prefixes below `roots`; a relative name is looked for below each, in their order.

    `scratch` is where downloads lie until they are verified. `clients` are boto3's, and ask the
    endpoint that boto3 finds unless they are given.
    """

    def __init__(
        self,
        roots: Sequence[S3Place],
        scratch: Path,
        *,
        patience: Patience | None = None,
        clients: S3Clients | None = None,
    ) -> None:
        self._roots = tuple(roots)
        self._scratch = scratch
        self._patience = patience or Patience()
        self._clients = clients or S3Clients(self._patience, connections_max=CONNECTIONS_MAX)
        self._parts = ThreadPoolExecutor(_PARTS_AT_ONCE, "adex-s3-part")

    def resolve(self, key: AdapterKey, credential: str = "") -> Resolved:
        access = self._clients.access(key, credential)
        if key.revision:
            raise ValidationError(
                f"`revision` {key.revision[:100]!r} cannot be chosen for an adapter in S3",
                field="revision",
                remedy="Leave the revision out, or give each version a prefix of its own",
            )
        for place in s3_candidates(key.name, self._roots):
            pinned = self._found(place, access)
            if pinned is not None:
                objects = pinned.objects
                files = tuple(SourceFile(name, each.bytes) for name, each in objects.items())
                location = f"s3://{place.bucket}/{place.prefix}"
                return Resolved(key, location, files, _stamp(place, objects), pinned)
        raise AdapterNotFound(
            f"no adapter in S3 at {key.name[:200]!r}{_or_hidden(access)}",
            field="adapter_id",
            remedy=f"{S3_REMEDY}, that holds {CONFIG_FILE}",
        )

    def open(self, resolved: Resolved, name: str) -> io.RawIOBase:
        pinned = resolved.pinned
        assert isinstance(pinned, _Pinned), "resolved by another source"
        if name == CONFIG_FILE and pinned.config is not None:
            return Room(pinned.config.memory)
        wanted = pinned.objects[name]
        room = room_for(wanted.bytes, self._scratch)
        patiently(lambda: self._download(pinned, wanted, room), self._patience, S3)
        return room

    def unchanged(self, resolved: Resolved) -> bool:
        pinned = resolved.pinned
        assert isinstance(pinned, _Pinned), "resolved by another source"
        now: dict[str, S3Object] = {}
        for name in pinned.objects:
            found = self._describe(pinned.place, name, pinned.access)
            if found is None:
                return False
            now[name] = found
        return _stamp(pinned.place, now) == resolved.stamp

    # What is there.

    def _found(self, place: S3Place, access: Access) -> _Pinned | None:
        """Both objects below the place, and what the config says; None where there is none."""
        found = self._config(place, access)
        if found is None:
            return None
        weights = self._describe(place, WEIGHTS_FILE, access)
        if weights is None:
            self._refuse_without_weights(place, access)
        config, text = found
        return _Pinned(place, access, {CONFIG_FILE: config, WEIGHTS_FILE: weights}, text)

    def _config(self, place: S3Place, access: Access) -> tuple[S3Object, Room | None] | None:
        """The config, in the one request that would describe it; not of one that is refused."""
        key = place.key(CONFIG_FILE)

        def get() -> tuple[S3Object, Room | None]:
            told = access.client.get_object(Bucket=place.bucket, Key=key, ChecksumMode="ENABLED")
            found, body = object_of(key, told), told["Body"]
            if found.bytes > CONFIG_BYTES_MAX:
                body.close()
                return found, None
            room = room_for(found.bytes, self._scratch)
            deadline_s = self._patience.deadline_s(found.bytes)
            if sum(_received(body, room, 0, found.bytes, deadline_s)) < found.bytes:
                raise PassingFailureError("the download was cut short")
            _verify(place, access, found, room)
            return found, room

        return self._asked(get, place, key, access)

    def _describe(self, place: S3Place, name: str, access: Access) -> S3Object | None:
        key = place.key(name)

        def head() -> S3Object:
            asked = {"Bucket": place.bucket, "Key": key, "ChecksumMode": "ENABLED"}
            return object_of(key, access.client.head_object(**asked))

        return self._asked(head, place, key, access)

    def _asked(self, ask: Callable[[], _T], place: S3Place, key: str, access: Access) -> _T | None:
        """What `ask` returns, None where the object is not there; boto3's errors become ours."""

        def once() -> _T | None:
            try:
                return ask()
            except FlexibleChecksumError:
                raise PassingFailureError(_ALTERED) from None
            except ClientError as error:
                told_why = _explained(error, place, key, access)
                failure = translated(told_why, place, callers=access.callers)
            except (BotoCoreError, OSError) as error:
                failure = translated(error, place, callers=access.callers)
            if failure is None:
                return None
            raise failure

        return patiently(once, self._patience, S3)

    def _refuse_without_weights(self, place: S3Place, access: Access) -> NoReturn:
        shown = repr(f"s3://{place.bucket}/{place.prefix}")
        for pickle in PICKLES:
            if self._describe(place, pickle, access) is not None:
                raise AdapterUnsupported(
                    f"adapter {shown} has `{pickle}` but no `{WEIGHTS_FILE}`;"
                    " pickled weights can run code when read and are not served",
                    field=pickle,
                    remedy=PICKLE_REMEDY,
                )
        raise AdapterMalformed(
            f"adapter {shown} has no `{WEIGHTS_FILE}`{_or_hidden(access)}",
            field=WEIGHTS_FILE,
            remedy=f"Upload {CONFIG_FILE} and {WEIGHTS_FILE}, as save_pretrained writes them",
        )

    # Its bytes.

    def _download(self, pinned: _Pinned, wanted: S3Object, room: Room) -> None:
        """All parts beside each other, then the whole verified."""
        deadline_s = self._patience.deadline_s(wanted.bytes)
        starts = range(0, wanted.bytes, _PART_BYTES)
        fetch = partial(self._fetch_part, pinned, wanted, room, deadline_s)
        if len(starts) == 1:
            fetch(0)
        else:
            parts = [self._parts.submit(fetch, start) for start in starts]
            try:
                for part in parts:
                    part.result()
            finally:
                for part in parts:
                    part.cancel()
                for part in parts:
                    if not part.cancelled():
                        part.exception()
        _verify(pinned.place, pinned.access, wanted, room)

    def _fetch_part(
        self, pinned: _Pinned, wanted: S3Object, room: Room, deadline_s: float, start: int
    ) -> None:
        stop = min(start + _PART_BYTES, wanted.bytes)
        reached = start

        def go_on() -> None:
            nonlocal reached
            try:
                reached = _fetch_range(pinned, wanted, room, deadline_s, reached, stop)
            except _CutShortError as cut:
                reached = cut.reached
                raise PassingFailureError("the download was cut short") from None

        patiently(go_on, self._patience, S3)


class _CutShortError(Exception):
    """A range ended early; `reached` is the first byte that is missing."""

    def __init__(self, reached: int) -> None:
        super().__init__(reached)
        self.reached = reached


def _fetch_range(
    pinned: _Pinned,
    wanted: S3Object,
    room: Room,
    deadline_s: float,
    start: int,
    stop: int,
) -> int:
    """Bytes [start, stop) of the object into the room. Returns: `stop`."""
    asked = {"VersionId": wanted.version} if wanted.version else {}
    at = start
    try:
        told = pinned.access.client.get_object(
            Bucket=pinned.place.bucket,
            Key=wanted.key,
            IfMatch=f'"{wanted.etag}"',
            Range=f"bytes={start}-{stop - 1}",
            **asked,
        )
        if told.get("ETag", "").strip('"') != wanted.etag:
            raise changed(wanted)
        if int(told["ContentLength"]) > stop - start:
            raise PassingFailureError("more bytes came than were asked for")
        for count in _received(told["Body"], room, start, stop, deadline_s):
            at += count
    except ClientError as error:
        if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 412:
            failure: AdexError | PassingFailureError | None = changed(wanted)
        else:
            failure = translated(error, pinned.place, callers=pinned.access.callers)
        raise failure or changed(wanted) from None
    except (BotoCoreError, OSError):
        raise _CutShortError(at) from None
    if at < stop:
        raise _CutShortError(at)
    return at


def _received(body: Any, room: Room, start: int, stop: int, deadline_s: float) -> Iterator[int]:
    """Read the body into bytes [start, stop) of the room, piece by piece. Yields their lengths."""
    at = start
    while count := body.readinto(room.memory[at : min(at + _CHUNK_BYTES, stop)]):
        at += count
        yield count
        if time.monotonic() > deadline_s:
            raise unavailable(S3, "the download was too slow")


def _verify(place: S3Place, access: Access, wanted: S3Object, room: Room) -> None:
    for kind, expected in wanted.checksums:
        if checksum_of(room, CHECKSUMS[kind]()) != expected:
            raise PassingFailureError(_ALTERED)
    if wanted.checksums or wanted.encrypted:
        return
    if re.fullmatch(r"[0-9a-f]{32}", wanted.etag):
        told = checksum_of(room, hashlib.md5(usedforsecurity=False))
        if told != wanted.etag:
            raise PassingFailureError(_ALTERED)
    elif match := re.fullmatch(r"[0-9a-f]{32}-([0-9]{1,5})", wanted.etag):
        _verify_parts(place, access, wanted, room, int(match[1]))


def _verify_parts(place: S3Place, access: Access, wanted: S3Object, room: Room, parts: int) -> None:
    """An object uploaded in parts has the checksum of its parts' checksums.

    Uploads in parts of different sizes cannot be told apart from damage, so only the common
    ones are verified: all parts but the last as large as the first.
    """
    try:
        first = access.client.head_object(
            Bucket=place.bucket, Key=wanted.key, PartNumber=1, IfMatch=f'"{wanted.etag}"'
        )
    except (BotoCoreError, ClientError, OSError):
        return
    size = int(first.get("ContentLength", 0))
    if size <= 0 or -(-wanted.bytes // size) != parts:
        return
    whole = hashlib.md5(usedforsecurity=False)
    for start in range(0, wanted.bytes, size):
        part = hashlib.md5(room.memory[start : start + size], usedforsecurity=False)
        whole.update(part.digest())
    if f"{whole.hexdigest()}-{parts}" != wanted.etag:
        raise PassingFailureError(_ALTERED)


def _explained(error: ClientError, place: S3Place, key: str, access: Access) -> ClientError:
    """The error with S3's own code: a refused HEAD has no body that could name it."""
    if error.operation_name != "HeadObject":
        return error
    if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") not in (400, 403):
        return error
    try:
        access.client.get_object(Bucket=place.bucket, Key=key, Range="bytes=0-0")
    except ClientError as explained:
        return explained
    except (BotoCoreError, OSError):
        return error
    return error


def _or_hidden(access: Access) -> str:
    """What to add where S3 does not tell its caller what is missing from what is another's."""
    return ", or none that this credential may read" if access.callers else ""


def _stamp(place: S3Place, objects: Mapping[str, S3Object]) -> tuple[object, ...]:
    seen = tuple((each.key, each.etag, each.version, each.bytes) for each in objects.values())
    return place.bucket, place.prefix, seen
