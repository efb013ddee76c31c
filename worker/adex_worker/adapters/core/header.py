"""The header of a safetensors file, checked in full before a byte of data is believed."""

import math
from dataclasses import dataclass

from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.core.json_text import parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
HEADER_BYTES_MAX = 16 << 20
TENSORS_MAX = 50_000
# The file begins with the header's length: eight bytes, little-endian.
LENGTH_BYTES = 8

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_SAVE_AGAIN = "Save the adapter again with PEFT (safe_serialization=True)"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `start` and `stop` are bytes from the start of the file."""

    name: str
    dtype: str
    rows: int
    columns: int
    start: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.columns


def header_length(first: bytes, file_bytes: int) -> int:
    """Bytes of header that follow the first eight of a file of `file_bytes` bytes."""
    if len(first) < LENGTH_BYTES:
        raise _malformed(f"`{WEIGHTS_FILE}` has {len(first)} bytes, too few for a header")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        raise _malformed(
            f"`{WEIGHTS_FILE}` declares a header of {length} bytes, the limit is {HEADER_BYTES_MAX}"
        )
    if length > file_bytes - LENGTH_BYTES:
        raise _malformed(
            f"`{WEIGHTS_FILE}` is truncated: it declares a header of {length} bytes"
            f" and has {file_bytes} bytes in all"
        )
    return length


def parse_header(text: bytes, file_bytes: int) -> tuple[TensorEntry, ...]:
    """The tensors of the file in the order of their bytes, which they cover without gap or overlap.

    `text` is the header alone. Raises AdapterMalformed naming the tensor, or AdapterUnsupported for
    an element type that is not served.
    """
    members = parse_object(text, f"{WEIGHTS_FILE} header", _SAVE_AGAIN)
    metadata = members.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _malformed(f"`{WEIGHTS_FILE}` holds __metadata__ that is not an object")
    if len(members) > TENSORS_MAX:
        raise _malformed(
            f"`{WEIGHTS_FILE}` holds {len(members)} tensors, the limit is {TENSORS_MAX}"
        )
    data_start = LENGTH_BYTES + len(text)
    entries = [_entry(name, value, data_start) for name, value in members.items()]
    entries.sort(key=lambda entry: (entry.start, entry.stop))
    position = data_start
    for entry in entries:
        if entry.start != position:
            raise _malformed(
                f"tensor `{entry.name[:100]}` in `{WEIGHTS_FILE}` begins at byte {entry.start},"
                f" expected {position}",
                entry.name,
            )
        position = entry.stop
    if position != file_bytes:
        what = "is truncated" if position > file_bytes else "has bytes no tensor claims"
        raise _malformed(
            f"`{WEIGHTS_FILE}` {what}: its tensors end at byte {position}, the file at {file_bytes}"
        )
    return tuple(entries)


def _entry(name: str, value: object, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has a damaged entry", name)
    dtype, shape = value["dtype"], _counts(value["shape"])
    offsets = _counts(value["data_offsets"])
    if not isinstance(dtype, str) or dtype not in ELEMENT_BYTES:
        raise AdapterUnsupported(
            f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has elements of type {dtype!r:.100}",
            field=name[:100],
            remedy=f"Save it as one of {', '.join(ELEMENT_BYTES)}",
        )
    if shape is None or len(shape) != 2 or 0 in shape:
        raise _malformed(
            f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has shape {value['shape']!r:.100},"
            " expected two sizes above 0",
            name,
            "Gather the weights before saving (ZeRO-3 saves empty or flat tensors)",
        )
    if offsets is None or len(offsets) != 2:
        raise _malformed(f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has damaged offsets", name)
    size = math.prod(shape) * ELEMENT_BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise _malformed(
            f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` takes {offsets[1] - offsets[0]} bytes,"
            f" its shape {shape} of {dtype} needs {size}",
            name,
        )
    start, stop = data_start + offsets[0], data_start + offsets[1]
    return TensorEntry(name, dtype, shape[0], shape[1], start, stop)


def _counts(value: object) -> list[int] | None:
    """The list of whole numbers of at least 0 that `value` is, or None."""
    if not isinstance(value, list):
        return None
    counts = [v for v in value if isinstance(v, int) and not isinstance(v, bool) and v >= 0]
    return counts if len(counts) == len(value) else None


def _malformed(
    message: str, name: str | None = None, remedy: str = _SAVE_AGAIN
) -> AdapterMalformed:
    return AdapterMalformed(message, field=name[:100] if name else WEIGHTS_FILE, remedy=remedy)
