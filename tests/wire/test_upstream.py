"""Messages with too many fields are refused before protobuf makes objects."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire import upstream
from aether_trio.wire.pb import aether_pb2 as pb
from aether_trio.wire.upstream import MAX_FIELDS, UNCOUNTED_BYTES, decode_upstream, too_many_fields

MIB = 1024 * 1024


def fields(message: Any) -> int:
    """Set fields and those of parts; a map's entry is a part with two fields."""
    count = 0
    for field, value in message.ListFields():
        repeated = field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            count += 3 * len(value)
        elif field.message_type is not None:
            count += sum(1 + fields(part) for part in (value if repeated else [value]))
        else:
            count += len(value) if repeated else 1
    return count


@pytest.mark.parametrize(
    "message",
    [
        pb.UpstreamMessage(init=pb.InitConnection(extensions=[pb.ExtensionDeclaration()] * 40_000)),
        pb.UpstreamMessage(init=pb.InitConnection(credentials={str(number): "" for number in range(20_000)})),
        pb.UpstreamMessage(create_task=pb.CreateTaskRequest(metadata={str(n): "x" * 20 for n in range(3000)})),
        pb.UpstreamMessage(create_task=pb.CreateTaskRequest(retry_policy=pb.RetryPolicy(schedule_ms=[1] * 70_000))),
        pb.UpstreamMessage(create_task=pb.CreateTaskRequest(retry_policy=pb.RetryPolicy(schedule_ms=[-1] * 9000))),
    ],
    ids=["parts", "map", "map-with-values", "numbers", "large numbers"],
)
def test_too_many_fields_are_refused(message: pb.UpstreamMessage) -> None:
    data = message.SerializeToString()
    assert len(data) > UNCOUNTED_BYTES
    assert fields(message) > MAX_FIELDS
    with pytest.raises(StatusError, match="more than 8192 fields") as caught:
        decode_upstream(data)
    assert caught.value.status is Status.INVALID_ARGUMENT


def test_parts_that_come_again_and_again_count_each_time() -> None:
    data = pb.UpstreamMessage(send=pb.SendMessage(target_topic="t")).SerializeToString() * 20_000
    with pytest.raises(StatusError):
        decode_upstream(data)


@pytest.mark.parametrize("payload", [b"\x0a\x00" * (MIB // 2), bytes(MIB), b"\xff" * MIB])
def test_a_long_payload_is_one_field(payload: bytes) -> None:
    message = pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::w::i::1", payload=payload))
    assert decode_upstream(message.SerializeToString()) == message


messages = st.builds(
    lambda metadata, numbers, uris, payload: pb.UpstreamMessage(
        **(
            {"create_task": pb.CreateTaskRequest(retry_policy=pb.RetryPolicy(schedule_ms=numbers), metadata=metadata)}
            if numbers
            else {
                "init": pb.InitConnection(
                    credentials=metadata, extensions=[pb.ExtensionDeclaration(uri=uri) for uri in uris]
                )
            }
        ),
        active_extensions=[payload],
    ),
    st.dictionaries(st.text(max_size=5), st.text(max_size=300), max_size=10),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    st.lists(st.text(max_size=300), max_size=10),
    st.text(),
)


@given(message=messages, most=st.integers(0, 80))
def test_fields_are_counted(message: pb.UpstreamMessage, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upstream, "MAX_FIELDS", most)
        assert too_many_fields(message.SerializeToString(), message.DESCRIPTOR) == (fields(message) > most)


@given(data=st.binary(max_size=300))
def test_arbitrary_bytes_are_counted_or_not(data: bytes) -> None:
    assert not too_many_fields(data, pb.UpstreamMessage.DESCRIPTOR)
    assert not too_many_fields(
        pb.UpstreamMessage(init=pb.InitConnection()).SerializeToString() + data, pb.UpstreamMessage.DESCRIPTOR
    )
