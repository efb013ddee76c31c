"""Whether steps of decodes are recorded on this worker's device, and what to tell of it."""

import importlib
from typing import TYPE_CHECKING

from torch import Tensor

from adex_kernels.gpu.launch import KEY_SPLITS_MAX, SHRINK_SPLITS_MAX
from adex_kernels.layout import MODULES_PER_GROUP_MAX
from adex_proto.outcome import WorkerInfo
from adex_worker.model.decoder import Decoder
from adex_worker.progress import progress_lines

if TYPE_CHECKING:
    from adex_worker.run.graphs import DecodeGraphs, Recorder, Slots


def row_bytes(decoder: Decoder, rank_max: int) -> int:
    """What recorded steps take for each row of the largest, rounded up.

    Logits, what lies between products, parts of attention and low-rank terms, and the block table;
    twice what a step takes as it runs, for it is launched once before it is recorded.
    """
    spec, itemsize = decoder.spec, decoder.dtype.itemsize
    wide = 4 * (spec.q_features + 2 * spec.kv_features + 4 * spec.hidden + 3 * spec.intermediate)
    parts = KEY_SPLITS_MAX * spec.heads * (spec.head_dim + 2) * 4
    shrunk = SHRINK_SPLITS_MAX * MODULES_PER_GROUP_MAX * rank_max * 4
    running = spec.vocabulary * itemsize + wide * itemsize + parts
    return 2 * running + spec.vocabulary * 4 + shrunk + spec.positions_max


def recorded(
    decoder: Decoder,
    kv: Tensor,
    slots: "Slots",
    last: Tensor,
    info: WorkerInfo,
    recorder: "Recorder | None" = None,
) -> "tuple[DecodeGraphs | None, str]":
    """The recorded steps, to be called before any page is in use.

    `last` is the runner's; `recorder` None is CUDA's.

    Returns: None where they cannot be had, and in words how it went.
    """
    # Imported here and only now: Triton is not made for every platform.
    graphs = importlib.import_module("adex_worker.run.graphs")
    spec = decoder.spec
    limits = graphs.GraphLimits(
        rows_max=info.step_sequences_max,
        positions_max=info.positions_max,
        block_tokens=info.block_tokens,
        rank_max=info.rank_max,
        vocabulary=info.vocabulary,
        heads_per_kv=spec.heads // spec.kv_heads,
    )
    try:
        recorder = recorder or graphs.CudaRecorder(decoder.device)
        found = graphs.DecodeGraphs(decoder, kv, slots, last, limits, recorder)
        found.record(progress_lines("recording decode steps"))
        fault: str | None = found.fault()
    except Exception as error:
        # Drivers fail in every way there is; steps can still be launched one by one.
        found, fault = None, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]
    if fault is not None:
        return None, f"none ({fault})"
    return found, f"up to {limits.rows_max} rows"
