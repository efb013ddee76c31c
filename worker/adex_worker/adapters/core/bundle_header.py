"""The front of a bundle file: what its elements are, and how to know that they are whole.

File: magic, header length (4 bytes, little-endian), SHA-256 of the header, header (JSON), zeros up
to a multiple of 64, elements. The elements are the bytes that host and device hold.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from adex_kernels.layout import ALIGN_ELEMENTS, BundleLayout, ModelShape, Module, bundle_layout
from adex_proto.adapter import AdapterVersion

# Raised whenever the meaning of a bundle's bytes changes; older files are then converted again.
BUNDLE_VERSION = 2
MAGIC = b"ADEXBNDL"
PREAMBLE_BYTES = len(MAGIC) + 4 + 32
ALIGN_BYTES = 64
HEADER_BYTES_MAX = 4 << 20

_FILE_NAME = re.compile(r"([0-9a-f]{64})-([0-9a-f]{16})\.bundle")


class BundleDamaged(Exception):  # noqa: N818 -- it says what is the matter  # noqa: N818 -- it says what is the matter
    """A bundle file is not what was written; it must not be used."""


@dataclass(frozen=True, slots=True)
class BundleHeader:
    """What one bundle file says of itself. `checksum` is the digest (hex) of its elements."""

    version: AdapterVersion
    fingerprint: str
    dtype: str
    ranks: Mapping[tuple[int, Module], int]
    checksum: str


def fingerprint_of(shape: ModelShape, dtype: str) -> str:
    """What a bundle depends on besides its adapter: 16 hex digits over shapes, type and layout."""
    facts = {
        "bundle_version": BUNDLE_VERSION,
        "align_elements": ALIGN_ELEMENTS,
        "dtype": dtype,
        "layers": shape.layers,
        "linears": [[linear.in_features, linear.out_features] for linear in shape.linears],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def file_name(digest: str, fingerprint: str) -> str:
    """The name of the bundle file of adapter `digest` for base shape `fingerprint`."""
    return f"{digest}-{fingerprint}.bundle"


def digest_in(name: str, fingerprint: str) -> str | None:
    """The digest in a bundle file's name, None when it is not a bundle for `fingerprint`."""
    found = _FILE_NAME.fullmatch(name)
    return found[1] if found and found[2] == fingerprint else None


def encode_front(header: BundleHeader) -> bytes:
    """Everything that precedes the elements in the file."""
    text = json.dumps(
        {
            "bundle_version": BUNDLE_VERSION,
            "fingerprint": header.fingerprint,
            "dtype": header.dtype,
            "digest": header.version.digest,
            "bundle_bytes": header.version.bundle_bytes,
            "rank_max": header.version.rank_max,
            "modules": header.version.modules,
            "ranks": [
                [layer, int(module), rank] for (layer, module), rank in sorted(header.ranks.items())
            ],
            "checksum": header.checksum,
        },
        separators=(",", ":"),
    ).encode()
    front = MAGIC + len(text).to_bytes(4, "little") + hashlib.sha256(text).digest() + text
    return front.ljust(elements_start(len(text)), b"\0")


def elements_start(header_bytes: int) -> int:
    """Where the elements begin in a file whose header has `header_bytes` bytes."""
    return -(-(PREAMBLE_BYTES + header_bytes) // ALIGN_BYTES) * ALIGN_BYTES


def header_bytes_of(preamble: bytes) -> int:
    """Bytes of header that follow the preamble. Raises BundleDamaged."""
    if len(preamble) < PREAMBLE_BYTES or not preamble.startswith(MAGIC):
        raise BundleDamaged("it does not begin as a bundle")
    length = int.from_bytes(preamble[len(MAGIC) : len(MAGIC) + 4], "little")
    if length > HEADER_BYTES_MAX:
        raise BundleDamaged(f"it declares a header of {length} bytes")
    return length


def decode_header(preamble: bytes, text: bytes) -> BundleHeader:
    """The header in `text`, proven whole by the preamble. Raises BundleDamaged."""
    if hashlib.sha256(text).digest() != preamble[len(MAGIC) + 4 : PREAMBLE_BYTES]:
        raise BundleDamaged("its header was altered")
    facts = json.loads(text)
    if facts["bundle_version"] != BUNDLE_VERSION:
        raise BundleDamaged(f"it is of version {facts['bundle_version']}, not {BUNDLE_VERSION}")
    return BundleHeader(
        AdapterVersion(facts["digest"], facts["bundle_bytes"], facts["rank_max"], facts["modules"]),
        facts["fingerprint"],
        facts["dtype"],
        {(layer, Module(module)): rank for layer, module, rank in facts["ranks"]},
        facts["checksum"],
    )


def layout_of(header: BundleHeader, shape: ModelShape, element_bytes: int) -> BundleLayout:
    """The layout of the bundle's elements. Raises BundleDamaged for a header that errs."""
    try:
        layout = bundle_layout(shape, header.ranks)
    except ValueError as error:
        raise BundleDamaged(str(error)) from error
    if layout.elements * element_bytes != header.version.bundle_bytes:
        raise BundleDamaged(
            f"its ranks need {layout.elements * element_bytes} bytes,"
            f" it declares {header.version.bundle_bytes}"
        )
    return layout
