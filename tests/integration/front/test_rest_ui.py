"""The page's routes: its files under a strict policy, the feed, and the names it finds."""

import asyncio
import json
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from adex_proto.adapter import AdapterKey
from adex_scheduler.front.ports import Serving
from adex_scheduler.front.rest_ui import PAGE

Opened = Callable[[Serving], AbstractAsyncContextManager[Any]]
KEY = "an admin key"


async def first_snapshot(url: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    async with (
        asyncio.timeout(30),
        aiohttp.ClientSession() as session,
        session.get(f"{url}/ui/feed", headers=headers) as response,
    ):
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        line = await response.content.readline()
        told: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
        return told


async def test_every_file_of_the_page_comes_with_a_policy_that_allows_only_this_server(
    door: Any,
) -> None:
    async with httpx.AsyncClient(base_url=door.url) as client:
        for path in ["/ui", *(f"/ui/{file.name}" for file in PAGE.iterdir())]:
            response = await client.get(path)
            assert response.status_code == 200, path
            policy = response.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
            again = await client.get(path, headers={"If-None-Match": response.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")


def test_the_page_names_only_files_that_are_there_and_nothing_from_elsewhere() -> None:
    page = (PAGE / "index.html").read_text("utf-8")
    named = re.findall(r'(?:src|href)="(?!#)([^"]*)"', page)
    scripts = [file.read_text("utf-8") for file in PAGE.glob("*.js")]
    named += [f"ui/{name}" for text in scripts for name in re.findall(r'from "\./([^"]*)"', text)]
    assert len(named) > 8
    assert {name.removeprefix("ui/") for name in named} <= {file.name for file in PAGE.iterdir()}
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script>", page)


async def test_what_is_no_file_of_the_page_is_not_found(door: Any) -> None:
    async with httpx.AsyncClient(base_url=door.url) as client:
        for path in ("/ui/none.js", "/ui/..%2frest.py", "/ui/%2e%2e%2frest.py", "/ui/page.css%00"):
            assert (await client.get(path)).status_code == 404, path
        slashed = await client.get("/ui/")
        assert (slashed.status_code, slashed.headers["location"]) == (308, "../ui")


async def test_the_feed_begins_before_any_worker_has_come(door: Any) -> None:
    told = await first_snapshot(door.url)
    assert (told["whole"], told["connected"]) == (True, False)
    assert told["source"]["names"] == ["friendly"]


async def test_a_server_with_an_admin_key_feeds_its_holder_only(
    serving_of: Callable[..., Serving], opened: Opened
) -> None:
    async with opened(serving_of(admin_key=KEY)) as door:
        async with httpx.AsyncClient(base_url=door.url) as client:
            assert (await client.get("/ui")).status_code == 200
            for headers in ({}, {"authorization": "Bearer another"}):
                assert (await client.get("/ui/feed", headers=headers)).status_code == 401
        told = await first_snapshot(door.url, {"authorization": f"Bearer {KEY}"})
        assert told["whole"] is True


async def test_names_are_found_by_any_part_and_first_by_their_beginning(
    serving_of: Callable[..., Serving], opened: Opened, tmp_path: Path
) -> None:
    for name in ["sql", "my-sql", "owner/sql-2", "french", *(f"a{n:03}" for n in range(100))]:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    serving = serving_of(adapter_roots=(str(tmp_path),))
    async with opened(serving) as door, httpx.AsyncClient(base_url=door.url) as client:
        found = (await client.get("/ui/adapters", params={"find": "SQL"})).json()
        assert found["names"] == ["sql", "my-sql", "owner/sql-2"]
        every = (await client.get("/ui/adapters")).json()
        assert (every["known"], every["count"], len(every["names"])) == (105, 105, 50)


async def test_a_name_given_while_the_server_runs_is_shown_until_it_is_taken_back(
    serving_of: Callable[..., Serving], opened: Opened
) -> None:
    serving = serving_of()
    async with opened(serving) as door, httpx.AsyncClient(base_url=door.url) as client:
        for named in (False, True, False):
            if named:
                serving.directory.aliases["given"] = AdapterKey("", "hub", "org/name")
            else:
                serving.directory.aliases.pop("given", None)
            found = (await client.get("/ui/adapters", params={"find": "given"})).json()
            assert found["names"] == ["given"] * named


async def test_watchers_do_not_hold_up_the_end_of_the_server(
    serving_of: Callable[..., Serving], opened: Opened
) -> None:
    async with aiohttp.ClientSession() as session:
        async with opened(serving_of()) as door:
            response = await session.get(f"{door.url}/ui/feed")
            await response.content.readline()
        async with asyncio.timeout(10):
            with suppress(aiohttp.ClientError):
                await response.content.read()
