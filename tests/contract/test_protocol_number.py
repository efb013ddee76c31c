"""The number of the protocol of scheduler and worker moves with what they say to each other."""

from hashlib import sha256

from adex_proto.info_codec import PROTOCOL
from adex_proto.v1 import worker_pb2

# By number: how the SHA-256 of worker.proto's descriptor begins, which leaves comments out.
DESCRIPTORS = {1: "0b6e9618fcc4a2e1"}


def test_a_changed_message_has_a_number_of_its_own() -> None:
    digest = sha256(worker_pb2.DESCRIPTOR.serialized_pb).hexdigest()[:16]
    assert max(DESCRIPTORS) == PROTOCOL
    assert DESCRIPTORS[PROTOCOL] == digest, (
        f"worker.proto has changed. If a side without the change would read it otherwise, raise "
        f"info_codec.PROTOCOL and add its number here with {digest}, else put that for the last"
    )
