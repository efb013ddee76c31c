"""Routes of the page at /ui: its files, the feed it watches, and the adapters it can be asked for.

The page is static and needs nothing from elsewhere. Its policy lets it run its own scripts and talk
to its own server, and nothing else.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from aiohttp import web

from adex_proto.adapter import AdapterKey
from adex_scheduler.front.control import require_admin
from adex_scheduler.front.feed import Feed
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.snapshot import Labels, Snapshot
from adex_scheduler.front.visit import SERVING, json_reply, stream_reply

PAGE = Path(__file__).parent / "page"
INDEX = "index.html"
KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # The files are small, and a page of another release would not understand the feed.
    "Cache-Control": "no-cache",
}
# What a picker shows: beyond this many one goes on typing.
FOUND_MAX = 50
FIND_CHARACTERS_MAX = 512


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file of the page, as it is sent."""

    body: bytes
    kind: str
    tag: str


class Gallery:
    """What stands behind the page: its files, the names it may show, and its feed."""

    def __init__(self, serving: Serving) -> None:
        roots = serving.options.adapter_roots
        self._serving = serving
        self._roots = tuple(dict.fromkeys([*roots, *map(os.path.realpath, roots)]))
        self._known_of: tuple[tuple[str, ...], dict[str, AdapterKey]] | None = None
        self._known: tuple[str, ...] = ()
        self.files = {path.name: _read(path) for path in sorted(PAGE.iterdir())}
        self.feed = Feed(self.snapshot)

    async def snapshot(self) -> Snapshot:
        """The present."""
        known = await self.known()
        serving = self._serving
        return Snapshot(serving.engine.scene(), serving.directory.base_name, self.labels, known)

    @property
    def labels(self) -> Labels:
        """How public names are shown now: operators give and take names while the server runs."""
        return Labels(self._serving.directory, self._roots)

    async def known(self) -> tuple[str, ...]:
        """Names of the adapters listed here, sorted; the same value while nothing changes."""
        paths = await self._serving.local_adapters.paths()
        aliases = self._serving.directory.aliases
        if self._known_of != (paths, aliases):
            self._known_of, self._known = (paths, dict(aliases)), self._names(paths)
        return self._known

    def _names(self, paths: Sequence[str]) -> tuple[str, ...]:
        aliases, labels = self._serving.directory.aliases, self.labels
        meant = {key.name for key in aliases.values() if key.source == "local"}
        others = [labels.of(AdapterKey("", "local", path)) for path in paths if path not in meant]
        return tuple(sorted({*aliases, *others}))

    async def found(self, text: str) -> dict[str, object]:
        """Names that contain `text`, those that begin with it first."""
        known = await self.known()
        wanted = text.casefold()
        found = [name for name in known if wanted in name.casefold()]
        found.sort(key=lambda name: (not name.casefold().startswith(wanted), name))
        return {"count": len(found), "known": len(known), "names": found[:FOUND_MAX]}


GALLERY: web.AppKey[Gallery] = web.AppKey("gallery", Gallery)


def add_page(app: web.Application, serving: Serving) -> None:
    """Give the application the page's routes."""
    gallery = app[GALLERY] = Gallery(serving)
    app.router.add_get("/ui", page)
    app.router.add_get("/ui/", slashed)
    app.router.add_get("/ui/feed", feed, allow_head=False)
    app.router.add_get("/ui/adapters", adapters)
    app.router.add_get("/ui/{file}", page)

    async def end_feed(_: web.Application) -> None:
        # Open feeds would otherwise hold the end up until they are cut.
        await gallery.feed.close()

    app.on_shutdown.append(end_feed)


async def page(request: web.Request) -> web.StreamResponse:
    """GET /ui and GET /ui/{file}: the page and its files."""
    file = request.app[GALLERY].files.get(request.match_info.get("file", INDEX))
    if file is None:
        raise web.HTTPNotFound
    headers = {**HEADERS, "ETag": file.tag}
    if request.headers.get("If-None-Match") == file.tag:
        return web.Response(status=304, headers=headers)
    return web.Response(body=file.body, content_type=file.kind, charset="utf-8", headers=headers)


async def slashed(request: web.Request) -> web.StreamResponse:
    """GET /ui/: the page is one step up, wherever a proxy has put it."""
    return web.Response(status=308, headers={"Location": "../ui"})


async def feed(request: web.Request) -> web.StreamResponse:
    """GET /ui/feed: snapshots as server-sent events; for the holder of the admin key, if any."""
    serving = request.app[SERVING]
    if serving.options.admin_key:
        require_admin(serving, request.headers.get("authorization"))
    return await stream_reply(request, request.app[GALLERY].feed.frames(), {})


async def adapters(request: web.Request) -> web.StreamResponse:
    """GET /ui/adapters?find=text: names of adapters that contain the text."""
    text = request.query.get("find", "")[:FIND_CHARACTERS_MAX]
    return json_reply(await request.app[GALLERY].found(text))


def _read(path: Path) -> PageFile:
    body = path.read_bytes()
    return PageFile(body, KINDS[path.suffix], f'"{sha256(body).hexdigest()[:16]}"')
