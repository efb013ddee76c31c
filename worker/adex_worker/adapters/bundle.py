"""Packs a checked adapter into its bundle: the one form it has on disk, host and device."""

import torch

from adex_kernels.layout import GROUP_MODULES, BundleLayout, Group
from adex_proto.errors import AdapterMalformed, AdapterUnsupported
from adex_worker.adapters.byte_views import byte_view, digest_of_content
from adex_worker.adapters.core.header import WEIGHTS_FILE, TensorEntry
from adex_worker.adapters.core.terms import LowRankTerm
from adex_worker.adapters.format import CheckedAdapter

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_GROUP_OF = {module: group for group in Group for module in GROUP_MODULES[group]}


def pack(adapter: CheckedAdapter, dtype: torch.dtype) -> torch.Tensor:
    """The bundle's elements, [layout.elements] of `dtype`, gaps zero.

    The scale is folded into B in float32 before the cast. Raises AdapterMalformed for a tensor with
    NaN or infinity, AdapterUnsupported where a finite value does not fit `dtype`.
    """
    elements = torch.zeros(adapter.layout.elements, dtype=dtype)
    for term in adapter.terms:
        a_room, b_room = _rooms(elements, adapter.layout, term)
        a = _read(adapter.weights, term.a)
        a_room.copy_(a)
        _check_finite(a_room, a, term.a, dtype)
        b = _read(adapter.weights, term.b)[term.b_start : term.b_stop]
        # Cast before the transposing copy, which then moves half as many bytes.
        b_room.copy_(b.to(torch.float32).mul(term.scale).to(dtype).t())
        _check_finite(b_room, b, term.b, dtype)
    return elements


def checksum_of(elements: torch.Tensor) -> str:
    """The digest (hex) of a bundle's bytes."""
    digest = digest_of_content()
    digest.update(byte_view(elements))
    return digest.hexdigest()


def _rooms(
    elements: torch.Tensor, layout: BundleLayout, term: LowRankTerm
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the term's A [rank, in] and B [rank, out] lie in the bundle."""
    extent = layout.group(term.layer, _GROUP_OF[term.module])
    assert extent is not None, f"no room laid out for {term.a.name}"
    part = next(part for part in extent.slices if part.module == term.module)
    a_start = extent.a_offset + part.rank_start * extent.in_features
    a_stop = a_start + part.rank * extent.in_features
    b_stop = part.b_offset + part.rank * part.out_features
    return (
        elements[a_start:a_stop].view(part.rank, extent.in_features),
        elements[part.b_offset : b_stop].view(part.rank, part.out_features),
    )


def _read(weights: torch.Tensor, entry: TensorEntry) -> torch.Tensor:
    dtype = _DTYPES[entry.dtype]
    raw = weights[entry.start : entry.stop]
    # Exporters pad the header so that tensors are aligned, but nothing obliges them to.
    if entry.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(entry.shape)


def _check_finite(
    packed: torch.Tensor, original: torch.Tensor, entry: TensorEntry, dtype: torch.dtype
) -> None:
    # The largest magnitude is NaN or infinite exactly when some element is, and it is several times
    # cheaper than testing every element.
    if torch.isfinite(packed.abs().max()):
        return
    if not torch.isfinite(original).all():
        raise AdapterMalformed(
            f"tensor `{entry.name}` in `{WEIGHTS_FILE}` holds NaN or infinity",
            field=entry.name,
            remedy="Train again or restore an earlier checkpoint: the training diverged",
        )
    raise AdapterUnsupported(
        f"tensor `{entry.name}` in `{WEIGHTS_FILE}`, with its scale, exceeds what"
        f" {str(dtype).removeprefix('torch.')} can hold",
        field=entry.name,
        remedy="Serve with --dtype bfloat16 or float32, or lower lora_alpha",
    )
