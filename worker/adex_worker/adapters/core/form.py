"""What an adapter's two texts say, its config and the header of its weights: all but the numbers.

Adapters that were trained alike have the same texts, to the byte. So what they say is remembered.
"""

from dataclasses import dataclass
from functools import lru_cache

from adex_kernels.layout import BundleLayout, ModelShape, Module, bundle_layout
from adex_worker.adapters.core.config import parse_config
from adex_worker.adapters.core.header import parse_header
from adex_worker.adapters.core.terms import LowRankTerm, low_rank_terms

_REMEMBERED_MAX = 64
# Of both texts; a header of 80 layers with all their linears has some 170 KB.
_REMEMBERED_BYTES_MAX = 256 << 10


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """The terms of an adapter, where each number lies in the file, and the layout of its bundle."""

    terms: tuple[LowRankTerm, ...]
    layout: BundleLayout

    @property
    def ranks(self) -> dict[tuple[int, Module], int]:
        return {(term.layer, term.module): term.rank for term in self.terms}


def form_of(
    config: bytes, header: bytes, file_bytes: int, shape: ModelShape, rank_max: int
) -> Form:
    """What the config and the header of a file of `file_bytes` bytes say of an adapter for `shape`.

    Raises AdapterMalformed, AdapterUnsupported, AdapterMismatch or RankTooLarge.
    """
    if len(config) + len(header) > _REMEMBERED_BYTES_MAX:
        return _read(config, header, file_bytes, shape, rank_max)
    return _remembered(config, header, file_bytes, shape, rank_max)


def _read(config: bytes, header: bytes, file_bytes: int, shape: ModelShape, rank_max: int) -> Form:
    entries = parse_header(header, file_bytes)
    terms = low_rank_terms(entries, parse_config(config), shape, rank_max)
    ranks = {(term.layer, term.module): term.rank for term in terms}
    return Form(terms, bundle_layout(shape, ranks))


_remembered = lru_cache(_REMEMBERED_MAX)(_read)
