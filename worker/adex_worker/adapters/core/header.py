"""The header of a safetensors file, checked in full before a byte of data is believed."""

import math
from dataclasses import dataclass

from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.core.json_text import parse_object

WEIGHTS_FILE = "adapter_model.safetensors"
HEADER_BYTES_MAX = 16 << 20
TENSORS_MAX = 50_000
# A tensor has a name, a type, a shape and offsets; as much again is for what exporters add.
_MEMBERS_MAX = 8 * TENSORS_MAX
# The file begins with the header's length: eight bytes, little-endian.
LENGTH_BYTES = 8

ELEMENT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
# Sizes and offsets beyond these belong to no file; they keep the arithmetic below small.
_DIMENSIONS_MAX = 8
_COUNT_MAX = 1 << 48
_SAVE_AGAIN = "Save the adapter again with PEFT (safe_serialization=True)"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `start` and `stop` are bytes from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


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

    `text` is the header alone. Raises AdapterMalformed naming the tensor. Whether names, types and
    shapes are served is not judged here.
    """
    members = parse_object(text, f"{WEIGHTS_FILE} header", _SAVE_AGAIN, members_max=_MEMBERS_MAX)
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


def check_matrix(entry: TensorEntry) -> None:
    """Raise unless the tensor is a matrix of a served element type that is not empty."""
    if entry.dtype not in ELEMENT_BYTES:
        raise AdapterUnsupported(
            f"tensor `{entry.name}` in `{WEIGHTS_FILE}` has elements of type {entry.dtype[:100]!r}",
            field=entry.name,
            remedy=f"Save it as one of {', '.join(ELEMENT_BYTES)}",
        )
    if len(entry.shape) != 2 or 0 in entry.shape:
        raise _malformed(
            f"tensor `{entry.name}` in `{WEIGHTS_FILE}` has shape {list(entry.shape)!r:.100},"
            " expected two sizes above 0",
            entry.name,
            "Gather the weights before saving (ZeRO-3 saves empty or flat tensors)",
        )


def _entry(name: str, value: object, data_start: int) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise _malformed(f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has a damaged entry", name)
    dtype, shape, offsets = value["dtype"], _counts(value["shape"]), _counts(value["data_offsets"])
    if not isinstance(dtype, str) or shape is None or offsets is None or len(offsets) != 2:
        raise _malformed(
            f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` has a damaged type, shape or offsets", name
        )
    taken = offsets[1] - offsets[0]
    # Types outside the table have no size here; they are refused by name afterwards.
    needed = math.prod(shape) * ELEMENT_BYTES[dtype] if dtype in ELEMENT_BYTES else taken
    if taken < 0 or taken != needed:
        raise _malformed(
            f"tensor {name[:100]!r} in `{WEIGHTS_FILE}` takes {taken!r:.30} bytes,"
            f" its shape {shape!r:.100} of {dtype} needs {needed!r:.30}",
            name,
        )
    start, stop = data_start + offsets[0], data_start + offsets[1]
    return TensorEntry(name, dtype, tuple(shape), start, stop)


def _counts(value: object) -> list[int] | None:
    """The short list of whole numbers of at least 0 that `value` is, or None."""
    if not isinstance(value, list) or len(value) > _DIMENSIONS_MAX:
        return None
    counts = [v for v in value if isinstance(v, int) and not isinstance(v, bool)]
    counts = [count for count in counts if 0 <= count <= _COUNT_MAX]
    return counts if len(counts) == len(value) else None


def _malformed(
    message: str, name: str | None = None, remedy: str = _SAVE_AGAIN
) -> AdapterMalformed:
    return AdapterMalformed(message, field=name[:100] if name else WEIGHTS_FILE, remedy=remedy)
