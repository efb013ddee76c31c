"""An S3 server on loopback that is as far away as a real one: moto behind a wire of fixed latency.

    with slow_s3(latency_s=0.05) as store: ...

moto runs in a process of its own and keeps objects in files. In front of it stands a relay, in
another, that delivers every piece of bytes half a round trip late in each direction, and holds back
requests whose path contains a given word. Both stand for another machine, so they yield to what is
measured on this one, and share no interpreter with whoever measures.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
def slow_s3(
    latency_s: float, work: Path, hold: Mapping[str, float] | None = None
) -> Iterator[Store]:
    """The store, empty but for its bucket; `latency_s` is a whole round trip.

    `hold`: seconds that a request waits whose path contains the word.
    """
    port = free_port()
    # Objects are kept in files, under `work`: a thousand adapters are gigabytes.
    environment = os.environ | {"MOTO_S3_DEFAULT_KEY_BUFFER_SIZE": "65536", "TMPDIR": str(work)}
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    with (work / "s3.log").open("wb") as output:
        server = _elsewhere("-c", program, stdout=output, stderr=output, env=environment)
    near = free_port()
    told = json.dumps([near, port, latency_s / 2, dict(hold or {})])
    relay = _elsewhere(__file__, told)
    store = Store(f"http://127.0.0.1:{near}", f"http://127.0.0.1:{port}")
    try:
        _wait_listening(port, server)
        _wait_listening(near, relay)
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        for process in (relay, server):
            process.terminate()
            process.wait(timeout=30)


def _elsewhere(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Python, behind what is measured, but not so far that nothing would come from it.

    Where Linux groups processes by session, the place of the session counts.
    """
    command = ["nice", "-n", "10", sys.executable, *arguments]
    process = subprocess.Popen(command, start_new_session=True, **options)
    with suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("10")
    return process


def free_port() -> int:
    """A port of loopback that was free a moment ago."""
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


class _Relay:
    """Bytes both ways between the ports `near` and `far`, each piece `delay_s` late."""

    def __init__(self, near: int, far: int, delay_s: float, hold: Mapping[str, float]) -> None:
        self._near, self._far, self._delay_s, self._hold = near, far, delay_s, hold
        # asyncio itself keeps no task alive: a connection that waits could be collected.
        self._connections = set[asyncio.Task[None]]()

    async def serve(self) -> None:
        """Until the process is ended."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", self._near)
        await server.serve_forever()

    def _accept(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(near, near_out))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _connection(self, near: asyncio.StreamReader, near_out: asyncio.StreamWriter) -> None:
        far, far_out = await asyncio.open_connection("127.0.0.1", self._far)
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


if __name__ == "__main__":
    asyncio.run(_Relay(*json.loads(sys.argv[1])).serve())
