"""The token that each table row has sampled last, where the device has it.

So a step can begin while the host does not know yet what the one before it chose.
"""

import numpy as np
import torch
from torch import Tensor

from adex_proto.outcome import WorkerInfo
from adex_worker.run.arrays import IntArray, upload
from adex_worker.run.inputs import UNREAD, StepInputs
from adex_worker.run.sequences import rows_max

# Sequences may wait on the worker between steps; this many times a step's worth is a leak.
_SEQUENCES_PER_STEP_SEQUENCE = 16


def sequences_max(info: WorkerInfo) -> int:
    """How many sequences a worker keeps."""
    return _SEQUENCES_PER_STEP_SEQUENCE * info.step_sequences_max


def last_tokens(info: WorkerInfo, device: torch.device) -> Tensor:
    """Room for them, int64 by table row."""
    return torch.zeros(rows_max(sequences_max(info)), dtype=torch.int64, device=device)


def token_ids_of(inputs: StepInputs, last: Tensor | None, device: torch.device) -> Tensor:
    """[rows] on the device: what the host knows, and of `last` what it does not."""
    token_ids = inputs.token_ids
    if last is None or not (token_ids == UNREAD).any():
        return upload(token_ids, device)
    owners = np.repeat(inputs.table_rows, inputs.stops - inputs.starts)
    if device.type == "cpu":
        # Every operation of torch's offers Python's lock, for which the next step would wait.
        known = np.where(token_ids == UNREAD, last.numpy()[owners], token_ids)
        return torch.from_numpy(known)
    found, ids = last.index_select(0, upload(owners, device)), upload(token_ids, device)
    return torch.where(ids == UNREAD, found, ids)


def keep_last(last: Tensor, rows: IntArray, token_ids: Tensor) -> None:
    """These rows, all different, have sampled these."""
    if last.device.type == "cpu":
        last.numpy()[rows] = token_ids.numpy()
    else:
        last.index_copy_(0, upload(rows, last.device), token_ids)
