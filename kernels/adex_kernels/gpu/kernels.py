"""The kernels as `dispatch` calls them: what a step needs more than once is kept in its batch."""

from torch import Tensor

from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.draw import DrawnRows
from adex_kernels.gpu import attention as paged
from adex_kernels.gpu import draw, fused
from adex_kernels.gpu import lora as low_rank


class TritonKernels:
    """`adex_kernels.dispatch.DeviceKernels` in Triton."""

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
    ) -> Tensor:
        """As `dispatch.attention`."""
        if batch.work is None:
            batch.work = paged.AttentionWork.of(batch, q.shape[1] // kv.shape[4])
        return paged.attention(
            q, kv, layer, batch.work, scale=scale, window=window, softcap=softcap
        )

    def lora_add_(self, y: Tensor, x: Tensor, lora: LoraBatch, layer: int, group: int) -> None:
        """As `dispatch.lora_add_`, for a batch with a table."""
        if lora.work is None:
            assert lora.table is not None, "these kernels find adapters through the table"
            lora.work = low_rank.LoraWork.of(lora.segments, y.shape[0], lora.table, lora.slots)
        low_rank.lora_add_(y, x, lora.work, layer, group)

    def add_norm_(self, hidden: Tensor, out: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """As `dispatch.add_norm_`."""
        return fused.add_norm_(hidden, out, weight, eps)

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
    ) -> Tensor:
        """As `dispatch.rotate_write_`; the queries are turned where they are."""
        cells = batch.write_pages, batch.write_offsets
        fused.rotate_write_(heads, *rotation, kv, layer, *cells, query_heads, norm=norm, eps=eps)
        return heads[:, :query_heads]

    def gate(self, gate_up: Tensor, activation: str) -> Tensor:
        """As `dispatch.gate`."""
        return fused.gate(gate_up, activation)

    def draw_(self, chosen: Tensor, logits: Tensor, finite: Tensor, drawn: DrawnRows) -> None:
        """As `dispatch.draw_`, for rows without typical-p."""
        draw.draw_(chosen, logits, finite, drawn)
