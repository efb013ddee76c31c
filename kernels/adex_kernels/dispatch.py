"""The door to the device math: each call goes to the best implementation for its tensors.

Plain torch on every device, but for the low-rank terms, which a CPU may have compiled. Nothing here
waits for the device, but draws in plain torch, or loops over tokens; what a step needs more than
once (indices, masks) is kept in its batch.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from adex_kernels import between, draw
from adex_kernels.batch import AttentionBatch, KeyView, LoraBatch, QueryGroup
from adex_kernels.dense_lora import add_dense_
from adex_kernels.draw import DrawnRows
from adex_kernels.native import choice
from adex_kernels.native import lora as native

# Scores of capped attention are formed for as many queries at a time as keep them within this.
_SCORES_MAX = 1 << 24

# Segments of up to this many rows cost less row by row on a CPU (see `_add_thin`).
_THIN_ROWS_MAX = 4

# Products with a matrix of up to this many elements are computed by one thread: waking and awaiting
# others takes 10 microseconds, and the product itself no longer than that.
_SERIAL_ELEMENTS_MAX = 1 << 17

# By kind of device; a kind that is not here is served by what follows.
_KERNELS: dict[str, "DeviceKernels"] = {}

# Its switches are typed as descriptors, which no checker lets through.
_ONEDNN: Any = torch.backends.mkldnn


class DeviceKernels(Protocol):
    """Kernels of a kind of device, called as the functions below of the same names."""

    def attention(
        self,
        q: Tensor,
        kv: Tensor,
        layer: int,
        batch: AttentionBatch,
        *,
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor: ...

    def lora_add_(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, group: int) -> None: ...

    def add_norm_(
        self, hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float
    ) -> Tensor: ...

    def rotate_write_(
        self,
        heads: Tensor,
        rotation: tuple[Tensor, Tensor],
        kv: Tensor,
        layer: int,
        batch: AttentionBatch,
        *,
        query_heads: int,
        norm: Tensor | None,
        eps: float,
    ) -> Tensor: ...

    def gate(self, gate_up: Tensor, activation: str) -> Tensor: ...

    def draw_(self, chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None: ...


def serve_with(kernels: DeviceKernels, kind: str) -> None:
    """Have `kernels` serve this kind of device from now on."""
    _KERNELS[kind] = kernels


def has_kernels(kind: str) -> bool:
    """Whether this kind of device has kernels of its own, which need a table of the adapters."""
    return kind in _KERNELS


def clear_fresh_(kv: Tensor, batch: AttentionBatch) -> None:
    """Zero the pages that this step begins to fill; to be called once, before the first layer.

    A page may have held an adapter or another sequence: bytes that read as NaN would get through
    the mask from the cells behind a sequence's end. Kernels of a device's own read no such cells.
    """
    if batch.fresh_pages is not None and kv.device.type not in _KERNELS:
        kv.index_fill_(0, batch.fresh_pages, 0)


def kv_write_(kv: Tensor, layer: int, k: Tensor, v: Tensor, batch: AttentionBatch) -> None:
    """Store each row's key and value, [rows, kv_heads, head_dim], in its block of `layer`."""
    pages, layers, _, tokens, kv_heads, head_dim = kv.shape
    cells = kv.view(pages * layers * 2 * tokens, kv_heads, head_dim)
    first = batch.write_cells
    if first is None:
        first = batch.write_cells = batch.write_pages * (layers * 2 * tokens) + batch.write_offsets
    keys = first + layer * (2 * tokens)
    cells.index_copy_(0, keys, k)
    cells.index_copy_(0, keys + tokens, v)


def add_norm_(hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `out` to `hidden` in place, then answer hidden over its root mean square, times weight.

    Args:
        hidden, out: [rows, width]; out None adds nothing.
        weight: [width]; in float32 it multiplies before the one rounding.
    Returns: [rows, width] in hidden's dtype.
    """
    if kernels := _KERNELS.get(hidden.device.type):
        return kernels.add_norm_(hidden, out, weight, eps)
    return between.add_norm_(hidden, out, weight, eps)


def rotate_write_(
    heads: Tensor,
    rotation: tuple[Tensor, Tensor],
    kv: Tensor,
    layer: int,
    batch: AttentionBatch,
    *,
    query_heads: int,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Norm and rotate queries and keys, and store the keys and the values in their blocks.

    Args:
        heads: [rows, query_heads + 2 * kv_heads, head_dim]; its queries may be overwritten.
        rotation: cos and sin, [rows, 1, rotary_dim] each; sin's first half carries the minus sign.
        norm: [query_heads + kv_heads, head_dim], which multiplies each head over its root mean
            square before it is rotated, or None.
    Returns: the queries, [rows, query_heads, head_dim].
    """
    if kernels := _KERNELS.get(heads.device.type):
        return kernels.rotate_write_(
            heads, rotation, kv, layer, batch, query_heads=query_heads, norm=norm, eps=eps
        )
    turning = query_heads + kv.shape[4]
    turned = heads[:, :turning]
    if norm is not None:
        turned = between.head_norm(turned, norm, eps)
    turned = between.rotate(turned, *rotation)
    kv_write_(kv, layer, turned[:, query_heads:], heads[:, turning:], batch)
    return turned[:, :query_heads]


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """The gated half of an MLP: activation of the first half of each row, times the second.

    `activation` is "silu", "gelu" or "gelu_tanh". Returns: [rows, width / 2].
    """
    if kernels := _KERNELS.get(gate_up.device.type):
        return kernels.gate(gate_up, activation)
    return between.gate(gate_up, activation)


def greedy(logits: Tensor) -> Tensor:
    """The most probable token of each row, the first of equal ones, of logits [rows, vocabulary].

    Returns: [2, rows] int64, the tokens, and 1 where all of a row's logits are finite, else 0.
    """
    found = choice.greedy(logits)
    if found is not None:
        return found
    if logits.device.type == "cpu":
        # numpy's take this thread only; torch's would wake all of its own for two short passes.
        numbers = logits.numpy()
        return torch.from_numpy(np.stack((numbers.argmax(1), np.isfinite(numbers).all(1))))
    # A sum is finite if all its terms are: no model's logits reach 1e30.
    return torch.stack((logits.argmax(1), logits.sum(1).isfinite().to(torch.int64)))


def log_totals(logits: Tensor) -> Tensor:
    """The log of the sum of exp of each row of logits [rows, vocabulary]: [rows] float32."""
    found = choice.log_totals(logits)
    return logits.logsumexp(1) if found is None else found


def draw_(chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None:
    """Draw one token for each of the `drawn` rows.

    Args:
        chosen: [rows] int64, where the tokens go.
        logits: [rows, vocabulary] float32, overwritten; -inf where a token may not be drawn.
        finite: [rows] bool; a row that is not gets some token of the vocabulary.
    """
    if kernels := _KERNELS.get(logits.device.type):
        # Typical-p, which is rare, wants its tokens in an order of their own; torch sorts them.
        typical = drawn.typical_p < 1
        if not typical.all():
            kernels.draw_(chosen, logits, finite, drawn.at(~typical))
        drawn = drawn.at(typical)
    if len(drawn):
        draw.draw_(chosen, logits, finite, drawn)


def attention(
    q: Tensor,
    kv: Tensor,
    layer: int,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of every row over its sequence's blocks, this step's rows included.

    Args:
        q: [rows, heads, head_dim]; heads is a multiple of kv_heads.
        kv: [pages, layers, 2, block_tokens, kv_heads, head_dim], contiguous.
        window: positions a row sees, itself included; None is all.
        softcap: scores s become softcap * tanh(s / softcap) before the mask.
    Returns: [rows, heads * head_dim] in q's dtype.
    """
    rows = q.shape[0]
    if kernels := _KERNELS.get(q.device.type):
        return kernels.attention(q, kv, layer, batch, scale=scale, window=window, softcap=softcap)
    result: Tensor | None = None
    for group in batch.groups:
        view = group.view(window)
        keys, values = _gather(kv, layer, view, group.sequences)
        padded = _padded_queries(q, group)
        attended = (
            _attend(padded, keys, values, view, scale)
            if softcap is None
            else _attend_capped(padded, keys, values, view, scale, softcap)
        ).reshape(group.sequences * group.queries, -1)
        if group.rows is None and attended.shape[0] == rows:
            return attended
        if result is None:
            result = torch.empty((rows, attended.shape[1]), dtype=q.dtype, device=q.device)
        if group.rows is None:
            result[group.row_start : group.row_start + attended.shape[0]] = attended
        else:
            assert group.targets is not None
            result.index_copy_(0, group.targets, attended[group.picked])
    assert result is not None, "a step has rows"
    return result


def lora_add_(y: Tensor, x: Tensor, lora: LoraBatch, layer: int, group: int) -> None:
    """Add each row's low-rank term to y [rows, out of the group] in place; x is [rows, in]."""
    if lora.table is not None and (kernels := _KERNELS.get(y.device.type)):
        kernels.lora_add_(y, x, lora, layer, group)
        return
    segments = native.add_(y, x, lora, layer, group)
    if segments and y.device.type == "cpu" and y.element_size() == 2:
        segments = _add_thin(y, x, lora, segments, layer, group)
    add_dense_(y, x, lora.slots, segments, layer, group)


def _add_thin(
    y: Tensor,
    x: Tensor,
    lora: LoraBatch,
    segments: list[tuple[int, int, int]],
    layer: int,
    group: int,
) -> list[tuple[int, int, int]]:
    """Add the terms of those segments of a few rows, row by row; answers the other segments.

    oneDNN takes about 20 microseconds for any product of half-precision matrices this small;
    torch's own product of a matrix and a vector takes 2 to 5, accumulates in float32 too, and is
    chosen by one flag.
    """
    thin = [s for s in segments if s[1] - s[0] <= _THIN_ROWS_MAX]
    if not thin:
        return segments
    first = min(start for start, _, _ in thin)
    last = max(stop for _, stop, _ in thin)
    inputs = x[first:last].unbind(0)
    # The rows of each module's columns of y, made once for all segments.
    outputs: dict[int, tuple[Tensor, ...]] = {}
    was_enabled, threads = _ONEDNN.enabled, torch.get_num_threads()
    _ONEDNN.enabled = False
    try:
        for start, stop, slot in thin:
            weights = lora.slots.group(slot, layer, group)
            if weights is None:
                continue
            for _, _, out_start, out_stop, _ in weights.slices:
                if out_start not in outputs:
                    outputs[out_start] = y[first:last, out_start:out_stop].unbind(0)
            # torch wakes its threads for a product with a vector of any size.
            torch.set_num_threads(1 if weights.a.numel() <= _SERIAL_ELEMENTS_MAX else threads)
            for row in range(start - first, stop - first):
                shrunk = torch.mv(weights.a, inputs[row])
                for rank_start, rank_stop, out_start, _, b in weights.slices:
                    outputs[out_start][row].addmv_(b.t(), shrunk[rank_start:rank_stop])
    finally:
        torch.set_num_threads(threads)
        _ONEDNN.enabled = was_enabled
    return [s for s in segments if s[1] - s[0] > _THIN_ROWS_MAX]


def _gather(kv: Tensor, layer: int, view: KeyView, sequences: int) -> tuple[Tensor, Tensor]:
    """Keys and values, each [sequences, kv_heads, keys, head_dim], of the blocks in the view."""
    pages, layers, _, tokens, kv_heads, head_dim = kv.shape
    blocks = kv.view(pages * layers * 2, tokens * kv_heads * head_dim)
    if view.key_value_rows is None:
        first = view.pages * (2 * layers)
        view.key_value_rows = torch.cat((first, first + 1))
    found = blocks.index_select(0, view.key_value_rows + 2 * layer).view(
        2, sequences, -1, kv_heads, head_dim
    )
    found = found[:, :, : view.keys].transpose(2, 3)
    return found[0], found[1]


def _padded_queries(q: Tensor, group: QueryGroup) -> Tensor:
    """[sequences, queries, heads, head_dim]."""
    if group.rows is None:
        found = q[group.row_start : group.row_start + group.sequences * group.queries]
    else:
        found = q[group.rows]
    return found.view(group.sequences, group.queries, *q.shape[1:])


def _attend(q: Tensor, keys: Tensor, values: Tensor, view: KeyView, scale: float) -> Tensor:
    """[sequences, queries, heads, head_dim]."""
    sequences, queries, heads, head_dim = q.shape
    kv_heads = keys.shape[1]
    bias = view.bias(q.dtype)
    if queries == 1 and bias is not None:
        # The query heads that share a key head stand as rows of one attention: no key is repeated.
        grouped = q.view(sequences, kv_heads, heads // kv_heads, head_dim)
        return functional.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=bias, scale=scale
        )
    return functional.scaled_dot_product_attention(
        q.transpose(1, 2),
        keys,
        values,
        attn_mask=bias,
        is_causal=bias is None,
        scale=scale,
        enable_gqa=heads != kv_heads,
    ).transpose(1, 2)


def _attend_capped(
    q: Tensor, keys: Tensor, values: Tensor, view: KeyView, scale: float, softcap: float
) -> Tensor:
    """[sequences, queries, heads, head_dim], with soft-capped scores formed in float32."""
    sequences, queries, heads, head_dim = q.shape
    kv_heads, length = keys.shape[1], keys.shape[2]
    per_head = heads // kv_heads
    bias = view.bias(torch.float32)
    if bias is None:
        causal = torch.ones((queries, length), dtype=torch.bool, device=q.device).triu(1)
        bias = torch.zeros((queries, length), device=q.device).masked_fill_(causal, float("-inf"))
        bias = bias.view(1, 1, queries, length)
    grouped = q.view(sequences, queries, kv_heads, per_head, head_dim).permute(0, 2, 3, 1, 4)
    result = torch.empty_like(grouped)
    at_once = max(1, _SCORES_MAX // (sequences * heads * length))
    transposed = keys.transpose(2, 3).unsqueeze(2)
    for start in range(0, queries, at_once):
        stop = min(queries, start + at_once)
        scores = (grouped[:, :, :, start:stop] @ transposed).float()
        scores.mul_(scale / softcap).tanh_().mul_(softcap)
        scores.add_(bias[:, :, None, start:stop])
        weights = torch.softmax(scores, -1).to(q.dtype)
        result[:, :, :, start:stop] = weights @ values.unsqueeze(2)
    return result.permute(0, 3, 1, 2, 4)
