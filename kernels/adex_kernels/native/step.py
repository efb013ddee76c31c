"""A model's layers in one call (step.c): what describes the model and a step to it, and the call.

The structs hold addresses; the objects here keep what these point to.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adex_kernels.batch import AttentionBatch, LoraBatch
from adex_kernels.layout import Group
from adex_kernels.native import library
from adex_kernels.native.lora import UNFIT, thin_segments
from adex_kernels.native.memory import address
from adex_kernels.native.panels import (
    LinearStruct,
    PackedWeight,
    Weight,
    linear_struct,
    panel_bytes,
)

BLOCK_TOKENS = 16
_STAGE_BYTES = _HELD_BYTES = 64
_STAGES_PER_LAYER = 14
_ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
_ALIGN = 64

IntArray = NDArray[np.int64]
_NO_SEGMENTS: IntArray = np.zeros((0, 4), np.int64)

# The parts of a step whose times can be asked for, in step.c's order.
PARTS = (
    "norms",
    "products",
    "shrinking",
    "expanding",
    "rotation",
    "attention",
    "activation",
    "head",
    "waiting",
)


class Layer(Protocol):
    """The weights of one layer; None where the architecture has none."""

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


@dataclass(frozen=True, slots=True)
class Shape:
    """What the layers have in common; `windows` has one entry per layer, None for all positions."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rotary_dim: int
    intermediate: int
    activation: str
    norm_eps: float
    attention_scale: float
    attention_softcap: float | None
    embedding_scale: float | None
    windows: Sequence[int | None]


def _fields(*names: str) -> tuple[tuple[str, type], ...]:
    """Each word is a name, or a name and :p, :d or :f; the default is a 64-bit number."""
    kinds = {"p": ctypes.c_void_p, "f": ctypes.c_float, "d": ctypes.c_int64}
    found = []
    for each in names:
        name, _, kind = each.partition(":")
        found.append((name, kinds[kind or "d"]))
    return tuple(found)


class _Layer(ctypes.Structure):
    """step.c's `Layer`."""

    _fields_ = (
        *_fields(
            "attention_norm:p", "qk_norm:p", "attention_out_norm:p", "mlp_norm:p", "mlp_out_norm:p"
        ),
        ("qkv", LinearStruct),
        ("o", LinearStruct),
        ("gate_up", LinearStruct),
        ("down", LinearStruct),
        *_fields("window"),
    )


class _Model(ctypes.Structure):
    """step.c's `Model`."""

    _fields_ = (
        *_fields("layers:p", "count", "hidden", "heads", "kv_heads", "head_dim", "rotary_dim"),
        *_fields("intermediate", "activation", "eps:f", "attention_scale:f"),
        *_fields("attention_softcap:f", "embedding_scale:f", "vocabulary", "embedding:p", "norm:p"),
        ("head", LinearStruct),
        *_fields("tied"),
    )


class _Attention(ctypes.Structure):
    """attention.h's `Attention`."""

    _fields_ = (
        *_fields("kv:p", "sequences", "layers", "heads", "kv_heads", "head_dim", "tables_stride"),
        *_fields("query_starts:p", "context_lens:p", "tables:p", "scale:f", "softcap:f"),
    )


class _Step(ctypes.Structure):
    """step.c's `Step`."""

    _fields_ = (
        *_fields("rows", "wanted", "token_ids:p", "hidden:p", "normed:p", "qkv:p", "attended:p"),
        *_fields("out:p", "wide_pair:p", "wide:p", "scratch:p", "scratch_stride"),
        *_fields("cos:p", "sin:p", "turned_cos:p", "turned_sin:p"),
        *_fields("write_pages:p", "write_offsets:p"),
        ("attention", _Attention),
        *_fields("segments:p", "segment_count", "shrunk:p", "kept_rows:p", "kept"),
        *_fields("kept_segments:p", "kept_segment_count", "logit_rows:p", "chosen:p"),
        *_fields("logits:p", "stages:p", "threads", "spent:p", "cores:p", "held:p"),
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """The rows of a step that have logits, `rows` [kept] ascending; `places` [wanted] are the
    wanted ones' numbers among them, `segments` [segments, 4] their adapters', by these numbers."""

    rows: IntArray
    places: IntArray
    segments: IntArray

    def described(self) -> dict[str, int]:
        """As step.c's `Step` has them, for as long as this object lives."""
        return {
            "kept_rows": address(self.rows),
            "kept": len(self.rows),
            "kept_segments": address(self.segments),
            "kept_segment_count": len(self.segments),
            "logit_rows": address(self.places),
        }


def _kept(rows: int, wanted: Tensor | None, segments: IntArray) -> _Kept:
    """`segments` are words as in `ThinSegments`, of all rows."""
    every = np.arange(rows)
    if wanted is None or (len(wanted) == rows and (wanted.numpy() == every).all()):
        return _Kept(every, every, segments)
    kept, places = np.unique(wanted.numpy(), return_inverse=True)
    starts = np.searchsorted(kept, segments[:, 0])
    counts = np.searchsorted(kept, segments[:, 0] + segments[:, 1]) - starts
    fewer = segments.copy()
    fewer[:, 0], fewer[:, 1] = starts, counts
    return _Kept(kept, places, fewer[counts > 0])


@dataclass(frozen=True, slots=True)
class PreparedStep:
    """A step that lacks nothing but its tokens; it `keeps` what the struct points to."""

    functions: library.Functions
    model: _Model
    step: _Step
    found: Tensor
    keeps: tuple[object, ...]

    def take(self, token_ids: Tensor) -> Tensor:
        """Of token_ids [rows] int64, once: logits [wanted, vocabulary] float32, or, of a model
        without a head here, the normed rows [wanted, hidden] that they follow from. Raises
        IndexError for a token outside the vocabulary."""
        assert len(token_ids) == self.step.rows, "a token for each row"
        self.step.token_ids = token_ids.data_ptr()
        failed = self.functions.step(ctypes.byref(self.model), ctypes.byref(self.step))
        if failed == UNFIT:
            raise ValueError("an adapter's matrices or rows do not fit the model")
        if failed:
            raise IndexError("a token is outside the vocabulary")
        return self.found


class NativeModel:
    """A model as step.c reads it. Not thread-safe: a step uses its buffers.

    To learn where a step's time goes, set `spent` to [threads, PARTS] int64 zeros; steps add to it
    what each thread had of its processor for each part, in nanoseconds. With `cores` set, [threads]
    int32, each thread of a step stays on its own from then on, the caller's among them.
    """

    def __init__(
        self,
        shape: Shape,
        embedding: Tensor,
        layers: Sequence[Layer],
        norm: Tensor,
        head: Weight,
    ) -> None:
        """`embedding` [vocabulary, hidden] is of the serving type; layers are packed. A
        `head` that is neither packed nor `embedding` leaves the logits to the caller."""
        self.spent: Tensor | None = None
        self.cores: Tensor | None = None
        assert embedding.is_contiguous(), "rows of it are found by their number"
        self._kept: list[Tensor] = [embedding]
        self._shape, self._dtype = shape, embedding.dtype
        self._layers = (_Layer * len(layers))(
            *(self._layer(*each) for each in zip(layers, shape.windows, strict=True))
        )
        tied, panels = head is embedding, head if isinstance(head, PackedWeight) else None
        self._head_out = panels.out_features if panels else len(embedding) if tied else 0
        self.has_head = self._head_out > 0
        self._model = _Model(
            layers=ctypes.addressof(self._layers),
            count=len(layers),
            hidden=shape.hidden,
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            rotary_dim=shape.rotary_dim,
            intermediate=shape.intermediate,
            activation=_ACTIVATIONS[shape.activation],
            eps=shape.norm_eps,
            attention_scale=shape.attention_scale,
            attention_softcap=shape.attention_softcap or 0.0,
            embedding_scale=shape.embedding_scale or 0.0,
            vocabulary=len(embedding),
            embedding=embedding.data_ptr(),
            norm=self._floats(norm),
            head=self._linear(panels, None) if panels else LinearStruct(),
            tied=tied,
        )
        ins = [each.in_features for each in self._weights(layers)]
        self._scratch_stride = panel_bytes(max(ins, default=0), self._dtype)
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def prepare(
        self,
        rotation: tuple[Tensor, Tensor],
        kv: Tensor,
        attention: AttentionBatch,
        lora: LoraBatch | None,
        logit_rows: Tensor | None,
    ) -> "PreparedStep | None":
        """A step through all layers and the last norm; None where an adapter is not described for
        this path. It may be prepared while another is taken.

        `rotation` is cos and sin, each [rows, rotary_dim] float32 (half of sin negated).
        Cells behind the end of a sequence, in a block that this step begins, are cleared.
        """
        native = library.functions(self._dtype, kv.device)
        assert native is not None, "the library that packed the weights is still registered"
        segments = None if lora is None else thin_segments(lora, self._dtype, lambda r, s: True)
        if segments is not None and segments.others:
            return None
        rows, threads = rotation[0].shape[0], torch.get_num_threads()
        wanted = rows if logit_rows is None else len(logit_rows)
        assert self.cores is None or len(self.cores) == threads, "a core for each thread"
        words = _NO_SEGMENTS if segments is None else segments.words.numpy().reshape(-1, 4)
        kept = _kept(rows, logit_rows, words)
        described, told = self._attention(kv, attention)
        cos, sin = (each.contiguous() for each in rotation)
        # numpy's: between two steps, torch would hand Python's lock to whoever wants it.
        staged = (len(self._layers) + 1) * _STAGES_PER_LAYER * _STAGE_BYTES
        stages = np.zeros(staged + threads * _HELD_BYTES, np.uint8)
        logits = np.empty((wanted, self._head_out), np.float32)
        buffers = self._buffers(max(rows, wanted), threads)
        found = torch.from_numpy(logits)
        if not self.has_head:
            found = torch.empty((wanted, self._shape.hidden), dtype=self._dtype)
            buffers["chosen"] = found.data_ptr()
        step = _Step(
            rows=rows,
            wanted=wanted,
            **buffers,
            scratch_stride=self._scratch_stride,
            cos=cos.data_ptr(),
            sin=sin.data_ptr(),
            write_pages=attention.write_pages.data_ptr(),
            write_offsets=attention.write_offsets.data_ptr(),
            attention=described,
            segments=address(words),
            segment_count=len(words),
            shrunk=segments.shrunk.data_ptr() if segments else 0,
            **kept.described(),
            logits=address(logits),
            stages=address(stages),
            threads=threads,
            spent=0 if self.spent is None else self.spent.data_ptr(),
            cores=0 if self.cores is None else self.cores.data_ptr(),
            held=address(stages) + staged,
        )
        keeps = (self._buffer, words, segments, kept, told, cos, sin, attention, stages, logits)
        return PreparedStep(native, self._model, step, found, keeps)

    def _attention(self, kv: Tensor, attention: AttentionBatch) -> tuple[_Attention, object]:
        """The struct, and what it points to."""
        shape, tables = self._shape, attention.block_tables.contiguous()
        starts = np.array(attention.query_starts, np.int64)
        lens = np.array(attention.context_lens, np.int64)
        described = _Attention(
            kv=kv.data_ptr(),
            sequences=len(lens),
            layers=len(self._layers),
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tables_stride=tables.shape[1],
            query_starts=address(starts),
            context_lens=address(lens),
            tables=tables.data_ptr(),
            scale=shape.attention_scale,
            softcap=shape.attention_softcap or 0.0,
        )
        return described, (tables, starts, lens)

    def _buffers(self, rows: int, threads: int) -> dict[str, int]:
        """Addresses of the step's buffers, in one allocation that is kept."""
        shape = self._shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        widths = {
            "hidden": shape.hidden,
            "normed": shape.hidden,
            "qkv": q + 2 * kv,
            "attended": q,
            "out": shape.hidden,
            "wide_pair": 2 * shape.intermediate,
            "wide": shape.intermediate,
            "chosen": shape.hidden,
            "turned_cos": shape.rotary_dim,
            "turned_sin": shape.rotary_dim,
        }
        found, end = dict[str, int](), 0
        for name, width in widths.items():
            found[name] = end
            end += -(-rows * width * self._dtype.itemsize // _ALIGN) * _ALIGN
        found["scratch"] = end
        end += threads * self._scratch_stride
        if len(self._buffer) < end:
            self._buffer = torch.empty(end, dtype=torch.uint8)
        first = self._buffer.data_ptr()
        return {name: first + offset for name, offset in found.items()}

    def _layer(self, layer: Layer, window: int | None) -> _Layer:
        return _Layer(
            attention_norm=self._floats(layer.attention_norm),
            qk_norm=self._floats(layer.qk_norm),
            attention_out_norm=self._floats(layer.attention_out_norm),
            mlp_norm=self._floats(layer.mlp_norm),
            mlp_out_norm=self._floats(layer.mlp_out_norm),
            qkv=self._linear(layer.qkv, layer.qkv_bias),
            o=self._linear(layer.o, layer.o_bias),
            gate_up=self._linear(layer.gate_up, layer.gate_up_bias),
            down=self._linear(layer.down, layer.down_bias),
            window=window or 0,
        )

    @staticmethod
    def _weights(layers: Sequence[Layer]) -> list[PackedWeight]:
        each = [w for layer in layers for w in (layer.qkv, layer.o, layer.gate_up, layer.down)]
        return [weight for weight in each if isinstance(weight, PackedWeight)]

    def _linear(self, weight: Weight, bias: Tensor | None) -> LinearStruct:
        assert isinstance(weight, PackedWeight), "the caller has packed it"
        self._kept.append(weight.panels)
        self._floats(weight.scales)
        return linear_struct(weight, self._floats(bias))

    def _floats(self, tensor: Tensor | None) -> int | None:
        """The address of a float32 copy that lives as long as the model."""
        if tensor is None:
            return None
        copy = tensor.float().contiguous()
        self._kept.append(copy)
        return copy.data_ptr()


assert len(Group) == 4, "step.c's layers have as many groups"
