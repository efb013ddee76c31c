"""The kernels as `dispatch` calls them: what a step needs more than once is kept in its batch."""

from torch import Tensor

from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.gpu import attention as paged
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
            lora.work = low_rank.LoraWork.of(lora.segments, y.shape[0], lora.table)
        low_rank.lora_add_(y, x, lora.work, layer, group)
