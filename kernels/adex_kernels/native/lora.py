"""The compiled low-rank terms (lora.h, lora.c): what describes adapters and steps, and the call."""

import ctypes
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from adex_kernels.batch import LoraBatch, LoraRecord, ThinSegments
from adex_kernels.layout import BundleLayout, Group
from adex_kernels.native import library

# Segments of more rows than the first, whose rows times ranks (of the widest group) exceed the
# second, are faster through a processor's matrix units, in torch.
_ROWS_ALWAYS = 8
_ROWS_RANKS_MAX = 1536

UNFIT = 1


class _Call(ctypes.Structure):
    """lora.h's `Call`."""

    _fields_ = (
        ("y", ctypes.c_void_p),
        ("y_stride", ctypes.c_int64),
        ("y_columns", ctypes.c_int64),
        ("x", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("x_columns", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("segments", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("index", ctypes.c_int64),
        ("shrunk", ctypes.c_void_p),
        ("threads", ctypes.c_int64),
    )


class _Form(NamedTuple):
    """A record but for where its bundle lies: the words at `places` are 0, and mean the element of
    the bundle that `elements` says."""

    words: Tensor
    places: Tensor
    elements: Tensor
    rank_total_max: int


def record_of(elements: Tensor, layout: BundleLayout) -> LoraRecord | None:
    """The adapter whose bundle is `elements`, for lora.h; None where it is not on the CPU, or of a
    type that is not served there."""
    if elements.device.type != "cpu" or elements.dtype not in library.TYPES:
        return None
    assert elements.is_contiguous(), "a bundle is one run of elements"
    form = _form(layout)
    words = form.words.clone()
    words[form.places] = form.elements * elements.itemsize + elements.data_ptr()
    return LoraRecord(words, elements.dtype, form.rank_total_max)


@lru_cache(64)
def _form(layout: BundleLayout) -> _Form:
    """int64 words: the offset of each (layer, group)'s entry, 0 for none, then the entries: A's
    address, in, ranks, slices, then for each slice rank_start, rank, out_start, out, B's address.
    """
    offsets, entries = [0] * len(layout.groups), list[int]()
    places, elements = list[int](), list[int]()
    for index, extent in enumerate(layout.groups):
        if extent is None:
            continue
        start = offsets[index] = len(offsets) + len(entries)
        places.append(start)
        elements.append(extent.a_offset)
        entries += (0, extent.in_features, extent.rank_total, len(extent.slices))
        for part in extent.slices:
            entries += (part.rank_start, part.rank, part.out_start, part.out_features, 0)
            places.append(len(offsets) + len(entries) - 1)
            elements.append(part.b_offset)
    rank_total_max = max((each.rank_total for each in layout.groups if each), default=0)
    words = torch.tensor(offsets + entries)
    return _Form(words, torch.tensor(places), torch.tensor(elements), rank_total_max)


def add_(
    y: Tensor, x: Tensor, lora: LoraBatch, layer: int, group: int
) -> list[tuple[int, int, int]]:
    """Add the terms of the segments that are served here; answers the others."""
    native = library.functions(y.dtype, y.device)
    if native is None or y.dtype != x.dtype:
        return lora.segments
    if y.stride(1) != 1 or x.stride(1) != 1 or y.shape[0] != x.shape[0]:
        return lora.segments
    thin = lora.thin
    if thin is None:
        thin = lora.thin = thin_segments(lora, y.dtype, _is_thin)
    if not thin.records:
        return lora.segments
    call = _Call(
        y.data_ptr(),
        y.stride(0),
        y.shape[1],
        x.data_ptr(),
        x.stride(0),
        x.shape[1],
        x.shape[0],
        thin.words.data_ptr(),
        len(thin.records),
        layer * len(Group) + group,
        thin.shrunk.data_ptr(),
        torch.get_num_threads(),
    )
    if native.lora_add(ctypes.byref(call)) == UNFIT:
        shapes = f"x {list(x.shape)} and y {list(y.shape)}"
        raise ValueError(f"an adapter's matrices or rows at {layer, group} do not fit {shapes}")
    return thin.others


def _is_thin(rows: int, record: LoraRecord) -> bool:
    return rows <= _ROWS_ALWAYS or rows * record.rank_total_max <= _ROWS_RANKS_MAX


def thin_segments(
    lora: LoraBatch, dtype: torch.dtype, is_thin: Callable[[int, LoraRecord], bool]
) -> ThinSegments:
    """The segments that `is_thin(rows, record)` and have a record of the type, and the others."""
    words, records, shrunk = list[int](), list[LoraRecord](), 0
    others: list[tuple[int, int, int]] = []
    for start, stop, slot in lora.segments:
        rows, record = stop - start, lora.slots.record(slot)
        if record is None or record.dtype != dtype or not is_thin(rows, record):
            others.append((start, stop, slot))
            continue
        records.append(record)
        words += (start, rows, record.words.data_ptr(), shrunk)
        shrunk += rows * record.rank_total_max
    return ThinSegments(torch.tensor(words), records, torch.empty(shrunk), others)
