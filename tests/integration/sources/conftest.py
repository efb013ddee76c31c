"""A hub of our own, which speaks the hub's protocol over real sockets, and a store that asks it."""

import hashlib
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from adex_proto.adapter import AdapterKey, credential_tenant
from adex_worker.adapters.arena import Arena, kv_page_bytes
from adex_worker.adapters.sources.hub import HubSource
from adex_worker.adapters.sources.source import Source
from adex_worker.adapters.sources.transfer import Patience
from adex_worker.adapters.store import AdapterStore
from adex_worker.testing import adapter_store, tiny_config, tiny_shape, write_random_adapter

# Files of a kilobyte and more are kept as large files, behind a redirect, as on the hub.
LARGE_BYTES = 1 << 10
HASTE = Patience(tries=4, wait_first_s=0.01, wait_s_max=1.0, connect_s=1.0, read_s=0.5, grace_s=5.0)


@dataclass(slots=True)
class Repository:
    """Files by commit. `tokens` None is public; `gated` lets no other token read files."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tokens: set[str] | None = None
    gated: bool = False

    def readable_with(self, token: str) -> bool:
        return self.tokens is None or token in self.tokens

    def push(self, files: dict[str, bytes], ref: str = "main") -> str:
        commit = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.refs[ref] = commit
        return commit


@dataclass(slots=True)
class Fault:
    """What befalls the next request that fits. `status` 0: only the body suffers."""

    method: str
    part: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None
    altered: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Seen:
    method: str
    path: str
    authorization: str | None
    range: str | None
    cdn: bool


class Hub:
    """The hub at `url`; its large files are served from another port, as by its CDN."""

    Fault = Fault

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self.large: dict[str, bytes] = {}
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, cdn)) for cdn in (0, 1)
        ]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def cdn(self) -> str:
        return f"http://localhost:{self._servers[1].server_port}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, name: str, folder: Path, **options: Any) -> Repository:
        """A repository with the files of a folder, subfolders included."""
        files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.*")}
        repository = self.repositories[name] = Repository(**options)
        repository.push(files)
        return repository

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in list(self.faults):
            if fault.method == method and fault.part in path:
                with suppress(ValueError):
                    self.faults.remove(fault)
                return fault
        return None

    def asked(self, method: str, part: str = "") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and part in seen.path]


def _handler(hub: Hub, cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._serve()

        def do_GET(self) -> None:
            self._serve()

        def _serve(self) -> None:
            path = unquote(self.path)
            told = self.headers.get("Authorization"), self.headers.get("Range")
            hub.seen.append(Seen(self.command, path, *told, cdn))
            fault = hub.fault_for(self.command, path)
            if fault is not None and fault.seconds:
                time.sleep(fault.seconds)
            if fault is not None and fault.status:
                self._refuse(fault.status, None, fault.headers)
            elif cdn:
                self._send(hub.large[path.removeprefix("/")], {}, fault)
            else:
                self._resolve(path, fault)

        def _resolve(self, path: str, fault: Fault | None) -> None:
            # /{owner}/{name}/resolve/{revision}/{file}; a revision's slashes come quoted.
            parts = self.path.split("/", 5)
            if len(parts) < 6 or parts[3] != "resolve":
                self._refuse(404, None)
                return
            repository = hub.repositories.get(f"{parts[1]}/{parts[2]}")
            bearer = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            if repository is None or not repository.readable_with(bearer):
                gated = repository is not None and repository.gated
                self._refuse(403 if gated else 401, "GatedRepo" if gated else "RepoNotFound")
                return
            revision, name = unquote(parts[4]), unquote(parts[5])
            commit = repository.refs.get(revision, revision)
            files = repository.commits.get(commit)
            if files is None:
                self._refuse(404, "RevisionNotFound")
            elif name not in files:
                self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            else:
                self._file(files[name], commit, fault)

        def _file(self, data: bytes, commit: str, fault: Fault | None) -> None:
            headers = {"X-Repo-Commit": commit}
            if len(data) < LARGE_BYTES:
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                self._send(data, headers | {"ETag": f'"{blob}"'}, fault)
                return
            digest = hashlib.sha256(data).hexdigest()
            hub.large[digest] = data
            headers |= {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{digest}"'}
            self._send(b"", headers | {"Location": f"{hub.cdn}/{digest}"}, None, 302)

        def _send(
            self, data: bytes, headers: dict[str, str], fault: Fault | None, status: int = 200
        ) -> None:
            wanted = self.headers.get("Range")
            if wanted and status == 200:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data, status = data[start:], 206
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault is not None and fault.altered:
                data = bytes([data[0] ^ 1]) + data[1:]
            if fault is not None and fault.cut_at is not None:
                data, self.close_connection = data[: fault.cut_at], True
            with suppress(ConnectionError):
                self.wfile.write(data)

        def _refuse(
            self, status: int, code: str | None, headers: dict[str, str] | None = None
        ) -> None:
            body = json.dumps({"error": "refused"}).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                with suppress(ConnectionError):
                    self.wfile.write(body)

    return Handler


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    # Nothing that is saved on this machine may reach a hub.
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_server")
    served = Hub()
    yield served
    served.close()


@pytest.fixture(scope="module")
def module_hub() -> Iterator[Hub]:
    served = Hub()
    yield served
    served.close()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with a small adapter of random weights."""
    folder = tmp_path / "written"
    write_random_adapter(folder, tiny_shape(tiny_config()), rank=4, seed=1)
    return folder


@dataclass(slots=True)
class Shop:
    """A store with one remote source, and its scratch folder."""

    store: AdapterStore
    cache_dir: Path

    def fetch(self, name: str, token: str = "", source: str = "hub", revision: str = "") -> str:
        """The digest of what the name means to the holder of the token."""
        tenant = credential_tenant("", token) if token else ""
        return self.store.fetch(AdapterKey(tenant, source, name, revision), token).digest

    @property
    def left_over(self) -> list[Path]:
        return [path for path in self.cache_dir.iterdir() if path.name != "bundles"]


def make_shop(tmp_path: Path, name: str, source: Source, pages: int = 256) -> Shop:
    shape = tiny_shape(tiny_config())
    page_bytes = kv_page_bytes(16, shape.layers, 2, 16, torch.float32)
    arena = Arena(pages=pages, page_bytes=page_bytes, dtype=torch.float32, device="cpu")
    store = adapter_store(
        cache_dir=tmp_path / "cache",
        roots=[tmp_path],
        remote={name: source},
        shape=shape,
        dtype=torch.float32,
        arena=arena,
        host_bytes=1 << 26,
        disk_bytes=1 << 26,
        rank_max=64,
    )
    return Shop(store, tmp_path / "cache")


@pytest.fixture
def shop(hub: Hub, tmp_path: Path) -> Shop:
    return make_shop(tmp_path, "hub", _source(hub, tmp_path))


def _source(hub: Hub, tmp_path: Path, server_token: str | None = None) -> HubSource:
    (tmp_path / "cache").mkdir(exist_ok=True)
    return HubSource(
        tmp_path / "cache", endpoint=hub.url, patience=HASTE, server_token=server_token
    )


@pytest.fixture
def trusting_shop(hub: Hub, tmp_path: Path) -> Shop:
    """A store whose server lends its own token to callers without one."""
    return make_shop(tmp_path, "hub", _source(hub, tmp_path, "hf_of_the_server"))


@pytest.fixture
def make_shop_of(tmp_path: Path) -> Any:
    """Build a store that asks the given source under the given name."""
    return lambda name, source: make_shop(tmp_path, name, source)
