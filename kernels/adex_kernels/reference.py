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
