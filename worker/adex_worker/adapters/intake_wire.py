"""What a worker and its intake process say to each other: frames through two pipes.

The worker sends OPTIONS once, then a COMMAND for each adapter, in the words of the wire to the
worker. The process answers each with one ANSWER, in the words of the wire from it; before it keeps
a bundle it ASKs, naming the digest, and waits for GRANT or REFUSE.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import IO

from adex_proto.logs import LogFormat
from adex_worker.adapters.core.remote_names import S3Place
from adex_worker.adapters.format import Limits

_FRONT = struct.Struct("<IIB")
FRAME_BYTES_MAX = 4 << 20


class Kind(IntEnum):
    """What a frame says."""

    OPTIONS = 0
    COMMAND = 1
    ANSWER = 2
    ASK = 3
    GRANT = 4
    REFUSE = 5


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; `number` is that of the command it belongs to."""

    number: int
    kind: Kind
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class IntakeOptions:
    """What the process must know.

    `dtype` is the serving type's name, `kernels` the compiled kernels where the worker has some.
    """

    cache_dir: Path
    local_roots: tuple[Path, ...]
    s3_roots: tuple[S3Place, ...]
    use_server_hf_token: bool
    limits: Limits
    dtype: str
    kernels: Path | None
    log_level: str
    log_format: LogFormat


def write_frame(stream: IO[bytes], frame: Frame) -> None:
    """Raises OSError where nobody reads any more."""
    stream.write(_FRONT.pack(len(frame.data), frame.number, frame.kind) + frame.data)
    stream.flush()


def read_frame(stream: IO[bytes]) -> Frame | None:
    """The next frame, None at the end. Raises ValueError for what is none."""
    front = stream.read(_FRONT.size)
    if len(front) < _FRONT.size:
        return None
    size, number, kind = _FRONT.unpack(front)
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes, at most {FRAME_BYTES_MAX} are read")
    data = stream.read(size)
    return Frame(number, Kind(kind), data) if len(data) == size else None
