"""Reads an adapter from its source: config, header, checks, then the numbers, hashed as they come.

Everything that can be refused without the weights is refused before they are read.
"""

import io
from dataclasses import dataclass

import torch

from adex_kernels.layout import ModelShape
from adex_proto.adapter import AdapterVersion
from adex_proto.errors import AdapterMalformed, AdapterTooLarge, SourceUnavailable
from adex_worker.adapters.byte_views import Digest, byte_view, read_into
from adex_worker.adapters.core.config import CONFIG_FILE, check_config_bytes, parse_config
from adex_worker.adapters.core.form import Form, form_of
from adex_worker.adapters.core.header import (
    ELEMENT_BYTES,
    HEADER_BYTES_MAX,
    LENGTH_BYTES,
    WEIGHTS_FILE,
    header_length,
)
from adex_worker.adapters.digest import digest_of_content
from adex_worker.adapters.sources.source import Resolved, Source
from adex_worker.adapters.sources.transfer import Room


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts. `bundle_bytes_max` is the smallest budget a bundle must fit."""

    shape: ModelShape
    element_bytes: int
    rank_max: int
    bundle_bytes_max: int

    @property
    def weights_bytes_max(self) -> int:
        """The largest file whose bundle could fit: all float32, with the longest header."""
        factor = -(-max(ELEMENT_BYTES.values()) // self.element_bytes)
        return self.bundle_bytes_max * factor + HEADER_BYTES_MAX + LENGTH_BYTES


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter whose every tensor is accounted for. `weights` is the file, [bytes] uint8."""

    version: AdapterVersion
    form: Form
    weights: torch.Tensor


def read_adapter(source: Source, resolved: Resolved, limits: Limits) -> CheckedAdapter:
    """The adapter behind `resolved`, checked except for its numbers.

    Raises AdapterMalformed, AdapterUnsupported, AdapterMismatch, RankTooLarge, AdapterTooLarge, or
    SourceUnavailable when a file cannot be read or changes underneath.
    """
    config_text = _read_config(source, resolved)
    # Whatever it alone is refused for is known before the weights are asked for.
    parse_config(config_text)
    digest = digest_of_content()
    digest.update(len(config_text).to_bytes(8, "little") + config_text)
    size = _file_bytes(resolved, WEIGHTS_FILE)
    _check_weights(size, limits)
    with source.open(resolved, WEIGHTS_FILE) as stream:
        first = _read(stream, min(size, LENGTH_BYTES), WEIGHTS_FILE)
        header = _read(stream, header_length(first, size), WEIGHTS_FILE)
        form = form_of(config_text, header, size, limits.shape, limits.rank_max)
        bundle_bytes = form.layout.elements * limits.element_bytes
        _check_size(bundle_bytes, limits)
        weights = _whole(stream, first + header, size, digest)
    if not source.unchanged(resolved):
        raise _changed(resolved.key.name)
    rank_max, modules = form.layout.rank_max, len(form.terms)
    version = AdapterVersion(digest.hexdigest(), bundle_bytes, rank_max, modules)
    return CheckedAdapter(version, form, weights)


def _whole(stream: io.RawIOBase, front: bytes, size: int, digest: Digest) -> torch.Tensor:
    """All of the weights, [size] uint8, of which `front` has been read; `digest` is fed them."""
    if isinstance(stream, Room):
        # It has come from afar, and lies in memory already.
        digest.update(stream.memory)
        return torch.frombuffer(stream.memory, dtype=torch.uint8)
    # Uninitialised memory: every byte of it is read from the file.
    weights = torch.empty(size, dtype=torch.uint8)
    room = byte_view(weights)
    room[: len(front)] = front
    digest.update(front)
    _fill(stream, room[len(front) :], WEIGHTS_FILE, digest)
    if stream.read(1):
        raise _changed(WEIGHTS_FILE)
    return weights


def _read_config(source: Source, resolved: Resolved) -> bytes:
    size = _file_bytes(resolved, CONFIG_FILE)
    check_config_bytes(size)
    with source.open(resolved, CONFIG_FILE) as stream:
        text = _read(stream, size, CONFIG_FILE)
        if stream.read(1):
            raise _changed(CONFIG_FILE)
    return text


def _file_bytes(resolved: Resolved, name: str) -> int:
    file = resolved.file(name)
    if file is None:
        raise AdapterMalformed(
            f"adapter {resolved.key.name[:200]!r} has no `{name}`",
            field=name,
            remedy=f"Put {CONFIG_FILE} and {WEIGHTS_FILE} in its folder",
        )
    return file.bytes


def _check_weights(size: int, limits: Limits) -> None:
    """Refuse a file that no bundle could come of, before a byte of it is fetched."""
    if size > limits.weights_bytes_max:
        raise AdapterTooLarge(
            f"`{WEIGHTS_FILE}` has {size} bytes, the smallest budget its bundle must fit has"
            f" {limits.bundle_bytes_max}",
            field=WEIGHTS_FILE,
            remedy="Train a smaller rank or fewer modules, or raise --device-memory,"
            " --host-memory or --disk-memory",
        )


def _check_size(bundle_bytes: int, limits: Limits) -> None:
    if bundle_bytes > limits.bundle_bytes_max:
        raise AdapterTooLarge(
            f"the adapter's bundle takes {bundle_bytes} bytes,"
            f" the smallest budget it must fit has {limits.bundle_bytes_max}",
            field=WEIGHTS_FILE,
            remedy="Train a smaller rank or fewer modules, or raise --device-memory,"
            " --host-memory or --disk-memory",
        )


def _read(stream: io.RawIOBase, size: int, name: str) -> bytes:
    buffer = bytearray(size)
    _fill(stream, memoryview(buffer), name)
    return bytes(buffer)


def _fill(stream: io.RawIOBase, view: memoryview, name: str, digest: Digest | None = None) -> None:
    try:
        count = read_into(stream, view, digest)
    except OSError as error:
        raise SourceUnavailable(
            f"`{name}` cannot be read: {error.strerror}",
            field=name,
            remedy="Try again",
            retry_after_s=5.0,
        ) from error
    if count < len(view):
        raise _changed(name)


def _changed(name: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"`{name[:200]}` changed while it was read",
        field=name[:200],
        remedy="Try again when the adapter is written completely",
        retry_after_s=1.0,
    )
