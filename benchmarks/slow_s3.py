"""An S3 server on loopback that is as far away as a real one: moto behind a wire of fixed latency.

    with slow_s3(latency_s=0.05) as store: ...

moto runs in a process of its own and keeps objects in files. In front of it stands a relay that
delivers every piece of bytes half a round trip late in each direction, and that can hold back the
answer for any object whose key contains a given word.
"""

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

BUCKET = "adapters"
KEY_ID, SECRET = "benchmark", "benchmark"
START_S_MAX = 60.0
PIECE_BYTES = 1 << 18


@dataclass(slots=True)
class Store:
    """Where the relay listens, and how to fill the bucket behind it without its delay."""

    url: str
    direct_url: str
    hold: dict[str, float] = field(default_factory=dict)
    """Seconds that a request waits whose path contains the word."""

    def environment(self) -> dict[str, str]:
        """What a server needs in its environment to read from here."""
        return {
            "AWS_ENDPOINT_URL_S3": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """boto3, straight to the server behind the relay."""
        return boto3.client(
            "s3",
            endpoint_url=self.direct_url,
            region_name="us-east-1",
            aws_access_key_id=KEY_ID,
            aws_secret_access_key=SECRET,
            config=Config(retries={"total_max_attempts": 3}),
        )

    def upload(self, name: str, folder: Path) -> None:
        """Put one adapter's folder under the bucket."""
        client = self.client()
        for path in sorted(folder.glob("adapter_*")):
            with path.open("rb") as body:
                client.put_object(Bucket=BUCKET, Key=f"{name}/{path.name}", Body=body)


@contextmanager
def slow_s3(latency_s: float, work: Path) -> Iterator[Store]:
    """The store, empty but for its bucket; `latency_s` is a whole round trip."""
    port = free_port()
    # Objects are kept in files, under `work`: a thousand adapters are gigabytes.
    environment = os.environ | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "65536", "TMPDIR": str(work)}
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with (work / "s3.log").open("wb") as output:
        process = subprocess.Popen(
            # It stands for another machine, so it yields to what is measured on this one.
            ["nice", "-n", "15", sys.executable, "-c", program],
            stdout=output,
            stderr=output,
            env=environment,
        )
    store = Store("", f"http://127.0.0.1:{port}")
    relay = _Relay(port, latency_s / 2, store.hold)
    try:
        _wait_listening(port, process)
        store.client().create_bucket(Bucket=BUCKET)
        store.url = f"http://127.0.0.1:{relay.start()}"
        yield store
    finally:
        relay.stop()
        process.terminate()
        process.wait(timeout=30)


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S_MAX
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the S3 server ended with {process.returncode}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise SystemExit("the S3 server was not ready in time")


class _Relay:
    """Bytes both ways, each piece `delay_s` late. Runs on a thread with a loop of its own."""

    def __init__(self, port: int, delay_s: float, hold: dict[str, float]) -> None:
        self._port, self._delay_s, self._hold = port, delay_s, hold
        self._listening: Future[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def start(self) -> int:
        """Begin to listen; returns the port."""
        self._thread.start()
        return self._listening.result(timeout=10)[0]

    def stop(self) -> None:
        """End every connection."""
        if self._thread.is_alive():
            _, loop, over = self._listening.result(timeout=10)
            loop.call_soon_threadsafe(over.set)
            self._thread.join(timeout=10)

    async def _serve(self) -> None:
        over = asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        port = int(server.sockets[0].getsockname()[1])
        self._listening.set_result((port, asyncio.get_running_loop(), over))
        await over.wait()

    async def _connection(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._carry(near, far_out, requests=True))
                tasks.create_task(self._carry(far, near_out, requests=False))
        except* (OSError, asyncio.CancelledError):
            # The other side hung up, or the benchmark is over.
            pass
        finally:
            near_out.close()
            far_out.close()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, requests: bool
    ) -> None:
        """Deliver in order, each piece at the time it came plus the delay."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)

        now = asyncio.get_running_loop().time

        async def read() -> None:
            while True:
                data = await source.read(PIECE_BYTES)
                delay_s = self._delay_s
                if requests:
                    head = data.split(b"\r\n", 1)[0]
                    delay_s += sum(s for word, s in self._hold.items() if word.encode() in head)
                await pieces.put((now() + delay_s, data))
                if not data:
                    return

        async def write() -> None:
            while True:
                due, data = await pieces.get()
                await asyncio.sleep(max(0.0, due - now()))
                if not data:
                    with suppress(OSError):
                        sink.write_eof()
                    return
                sink.write(data)
                await sink.drain()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            tasks.create_task(write())
