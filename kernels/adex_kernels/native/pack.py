"""An adapter's matrices from the file it was saved in into its bundle, in one pass (pack.c)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adex_kernels.native import library
from adex_kernels.native.memory import address

_TYPES = [*library.TYPES]
_BYTES = np.array([dtype.itemsize for dtype in _TYPES])
# pack.c's `Piece`.
_PIECE = np.dtype(
    [
        *((name, np.int64) for name in ("start", "at", "rows", "columns")),
        ("kind", np.int32),
        ("turned", np.int32),
        ("scale", np.float32),
        ("unused", np.int32),
    ]
)


class Piece(NamedTuple):
    """A matrix [rows, columns] of `dtype`, from byte `start` of a file on.

    It goes to element `at` of the bundle and what follows, times `scale`: as it is, or `turned`
    [columns, rows].
    """

    start: int
    at: int
    rows: int
    columns: int
    dtype: torch.dtype
    turned: bool
    scale: float


def table_of(pieces: Sequence[Piece]) -> NDArray[np.void]:
    """The pieces as `pack` takes them; the same serves every file of the same form."""
    rows = [
        (*each[:4], _TYPES.index(each.dtype), int(each.turned), each.scale, 0) for each in pieces
    ]
    # A scale beyond float32 is infinite, as it is for torch, and so are its products.
    with np.errstate(over="ignore"):
        return np.array(rows, _PIECE)


def pack(file: torch.Tensor, table: NDArray[np.void], elements: torch.Tensor) -> bool | None:
    """Put the pieces of `file` ([bytes] uint8) where they belong in `elements`.

    Returns: whether all are finite, as they were and as they are now; None, with nothing done,
    where there is no compiled code to do it.
    """
    native = library.functions(elements.dtype, elements.device)
    if native is None:
        return None
    assert file.is_contiguous(), "bytes are read as they lie"
    assert elements.is_contiguous(), "a bundle is one run of elements"
    sizes = table["rows"] * table["columns"]
    ends = table["start"] + sizes * _BYTES[table["kind"]]
    assert ends.max(initial=0) <= file.nbytes, "a piece lies beyond the end of its file"
    ends = table["at"] + sizes
    assert ends.max(initial=0) <= elements.numel(), "a piece lies beyond the end of its bundle"
    return bool(native.pack(file.data_ptr(), address(table), len(table), elements.data_ptr()))
