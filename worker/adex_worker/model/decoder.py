"""The forward pass of every served architecture: one loop over layers, driven by the spec.

Plain tensors in slotted objects and no module tree: on small steps the host's work per layer is
what costs, and a tree of modules costs two to three times this loop.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from adex_kernels import dispatch
from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.layout import Group
from adex_kernels.linear import linear
from adex_kernels.native.panels import PackedWeight, Weight
from adex_kernels.native.step import BLOCK_TOKENS, NativeModel, Shape
from adex_worker.model.rope import Rope
from adex_worker.model.spec import ModelSpec


@dataclass(slots=True)
class LayerWeights:
    """One layer. Linears are [out, in], plain or packed; q|k|v and gate|up are fused along out.

    Norm weights are those that multiply: Gemma's already hold the one that it adds, and stay
    float32 so as not to lose it. `qk_norm` is [heads + kv_heads, head_dim]. Optional ones are None
    where the architecture has none.
    """

    attention_norm: Tensor
    qkv: Weight
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Weight
    o_bias: Tensor | None
    attention_out_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Weight
    gate_up_bias: Tensor | None
    down: Weight
    down_bias: Tensor | None
    mlp_out_norm: Tensor | None


@dataclass(slots=True)
class ModelWeights:
    """All weights of a model; `head` is `embedding` itself where the two are tied."""

    embedding: Tensor
    layers: list[LayerWeights]
    norm: Tensor
    head: Weight


class Decoder:
    """A base model that answers logits for the rows of one step.

    `spec`, `dtype` and `device` are fixed. Calls are not thread-safe against each other only in
    that they write the same KV tensor.
    """

    __slots__ = ("_embedding_scale", "_native", "_rope", "device", "dtype", "spec", "weights")

    def __init__(self, spec: ModelSpec, weights: ModelWeights) -> None:
        self.spec = spec
        self.weights = weights
        self.dtype = weights.embedding.dtype
        self.device = weights.embedding.device
        self._rope = Rope(spec.rope, self.device)
        # Rounded to the serving type first, as the models were trained.
        self._embedding_scale = (
            None
            if spec.embedding_scale is None
            else float(torch.tensor(spec.embedding_scale, dtype=self.dtype))
        )
        self._native = _native_model(spec, weights, self._embedding_scale)

    def kv_shape(self, pages: int, block_tokens: int) -> tuple[int, ...]:
        """The shape of the KV tensor that `forward` takes, over `pages` pages."""
        spec = self.spec
        return (pages, spec.layers, 2, block_tokens, spec.kv_heads, spec.head_dim)

    def stay_on(self, cores: Sequence[int]) -> None:
        """Have each thread of a compiled step keep a core of its own: that of whoever calls
        `forward`, and the others of its team. Nothing changes where torch computes."""
        if self._native is not None:
            self._native.cores = torch.tensor(cores, dtype=torch.int32)

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None = None,
        logit_rows: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        """Run one step: rows of any sequences, prefill chunks and decodes mixed.

        Args:
            token_ids, positions: [rows] int64 or int32.
            kv: [pages, layers, 2, block_tokens, kv_heads, head_dim] in the model's dtype,
                contiguous; this step's keys and values are written into it.
            lora: None when every row belongs to the base model.
            logit_rows: [wanted] int64, rows whose logits are wanted; None is all.
            into: where the logits are to be, [wanted, vocabulary] float32; None is anywhere.
        Returns: [wanted, vocabulary] float32.
        """
        return self.prepare(positions, kv, attention, lora, logit_rows, into)(token_ids)

    @torch.inference_mode()
    def prepare(
        self,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None = None,
        logit_rows: Tensor | None = None,
        into: Tensor | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """As `forward`; returns what takes the step from its token_ids to its logits, once. A step
        may be prepared while the one before it is taken."""
        if lora is not None and not lora.segments:
            lora = None
        compiled = self._compiled(positions, kv, attention, lora, logit_rows)

        @torch.inference_mode()
        def take(token_ids: Tensor) -> Tensor:
            if compiled is not None:
                return self._finished(compiled(token_ids), into)
            rest = positions, kv, attention, lora, logit_rows
            return self._finished(self._by_operations(token_ids, *rest), into)

        return take

    def _finished(self, logits: Tensor, into: Tensor | None) -> Tensor:
        """As float32, where they are to be, and capped where the model does so."""
        if into is not None:
            logits = into.copy_(logits)
        elif logits.dtype != torch.float32:
            logits = logits.float()
        softcap = self.spec.logit_softcap
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        return logits

    def _compiled(
        self,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None,
        logit_rows: Tensor | None,
    ) -> Callable[[Tensor], Tensor] | None:
        """From token_ids to logits of the wanted rows; None where this path cannot serve a step.

        Hardly an operation of torch's stands between two compiled calls: each offers Python's lock
        to other threads, and a step that loses it waits for what they do.
        """
        native = self._native
        if native is None or attention.block_tokens != BLOCK_TOKENS:
            return None
        rotation = self._rope.rotation(positions, attention.row_lens, torch.float32)
        step = native.prepare(rotation, kv, attention, lora, logit_rows)
        if step is None:
            return None

        def run(token_ids: Tensor) -> Tensor:
            found = step.take(token_ids if token_ids.dtype == torch.int64 else token_ids.long())
            return found if native.has_head else linear(found, self.weights.head)

        return run

    def _by_operations(
        self,
        token_ids: Tensor,
        positions: Tensor,
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None,
        logit_rows: Tensor | None,
    ) -> Tensor:
        """Logits of the wanted rows in the serving type.

        What a half of a layer answers is added by the norm that begins the next.
        """
        dispatch.clear_fresh_(kv, attention)
        rotation = self._rope.rotation(positions, attention.row_lens, self.dtype)
        hidden = functional.embedding(token_ids, self.weights.embedding)
        if self._embedding_scale is not None:
            hidden = hidden * self._embedding_scale
        eps, out = self.spec.norm_eps, None
        for layer, weights in enumerate(self.weights.layers):
            normed = dispatch.add_norm_(hidden, out, weights.attention_norm, eps)
            out = self._attention(normed, weights, layer, rotation, kv, attention, lora)
            normed = dispatch.add_norm_(hidden, out, weights.mlp_norm, eps)
            out = self._mlp(normed, weights, layer, lora)
        if logit_rows is not None:
            hidden = hidden.index_select(0, logit_rows)
            out = None if out is None else out.index_select(0, logit_rows)
        normed = dispatch.add_norm_(hidden, out, self.weights.norm, eps)
        return linear(normed, self.weights.head)

    def _attention(
        self,
        normed: Tensor,
        weights: LayerWeights,
        layer: int,
        rotation: tuple[Tensor, Tensor],
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None,
    ) -> Tensor:
        """What one layer's attention adds to the hidden rows, [rows, hidden]."""
        spec = self.spec
        qkv = linear(normed, weights.qkv, weights.qkv_bias)
        if lora is not None:
            dispatch.lora_add_(qkv, normed, lora, layer, Group.QKV)
        queries = dispatch.rotate_write_(
            qkv.view(qkv.shape[0], -1, spec.head_dim),
            rotation,
            kv,
            layer,
            attention,
            query_heads=spec.heads,
            norm=weights.qk_norm,
            eps=spec.norm_eps,
        )
        attended = dispatch.attention(
            queries,
            kv,
            layer,
            attention,
            scale=spec.attention_scale,
            window=spec.windows[layer],
            softcap=spec.attention_softcap,
        )
        out = linear(attended, weights.o, weights.o_bias)
        if lora is not None:
            dispatch.lora_add_(out, attended, lora, layer, Group.O)
        if weights.attention_out_norm is not None:
            out = dispatch.add_norm_(out, None, weights.attention_out_norm, spec.norm_eps)
        return out

    def _mlp(
        self, normed: Tensor, weights: LayerWeights, layer: int, lora: LoraBatch | None
    ) -> Tensor:
        """What one layer's gated MLP adds to the hidden rows, [rows, hidden]."""
        spec = self.spec
        gate_up = linear(normed, weights.gate_up, weights.gate_up_bias)
        if lora is not None:
            dispatch.lora_add_(gate_up, normed, lora, layer, Group.GATE_UP)
        wide = dispatch.gate(gate_up, spec.activation)
        out = linear(wide, weights.down, weights.down_bias)
        if lora is not None:
            dispatch.lora_add_(out, wide, lora, layer, Group.DOWN)
        if weights.mlp_out_norm is not None:
            out = dispatch.add_norm_(out, None, weights.mlp_out_norm, spec.norm_eps)
        return out


def _native_model(
    spec: ModelSpec, weights: ModelWeights, embedding_scale: float | None
) -> NativeModel | None:
    """The layers for the compiled path, where all of them are packed for it."""
    linears = [w for each in weights.layers for w in (each.qkv, each.o, each.gate_up, each.down)]
    if not all(isinstance(each, PackedWeight) for each in linears):
        return None
    shape = Shape(
        hidden=spec.hidden,
        heads=spec.heads,
        kv_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        rotary_dim=spec.rope.rotary_dim,
        intermediate=spec.intermediate,
        activation=spec.activation,
        norm_eps=spec.norm_eps,
        attention_scale=spec.attention_scale,
        attention_softcap=spec.attention_softcap,
        embedding_scale=embedding_scale,
        windows=spec.windows,
    )
    return NativeModel(shape, weights.embedding, weights.layers, weights.norm, weights.head)
