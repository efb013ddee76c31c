"""Packs a checked adapter into its bundle: the one form it has on disk, host and device."""

from functools import lru_cache
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from adex_kernels.layout import GROUP_MODULES, Group
from adex_kernels.native.pack import Piece, table_of
from adex_kernels.native.pack import pack as pack_compiled
from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.byte_views import byte_view
from adex_worker.adapters.core.form import Form
from adex_worker.adapters.core.header import ELEMENT_BYTES, WEIGHTS_FILE, TensorEntry
from adex_worker.adapters.digest import digest_of_content
from adex_worker.adapters.format import CheckedAdapter

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GROUP_OF = {module: group for group in Group for module in GROUP_MODULES[group]}
# Forms whose pieces are remembered.
_FORMS_MAX = 64


def pack(adapter: CheckedAdapter, dtype: torch.dtype) -> torch.Tensor:
    """The bundle's elements, [layout.elements] of `dtype`, gaps zero.

    The scale is folded into B in float32 before the cast. Raises AdapterMalformed for a tensor with
    NaN or infinity, AdapterUnsupported where a finite value does not fit `dtype`.
    """
    elements = torch.zeros(adapter.form.layout.elements, dtype=dtype)
    finite = pack_compiled(adapter.weights, _table(adapter.form), elements)
    if finite is None:
        for piece, _ in _pieces(adapter.form):
            packed = _packed(adapter.weights, piece, dtype)
            elements[piece.at : piece.at + packed.numel()].view(packed.shape).copy_(packed)
        # The largest magnitude is NaN or infinite exactly when some element is, and it is several
        # times cheaper than testing every element.
        finite = bool(torch.isfinite(elements.abs().max()))
    if not finite:
        _refuse(adapter, dtype)
    return elements


def checksum_of(elements: torch.Tensor) -> str:
    """The digest (hex) of a bundle's bytes."""
    digest = digest_of_content()
    digest.update(byte_view(elements))
    return digest.hexdigest()


@lru_cache(_FORMS_MAX)
def _table(form: Form) -> NDArray[np.void]:
    return table_of([piece for piece, _ in _pieces(form)])


def _pieces(form: Form) -> list[tuple[Piece, TensorEntry]]:
    """Each term's A and B: where they lie in the file, and where in the bundle."""
    pieces: list[tuple[Piece, TensorEntry]] = []
    for term in form.terms:
        extent = form.layout.group(term.layer, _GROUP_OF[term.module])
        assert extent is not None, f"no room laid out for {term.a.name}"
        part = next(part for part in extent.slices if part.module == term.module)
        a_start = extent.a_offset + part.rank_start * extent.in_features
        a, b, rank = term.a, term.b, term.rank
        a_type, b_type = _DTYPES[a.dtype], _DTYPES[b.dtype]
        b_start = b.start + term.b_start * rank * ELEMENT_BYTES[b.dtype]
        b_rows = term.b_stop - term.b_start
        pieces += (
            (Piece(a.start, a_start, rank, extent.in_features, a_type, False, 1.0), a),
            (Piece(b_start, part.b_offset, b_rows, rank, b_type, True, term.scale), b),
        )
    return pieces


def _original(weights: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The piece as it lies in the file, [rows, columns]."""
    size = piece.rows * piece.columns * piece.dtype.itemsize
    raw = weights[piece.start : piece.start + size]
    # Exporters pad the header so that tensors are aligned, but nothing obliges them to.
    if piece.start % piece.dtype.itemsize:
        raw = raw.clone()
    return raw.view(piece.dtype).view(piece.rows, piece.columns)


def _packed(weights: torch.Tensor, piece: Piece, dtype: torch.dtype) -> torch.Tensor:
    """The piece as it lies in the bundle, but for its strides."""
    original = _original(weights, piece)
    if not piece.turned:
        return original.to(dtype)
    # Cast before the transposing copy, which then moves half as many bytes.
    return original.to(torch.float32).mul(piece.scale).to(dtype).t()


def _refuse(adapter: CheckedAdapter, dtype: torch.dtype) -> NoReturn:
    """Say of the first tensor that is not finite what is the matter with it."""
    for piece, entry in _pieces(adapter.form):
        if not torch.isfinite(_original(adapter.weights, piece)).all():
            raise AdapterMalformed(
                f"tensor `{entry.name}` in `{WEIGHTS_FILE}` holds NaN or infinity",
                field=entry.name,
                remedy="Train again or restore an earlier checkpoint: the training diverged",
            )
        if not torch.isfinite(_packed(adapter.weights, piece, dtype)).all():
            raise AdapterUnsupported(
                f"tensor `{entry.name}` in `{WEIGHTS_FILE}`, with its scale, exceeds what"
                f" {str(dtype).removeprefix('torch.')} can hold",
                field=entry.name,
                remedy="Serve with --dtype bfloat16 or float32, or lower lora_alpha",
            )
    raise AssertionError("a bundle is not finite, but all its tensors are")
