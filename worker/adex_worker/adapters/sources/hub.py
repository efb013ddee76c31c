"""Adapters in repositories of the Hugging Face hub, or of whatever HF_ENDPOINT names.

Access is decided by the hub: each `resolve` asks it, with the caller's own credential, for the
files themselves, because a gated repository describes itself to everyone. The first answer names
the commit that everything after it is read at. Only the two files of an adapter are ever asked for.
"""

import io
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeVar

from huggingface_hub import HfApi, get_session, hf_hub_url, hf_raise_for_status
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from adex_proto.adapter import AdapterKey
from adex_proto.errors import (
    AdapterForbidden,
    AdapterMalformed,
    AdapterNotFound,
    AdapterUnsupported,
    AdexError,
    SourceUnavailable,
)
from adex_worker.adapters.core.config import CONFIG_FILE
from adex_worker.adapters.core.header import WEIGHTS_FILE
from adex_worker.adapters.core.remote_names import HUB_REMEDY, HubPlace, hub_place
from adex_worker.adapters.sources.local import PICKLE_REMEDY, PICKLES
from adex_worker.adapters.sources.source import Resolved, SourceFile
from adex_worker.adapters.sources.transfer import (
    PassingFailureError,
    Patience,
    Room,
    checksum_of,
    git_blob,
    keep,
    patiently,
    room_for,
    sha256,
    unavailable,
)

_T = TypeVar("_T")

_HUB = "the hub"
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The base class of the hub client's HTTP library, which differs between the client's versions.
_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class _File:
    """One file at a commit: its size in bytes, and the hub's checksum of it."""

    commit: str
    bytes: int
    etag: str


@dataclass(frozen=True, slots=True)
class _Pinned:
    """Where the files of one resolution are, and who asks for them."""

    place: HubPlace
    commit: str
    files: dict[str, _File]
    token: str | None = field(repr=False)


class HubSource:
    """`scratch` is where downloads lie until they are verified.

    `server_token` is what callers without a credential of their own are served with; None: nothing,
    so that they see what is public.
    """

    def __init__(
        self,
        scratch: Path,
        *,
        server_token: str | None = None,
        endpoint: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=False, library_name="adex")
        self._scratch = scratch
        self._server_token = server_token
        self._patience = patience or Patience()

    def resolve(self, key: AdapterKey, credential: str = "") -> Resolved:
        place = hub_place(key.name, key.revision)
        token = self._token(key, credential)
        config = self._describe(place, place.revision or "main", CONFIG_FILE, token)
        if config is None:
            raise _no_config(place)
        weights = self._describe(place, config.commit, WEIGHTS_FILE, token)
        if weights is None:
            self._refuse_without_weights(place, config.commit, token)
        files = {CONFIG_FILE: config, WEIGHTS_FILE: weights}
        return Resolved(
            key,
            location=f"{place.repository}@{config.commit}",
            files=tuple(SourceFile(name, file.bytes) for name, file in files.items()),
            stamp=(place.repository, place.folder, config.commit),
            pinned=_Pinned(place, config.commit, files, token),
        )

    def open(self, resolved: Resolved, name: str) -> io.RawIOBase:
        pinned = resolved.pinned
        assert isinstance(pinned, _Pinned), "resolved by another source"
        file = pinned.files[name]
        url = self._url(pinned.place, pinned.commit, name)
        room = room_for(file.bytes, self._scratch)
        download = _Download(url, pinned.token, file, room, self._patience)
        patiently(lambda: _asked(pinned.place, download.go_on), self._patience, _HUB)
        return room

    def unchanged(self, resolved: Resolved) -> bool:
        """A commit never changes."""
        return True

    def _token(self, key: AdapterKey, credential: str) -> str | None:
        """What to ask the hub with; None sends nothing, not even a token saved on this machine."""
        if credential:
            return credential
        if key.credentialed:
            raise unavailable(_HUB, "the credential for this name is not at hand", 1.0)
        return self._server_token

    def _url(self, place: HubPlace, revision: str, name: str) -> str:
        return hf_hub_url(
            place.repository,
            name,
            subfolder=place.folder or None,
            revision=revision,
            endpoint=self._api.endpoint,
        )

    def _describe(
        self, place: HubPlace, revision: str, name: str, token: str | None
    ) -> _File | None:
        """The file at the revision, or None where the repository has no such file."""
        url = self._url(place, revision, name)

        def ask() -> _File | None:
            try:
                told = self._api.get_hf_file_metadata(
                    url=url, token=token or False, timeout=self._patience.read_s
                )
            except EntryNotFoundError:
                return None
            if not told.commit_hash or not _COMMIT.fullmatch(told.commit_hash):
                raise unavailable(_HUB, "its answer names no commit")
            if told.size is None or told.etag is None:
                raise unavailable(_HUB, "its answer has no size or no checksum")
            return _File(told.commit_hash, told.size, told.etag)

        return patiently(lambda: _asked(place, ask), self._patience, _HUB)

    def _refuse_without_weights(self, place: HubPlace, commit: str, token: str | None) -> NoReturn:
        for pickle in PICKLES:
            if self._describe(place, commit, pickle, token) is not None:
                raise AdapterUnsupported(
                    f"adapter {_shown(place)} has `{pickle}` but no `{WEIGHTS_FILE}`;"
                    " pickled weights can run code when read and are not served",
                    field=pickle,
                    remedy=PICKLE_REMEDY,
                )
        raise AdapterMalformed(
            f"adapter {_shown(place)} has no `{WEIGHTS_FILE}`",
            field=WEIGHTS_FILE,
            remedy="Push it with PEFT's push_to_hub(safe_serialization=True)",
        )


class _Download:
    """One file on its way: `go_on` takes up where the last try ended."""

    def __init__(
        self, url: str, token: str | None, file: _File, room: Room, patience: Patience
    ) -> None:
        self._url = url
        self._token = token
        self._file = file
        self._room = room
        self._reached = 0
        self._patience = patience
        self._deadline_s = patience.deadline_s(file.bytes)

    def go_on(self) -> None:
        """Fetch what is missing, then verify the whole.

        Raises PassingFailureError, and what the hub client raises.
        """
        if self._reached < self._file.bytes or not self._file.bytes:
            self._fetch(self._reached)
        if self._reached < self._file.bytes:
            raise PassingFailureError("the download was cut short")
        if self._checksum() != self._file.etag:
            self._reached = 0
            raise PassingFailureError("the bytes that came are not those the hub has")

    def _fetch(self, start: int) -> None:
        # Compressed bytes could not be counted.
        headers = {"Accept-Encoding": "identity", "User-Agent": "adex"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if start:
            headers["Range"] = f"bytes={start}-"
        limits = (self._patience.connect_s, self._patience.read_s, self._patience.read_s, None)
        with get_session().stream("GET", self._url, headers=headers, timeout=limits) as response:
            if response.status_code == 416:
                self._reached = 0
                raise PassingFailureError("it would not go on with a download")
            hf_raise_for_status(response)
            if start and response.status_code != 206:
                self._reached = 0
            elif start and not response.headers.get("Content-Range", "").startswith(
                f"bytes {start}-"
            ):
                raise PassingFailureError("it went on at the wrong byte")
            # As they come: what is held back to fill a chunk would be lost in a broken connection.
            for chunk in response.iter_raw():
                if self._reached + len(chunk) > self._file.bytes:
                    self._reached = 0
                    raise PassingFailureError("more bytes came than the file has")
                keep(self._room, self._reached, chunk)
                self._reached += len(chunk)
                if time.monotonic() > self._deadline_s:
                    raise unavailable(_HUB, "the download was too slow")

    def _checksum(self) -> str:
        etag = self._file.etag
        if re.fullmatch(r"[0-9a-f]{64}", etag):
            return checksum_of(self._room, sha256())
        if re.fullmatch(r"[0-9a-f]{40}", etag):
            return checksum_of(self._room, git_blob(self._file.bytes))
        raise unavailable(_HUB, "its answer has no checksum that can be verified")


def _asked(place: HubPlace, ask: Callable[[], _T]) -> _T:
    """What `ask` returns; the hub client's errors become ours.

    They are raised outside its `except`, because the client's errors hold the request with its
    credential, and would go wherever ours go.
    """
    try:
        return ask()
    except (AdexError, PassingFailureError):
        raise
    except (_HTTP_ERROR, EntryNotFoundError, OSError) as error:
        failure = _translated(error, place)
    raise failure


def _translated(error: Exception, place: HubPlace) -> AdexError | PassingFailureError:
    if isinstance(error, OfflineModeIsEnabled):
        return SourceUnavailable(
            "the hub is not asked: this server is offline (HF_HUB_OFFLINE)",
            field="adapter_source",
            remedy="Name a local adapter",
            retry_after_s=60.0,
        )
    if isinstance(error, RevisionNotFoundError):
        return AdapterNotFound(
            f"the hub repository {place.repository!r} has no revision {place.revision!r}",
            field="adapter_id",
            remedy="Send a branch, a tag or a commit that exists",
        )
    if isinstance(error, GatedRepoError):
        return AdapterForbidden(
            f"the hub repository {place.repository!r} is gated",
            field="adapter_id",
            remedy="Accept its terms on the hub, and send a token of that account as `api_token`",
        )
    if not isinstance(error, HfHubHTTPError):
        return PassingFailureError(f"the connection failed ({type(error).__name__})")
    status = error.response.status_code
    hidden = isinstance(error, RepositoryNotFoundError | DisabledRepoError | EntryNotFoundError)
    if hidden or status in (400, 401, 404):
        return _not_found(place)
    if status == 403:
        return AdapterForbidden(
            f"the hub does not let this credential read {place.repository!r}",
            field="api_token",
            remedy="Send a token with read access to the repository",
        )
    if status in _PASSING:
        return PassingFailureError(f"it answered {status}", _retry_after_s(error))
    return unavailable(_HUB, f"it answered {status}")


def _retry_after_s(error: HfHubHTTPError) -> float | None:
    try:
        return min(max(float(error.response.headers.get("Retry-After", "")), 0.0), 3600.0)
    except ValueError:
        return None


def _not_found(place: HubPlace) -> AdapterNotFound:
    """The same words whether it does not exist or is another's: the hub does not tell either."""
    return AdapterNotFound(
        f"no hub adapter {_shown(place)}, or none that this credential may read",
        field="adapter_id",
        remedy=f"{HUB_REMEDY}, and send `api_token` for a private repository",
    )


def _no_config(place: HubPlace) -> AdexError:
    if place.folder:
        return _not_found(place)
    return AdapterMalformed(
        f"the hub repository {place.repository!r} has no `{CONFIG_FILE}`: it is no adapter",
        field=CONFIG_FILE,
        remedy="Name a repository, or a folder of one, that PEFT wrote an adapter to",
    )


def _shown(place: HubPlace) -> str:
    return repr(f"{place.repository}/{place.folder}" if place.folder else place.repository)
