"""Downloads adapters from S3 and throws them away: what it costs streams that a machine downloads.

    python benchmarks/download.py URL PER_S NAME [NAME ...]

One starts every 1 / PER_S seconds, whether those before it are here or not, and is asked for as our
source asks: the config is read, the weights are described and read by ranges of 8 MiB, and both
are described again. Prints how long they took.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from urllib.parse import urlsplit

from slow_s3 import BUCKET, FILES

PART_BYTES = 8 << 20
AT_ONCE = 16


def download(url: str, name: str) -> float:
    """Fetch one adapter. Returns: seconds."""
    began_s = time.perf_counter()
    connection = HTTPConnection(urlsplit(url).netloc)
    room = bytearray(1 << 20)
    config, weights = FILES
    _asked(connection, name, config, "GET", room)
    size = _asked(connection, name, weights, "HEAD", room)
    for start in range(0, size, PART_BYTES):
        stop = min(start + PART_BYTES, size)
        _asked(connection, name, weights, "GET", room, {"Range": f"bytes={start}-{stop - 1}"})
    for file in FILES:
        _asked(connection, name, file, "HEAD", room)
    connection.close()
    return time.perf_counter() - began_s


def _asked(
    connection: HTTPConnection,
    name: str,
    file: str,
    method: str,
    room: bytearray,
    headers: dict[str, str] | None = None,
) -> int:
    """Ask, and read what comes into `room`. Returns: the length of the answer's body."""
    connection.request(method, f"/{BUCKET}/{name}/{file}", headers=headers or {})
    answer = connection.getresponse()
    assert answer.status in (200, 206), f"{method} {name}/{file}: {answer.status}"
    while answer.readinto(room):
        pass
    return int(answer.headers["Content-Length"])


def main() -> None:
    """Download at the pace that is asked for."""
    url, per_s, *names = sys.argv[1:]
    began_s = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as threads:
        under_way = []
        for name in names:
            under_way.append(threads.submit(download, url, name))
            time.sleep(1 / float(per_s))
        seconds = sorted(each.result() for each in under_way)
    took_s = time.perf_counter() - began_s
    half_s = seconds[len(seconds) // 2]
    print(f"{len(seconds)} downloads in {took_s:.1f} s, half of them within {half_s:.2f} s each")


if __name__ == "__main__":
    main()
