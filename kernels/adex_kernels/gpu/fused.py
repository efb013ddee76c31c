"""What lies between a layer's products, each in one launch: norm, rotation with the write, gate."""

import triton
import triton.language as tl
from torch import Tensor

from adex_kernels.gpu.launch import power_of_two

_COLUMNS_AT_ONCE = 1024


def add_norm_(hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `out` to `hidden` in place, then answer hidden over its root mean square, times weight.

    Args:
        hidden, out: [rows, width], contiguous rows; out None adds nothing.
        weight: [width]; in float32 it multiplies before the one rounding, otherwise after it.
    Returns: [rows, width] in hidden's dtype.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467; the roundings are those of transformers.
    """
    rows, width = hidden.shape
    normed = hidden.new_empty((rows, width))
    other = hidden if out is None else out
    _add_norm[(rows,)](
        hidden,
        other,
        weight,
        normed,
        hidden.stride(0),
        other.stride(0),
        normed.stride(0),
        width,
        eps,
        ADDS=out is not None,
        WIDE_WEIGHT=weight.dtype != hidden.dtype,
        WIDTH=power_of_two(width),
    )
    return normed


def rotate_write_(
    heads: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: Tensor,
    layer: int,
    write_pages: Tensor,
    write_offsets: Tensor,
    query_heads: int,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """Norm and rotate the queries in place; write keys, so treated, and values to their blocks.

    Args:
        heads: [rows, query_heads + 2 * kv_heads, head_dim], the last two dimensions contiguous.
        cos, sin: [rows, 1, rotary_dim]; sin's first half carries the minus sign.
        kv: [pages, layers, 2, block_tokens, kv_heads, head_dim], contiguous.
        write_pages, write_offsets: [rows], each row's block and its place within; a row whose page
            is below 0 is passed over.
        norm: [query_heads + kv_heads, head_dim], rows contiguous, or None; it multiplies each
            query and key over its root mean square, after that is rounded.
    """
    rows, total, head_dim = heads.shape
    rotary_dim = cos.shape[-1]
    _rotate_write[(rows, total)](
        heads,
        cos,
        sin,
        kv,
        write_pages,
        write_offsets,
        heads if norm is None else norm,
        heads.stride(0),
        cos.stride(0),
        sin.stride(0),
        kv.stride(0),
        layer,
        kv.stride(1),
        kv.stride(2),
        kv.stride(3),
        query_heads,
        (total - query_heads) // 2,
        head_dim,
        rotary_dim // 2,
        eps,
        HALF=power_of_two(rotary_dim // 2),
        REST=power_of_two(head_dim - rotary_dim),
        DIM=power_of_two(head_dim),
        PARTIAL=rotary_dim < head_dim,
        NORMS=norm is not None,
    )


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """The gated half of an MLP: activation of the first half of each row, times the second.

    `activation` is "silu", "gelu" or "gelu_tanh". Returns: [rows, width / 2].
    """
    rows, width = gate_up.shape
    wide = gate_up.new_empty((rows, width // 2))
    _gate[(rows, triton.cdiv(width // 2, _COLUMNS_AT_ONCE))](
        gate_up,
        wide,
        gate_up.stride(0),
        wide.stride(0),
        width // 2,
        ACTIVATION=activation,
        COLUMNS=_COLUMNS_AT_ONCE,
    )
    return wide


@triton.jit
def _add_norm(
    hidden_ptr,
    out_ptr,
    weight_ptr,
    normed_ptr,
    hidden_stride,
    out_stride,
    normed_stride,
    width,
    eps,
    ADDS: tl.constexpr,
    WIDE_WEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    dtype = hidden_ptr.dtype.element_ty
    x = tl.load(hidden_ptr + row * hidden_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(out_ptr + row * out_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(dtype)
        tl.store(hidden_ptr + row * hidden_stride + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    root = tl.rsqrt(tl.sum(x * x, 0) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    normed = x * root
    if not WIDE_WEIGHT:
        normed = normed.to(dtype).to(tl.float32)
    place = normed_ptr + row * normed_stride + column
    tl.store(place, (normed * weight).to(dtype), mask=inside)


@triton.jit(
    do_not_specialize=["layer"], do_not_specialize_on_alignment=["pages_ptr", "offsets_ptr"]
)
def _rotate_write(
    heads_ptr,
    cos_ptr,
    sin_ptr,
    kv_ptr,
    pages_ptr,
    offsets_ptr,
    norm_ptr,
    row_stride,
    cos_stride,
    sin_stride,
    page_stride,
    layer,
    layer_stride,
    value_offset,
    token_stride,
    query_heads,
    kv_heads,
    head_dim,
    half,
    eps,
    HALF: tl.constexpr,
    REST: tl.constexpr,
    DIM: tl.constexpr,
    PARTIAL: tl.constexpr,
    NORMS: tl.constexpr,
):
    """One head of one row: what turns, in two halves, and the rest of it."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    source = heads_ptr + row * row_stride + head * head_dim
    page = tl.load(pages_ptr + row).to(tl.int64)
    if page < 0:
        return
    cell = page * page_stride + layer * layer_stride
    cell += tl.load(offsets_ptr + row).to(tl.int64) * token_stride
    if head >= query_heads + kv_heads:
        # Names of its own: Triton gives a name one type in both branches.
        value_dim = tl.arange(0, DIM)
        has_value = value_dim < head_dim
        values = kv_ptr + cell + value_offset + (head - query_heads - kv_heads) * head_dim
        value = tl.load(source + value_dim, mask=has_value, other=0.0)
        tl.store(values + value_dim, value, mask=has_value)
    else:
        dim = tl.arange(0, HALF)
        inside = dim < half
        rest = 2 * half + tl.arange(0, REST)
        beyond = rest < head_dim
        left = tl.load(source + dim, mask=inside, other=0.0)
        right = tl.load(source + half + dim, mask=inside, other=0.0)
        other = tl.load(source + rest, mask=beyond, other=0.0)
        if NORMS:
            weight = norm_ptr + head * head_dim
            root = _root(left, right, other, head_dim, eps)
            left = _normed(left, root, weight + dim, inside)
            right = _normed(right, root, weight + half + dim, inside)
            other = _normed(other, root, weight + rest, beyond)
        cos = cos_ptr + row * cos_stride + dim
        sin = sin_ptr + row * sin_stride + dim
        turned_left = _turned(left, right, cos, sin, inside)
        turned_right = _turned(right, left, cos + half, sin + half, inside)
        if head < query_heads:
            tl.store(source + dim, turned_left, mask=inside)
            tl.store(source + half + dim, turned_right, mask=inside)
            if PARTIAL and NORMS:
                tl.store(source + rest, other, mask=beyond)
        else:
            target = kv_ptr + cell + (head - query_heads) * head_dim
            tl.store(target + dim, turned_left, mask=inside)
            tl.store(target + half + dim, turned_right, mask=inside)
            if PARTIAL:
                tl.store(target + rest, other, mask=beyond)


@triton.jit
def _turned(x, partner, cos_ptr, sin_ptr, inside):
    """x cos + partner sin, rounded once."""
    cos = tl.load(cos_ptr, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr, mask=inside, other=0.0).to(tl.float32)
    return (x.to(tl.float32) * cos + partner.to(tl.float32) * sin).to(x.dtype)


@triton.jit
def _root(left, right, other, head_dim, eps):
    """One over the root mean square of a head, of which these are the parts."""
    left, right, other = left.to(tl.float32), right.to(tl.float32), other.to(tl.float32)
    total = tl.sum(left * left, 0) + tl.sum(right * right, 0) + tl.sum(other * other, 0)
    return tl.rsqrt(total / head_dim + eps)


@triton.jit
def _normed(x, root, weight_ptr, inside):
    weight = tl.load(weight_ptr, mask=inside, other=0.0).to(tl.float32)
    normed = (x.to(tl.float32) * root).to(x.dtype)
    return (normed.to(tl.float32) * weight).to(x.dtype)


@triton.jit
def _gate(
    gate_up_ptr,
    wide_ptr,
    in_stride,
    out_stride,
    width,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < width
    source = gate_up_ptr + row * in_stride + column
    dtype = gate_up_ptr.dtype.element_ty
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "silu":
        active = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu_tanh":
        # 1 + tanh(u) = 2 sigmoid(2 u)
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        active = gate * tl.sigmoid(2.0 * inner)
    else:
        tl.static_assert(ACTIVATION == "gelu", "an unknown activation")
        active = 0.5 * gate * (1.0 + tl.erf(gate * 0.7071067811865476))
    product = active.to(dtype).to(tl.float32) * up
    tl.store(wide_ptr + row * out_stride + column, product.to(dtype), mask=inside)
