"""The oracle: what attention over blocks and the low-rank term are, one row at a time in float32.

Slow and obvious on purpose. `dispatch` must equal it.
"""

import torch
from torch import Tensor

from adex_kernels.batch import AttentionBatch, LoraBatch


def kv_write_(kv: Tensor, layer: int, k: Tensor, v: Tensor, batch: AttentionBatch) -> None:
    """Store each row's key and value, [rows, kv_heads, head_dim], in its block of `layer`."""
    for row in range(k.shape[0]):
        page, offset = int(batch.write_pages[row]), int(batch.write_offsets[row])
        kv[page, layer, 0, offset] = k[row]
        kv[page, layer, 1, offset] = v[row]


def add_norm_(hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    """Add `out` to `hidden` in place; hidden over its root mean square, times weight [width].

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    if out is not None:
        hidden += out
    return torch.stack([_normed(row, weight, eps) for row in hidden])


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
    """Norm and rotate queries and keys; store keys and values in their blocks.

    Args:
        heads: [rows, query_heads + 2 * kv_heads, head_dim].
        rotation: cos and sin, [rows, 1, rotary_dim]; sin's first half carries the minus sign.
        norm: [query_heads + kv_heads, head_dim] or None.
    Returns: the queries, [rows, query_heads, head_dim]. Source: Su et al. 2021, arXiv:2104.09864.
    """
    rows, kv_heads = heads.shape[0], kv.shape[4]
    done = heads.clone()
    for row in range(rows):
        cos, sin = (each[row, 0].float() for each in rotation)
        half = len(cos) // 2
        for head in range(query_heads + kv_heads):
            x = done[row, head] if norm is None else _normed(done[row, head], norm[head], eps)
            x = x.float()
            swapped = torch.cat((x[half : 2 * half], x[:half]))
            x[: 2 * half] = x[: 2 * half] * cos + swapped * sin
            done[row, head] = x.to(heads.dtype)
    kv_write_(kv, layer, done[:, query_heads:-kv_heads], done[:, -kv_heads:], batch)
    return done[:, :query_heads]


def gate(gate_up: Tensor, activation: str) -> Tensor:
    """Activation of the first half of each row, times the second: [rows, width / 2]."""
    left, right = gate_up.float().chunk(2, 1)
    if activation == "silu":
        active = left / (1 + torch.exp(-left))
    elif activation == "gelu":
        active = left * 0.5 * (1 + torch.erf(left / 2**0.5))
    else:
        inner = (2 / torch.pi) ** 0.5 * (left + 0.044715 * left**3)
        active = left * 0.5 * (1 + torch.tanh(inner))
    return (active.to(gate_up.dtype).float() * right).to(gate_up.dtype)


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """A weight in float32 multiplies before x is rounded to its own type, another after it."""
    normed = x.float() / torch.sqrt((x.float() ** 2).mean() + eps)
    return (normed * weight).to(x.dtype) if weight.dtype != x.dtype else normed.to(x.dtype) * weight


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
    """Causal attention of every row over its sequence's blocks.

    Args:
        q: [rows, heads, head_dim]; heads is a multiple of kv_heads.
        kv: [pages, layers, 2, block_tokens, kv_heads, head_dim], this step's rows included.
        window: positions a row sees, itself included; None is all.
        softcap: scores s become softcap * tanh(s / softcap) before the mask.
    Returns: [rows, heads, head_dim] in q's dtype.
    """
    result = torch.empty_like(q)
    per_kv_head = q.shape[1] // kv.shape[4]
    for sequence, length in enumerate(batch.context_lens):
        start, stop = batch.query_starts[sequence], batch.query_starts[sequence + 1]
        cells: list[Tensor] = []
        for position in range(length):
            block, offset = divmod(position, batch.block_tokens)
            cells.append(kv[batch.block_tables[sequence, block], layer, :, offset])
        keys_values = torch.stack(cells).float()
        for row in range(start, stop):
            position = length - (stop - row)
            first = 0 if window is None else max(0, position - window + 1)
            for head in range(q.shape[1]):
                seen = keys_values[first : position + 1, :, head // per_kv_head]
                scores = seen[:, 0] @ q[row, head].float() * scale
                if softcap is not None:
                    scores = softcap * torch.tanh(scores / softcap)
                result[row, head] = (torch.softmax(scores, 0) @ seen[:, 1]).to(q.dtype)
    return result


def lora_add_(y: Tensor, x: Tensor, lora: LoraBatch, layer: int, group: int) -> None:
    """Add each row's low-rank term to y in place.

    Args:
        y: [rows, out of the fused group]; x: [rows, in].
    The products accumulate in float32 and are rounded once. Source: Hu et al. 2021,
    arXiv:2106.09685; the scale is already in B.
    """
    for row_start, row_stop, slot in lora.segments:
        weights = lora.slots.group(slot, layer, group)
        if weights is None:
            continue
        for row in range(row_start, row_stop):
            shrunk = weights.a.float() @ x[row].float()
            for rank_start, rank_stop, out_start, out_stop, b in weights.slices:
                term = shrunk[rank_start:rank_stop] @ b.float()
                y[row, out_start:out_stop] = (y[row, out_start:out_stop].float() + term).to(y.dtype)
