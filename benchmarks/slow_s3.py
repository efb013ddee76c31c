"""An S3 server on loopback, as far away as a real one, that hardly costs the machine anything.

    with slow_s3(latency_s=0.05, work=folder) as store: ...

It answers what our source asks: HEAD, and GET of a range by its ETag; what it keeps was put there
through `Store.upload`. Each answer comes a round trip late, its bytes at the pace that S3 gives one
connection. It stands for another machine: it runs in a process and a session of its own, and hands
files to the kernel, so that it takes some 5 ms of processor time for 10 MB.
"""

import asyncio
import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

BUCKET = "adapters"
FILES = ("adapter_config.json", "adapter_model.safetensors")
START_S_MAX = 60.0
PIECE_BYTES = 1 << 20
# Of one connection; an adapter of 10 MB takes two.
BYTES_PER_S = 100e6
_LABELS = ".headers"


@dataclass(frozen=True, slots=True)
class Store:
    """Where the server listens, and the folder of what it serves."""

    url: str
    folder: Path

    def environment(self) -> dict[str, str]:
        """What a server needs in its environment to read from here."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": "benchmark",
            "AWS_SECRET_ACCESS_KEY": "benchmark",
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def upload(self, name: str, folder: Path) -> None:
        """Put one adapter's folder under the bucket."""
        place = self.folder / name
        place.mkdir()
        for path in (folder / file for file in FILES):
            data = path.read_bytes()
            crc = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
            labels = {
                "ETag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"',
                "Last-Modified": formatdate(path.stat().st_mtime, usegmt=True),
                "x-amz-checksum-crc32": crc,
                "x-amz-checksum-type": "FULL_OBJECT",
            }
            (place / f"{path.name}{_LABELS}").write_text(json.dumps(labels))
            try:
                os.link(path, place / path.name)
            except OSError:
                shutil.copy2(path, place / path.name)


@contextmanager
def slow_s3(
    latency_s: float, work: Path, hold: Mapping[str, float] | None = None
) -> Iterator[Store]:
    """The store, empty; `latency_s` is a whole round trip.

    `hold`: seconds that a request waits, besides, whose path contains the word.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        told = json.dumps([folder, port, latency_s, dict(hold or {})])
        process = subprocess.Popen([sys.executable, __file__, told], start_new_session=True)
        # Where Linux weighs sessions, behind what is measured, with enough left to keep its pace.
        with suppress(OSError):
            Path(f"/proc/{process.pid}/autogroup").write_text("10")
        try:
            _wait_listening(port, process)
            yield Store(f"http://127.0.0.1:{port}", Path(folder))
        finally:
            process.terminate()
            process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"what stands for S3 ended with {process.returncode}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("what stands for S3 was not ready in time")


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: a method, an object's file, and headers by their lower-case names."""

    method: str
    path: str
    headers: dict[str, str]

    @classmethod
    def parsed(cls, head: bytes) -> "_Asked":
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        pairs = (line.split(":", 1) for line in lines if line)
        return cls(
            method,
            target.partition("?")[0],
            {name.strip().lower(): value.strip() for name, value in pairs},
        )

    def span(self, size: int) -> range:
        """The bytes asked for: `bytes=first-last`, or all."""
        if "range" not in self.headers:
            return range(size)
        first, last = self.headers["range"].removeprefix("bytes=").split("-")
        return range(int(first), min(int(last) + 1, size))


class _Server:
    """Objects of `folder` at `port`, each answer `latency_s` late."""

    def __init__(self, folder: str, port: int, latency_s: float, hold: Mapping[str, float]) -> None:
        self._folder, self._port = Path(folder), port
        self._latency_s, self._hold = latency_s, hold

    async def serve(self) -> None:
        """Until the process is ended."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", self._port)
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        # Whoever hangs up has had enough.
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                asked = _Asked.parsed(
                    (await reader.readuntil(b"\r\n\r\n")).removesuffix(b"\r\n\r\n")
                )
                held_s = sum(s for word, s in self._hold.items() if word in asked.path)
                await asyncio.sleep(self._latency_s + held_s)
                await self._answer(asked, out)
        out.close()

    async def _answer(self, asked: _Asked, out: asyncio.StreamWriter) -> None:
        path = self._folder / asked.path.removeprefix(f"/{BUCKET}/")
        try:
            labels = json.loads(path.with_name(f"{path.name}{_LABELS}").read_text())
            size = path.stat().st_size
        except OSError:
            body = b"<Error><Code>NoSuchKey</Code></Error>"
            _say(out, "404 Not Found", {"Content-Length": len(body)})
            if asked.method != "HEAD":
                out.write(body)
            return
        if asked.headers.get("if-match", labels["ETag"]) != labels["ETag"]:
            _say(out, "412 Precondition Failed", {"Content-Length": 0})
            return
        span = asked.span(size)
        if len(span) < size:
            # The checksum is that of the whole.
            labels = {"ETag": labels["ETag"], "Last-Modified": labels["Last-Modified"]}
            labels["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
        status = "206 Partial Content" if "range" in asked.headers else "200 OK"
        _say(out, status, labels | {"Content-Length": len(span)})
        if asked.method == "GET":
            await _send(path, span, out)


def _say(out: asyncio.StreamWriter, status: str, headers: Mapping[str, object]) -> None:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items())]
    out.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


async def _send(path: Path, span: range, out: asyncio.StreamWriter) -> None:
    """The bytes of `span`, each piece at its time."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    with path.open("rb") as file:
        for start in range(span.start, span.stop, PIECE_BYTES):
            due_s = began_s + (start - span.start) / BYTES_PER_S
            await asyncio.sleep(max(0.0, due_s - loop.time()))
            count = min(PIECE_BYTES, span.stop - start)
            await loop.sendfile(out.transport, file, start, count)


if __name__ == "__main__":
    asyncio.run(_Server(*json.loads(sys.argv[1])).serve())
