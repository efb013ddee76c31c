"""What a worker says of itself on the wire, and which protocol both sides speak."""

from adex_proto.errors import ProtocolViolation
from adex_proto.outcome import WorkerInfo
from adex_proto.v1 import worker_pb2 as pb

PROTOCOL = 1
"""What this release speaks. One more for every change of worker.proto that a side without it would
read otherwise than it was meant, and for every change of what a message means.
"""

ONE_RELEASE = "Run the scheduler and the worker from one release"


def encode_info(info: WorkerInfo) -> pb.WorkerInfo:
    return pb.WorkerInfo(
        model_id=info.model_id,
        architecture=info.architecture,
        dtype=info.dtype,
        device=info.device,
        layers=info.layers,
        vocabulary=info.vocabulary,
        positions_max=info.positions_max,
        block_tokens=info.block_tokens,
        page_bytes=info.page_bytes,
        pages=info.pages,
        slots_max=info.slots_max,
        host_bytes=info.host_bytes,
        disk_bytes=info.disk_bytes,
        rank_max=info.rank_max,
        step_tokens_max=info.step_tokens_max,
        step_sequences_max=info.step_sequences_max,
        eos_token_ids=info.eos_token_ids,
        protocol=PROTOCOL,
    )


def decode_info(info: pb.WorkerInfo) -> WorkerInfo:
    """Raises ProtocolViolation for a worker that speaks another protocol than this side."""
    if info.protocol != PROTOCOL:
        raise ProtocolViolation(
            f"the worker speaks protocol {info.protocol} and the scheduler {PROTOCOL}",
            remedy=ONE_RELEASE,
        )
    return WorkerInfo(
        model_id=info.model_id,
        architecture=info.architecture,
        dtype=info.dtype,
        device=info.device,
        layers=info.layers,
        vocabulary=info.vocabulary,
        positions_max=info.positions_max,
        block_tokens=info.block_tokens,
        page_bytes=info.page_bytes,
        pages=info.pages,
        slots_max=info.slots_max,
        host_bytes=info.host_bytes,
        disk_bytes=info.disk_bytes,
        rank_max=info.rank_max,
        step_tokens_max=info.step_tokens_max,
        step_sequences_max=info.step_sequences_max,
        eos_token_ids=tuple(info.eos_token_ids),
    )
