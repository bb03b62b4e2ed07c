"""The hand-made delivery encoder writes what protobuf writes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aether_trio.wire.delivery import (
    delivery_prefix,
    delivery_suffix,
    encode_delivery,
    encode_progress,
    encode_task_event,
    varint,
)
from aether_trio.wire.pb import aether_pb2 as pb

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
enum_numbers = st.integers(-(2**31), 2**31 - 1)

# Every place where one of the two length varints grows by a byte, or leaves the table, and both
# sides of it.
BORDERS = [size for border in (1, 128, 2048, 16384, 2097152) for size in range(max(0, border - 48), border + 3)]


def by_protobuf(source: str, payload: bytes, message_type: int, workspace: str) -> bytes:
    message = pb.DownstreamMessage()
    # Filled in place: even an empty delivery is present, as a routed message always is.
    message.msg.SetInParent()
    message.msg.source_topic = source
    message.msg.payload = payload
    message.msg.message_type = message_type  # type: ignore[assignment]
    message.msg.workspace = workspace
    return message.SerializeToString()


@given(texts, st.binary(max_size=400), enum_numbers, texts)
@example("", b"", 0, "")
@example("ag::w::i::1", b"", 0, "")
@example("", b"x", -1, "")
def test_any_delivery_equals_protobufs(source: str, payload: bytes, message_type: int, workspace: str) -> None:
    encoded = encode_delivery(delivery_prefix(source), payload, delivery_suffix(message_type, workspace))
    assert encoded == by_protobuf(source, payload, message_type, workspace)


def test_every_length_border_equals_protobufs() -> None:
    prefix, suffix = delivery_prefix("ag::w::planner::1"), delivery_suffix(pb.CHAT, "w")
    for size in BORDERS:
        payload = bytes(size)
        assert encode_delivery(prefix, payload, suffix) == by_protobuf("ag::w::planner::1", payload, pb.CHAT, "w"), size


@pytest.mark.parametrize("length", [127, 128, 16383, 16384])
def test_long_names_equal_protobufs(length: int) -> None:
    name = "n" * length
    assert encode_delivery(delivery_prefix(name), b"p", delivery_suffix(6, name)) == by_protobuf(name, b"p", 6, name)


def test_rare_fields_follow_and_the_plain_ones_of_extra_are_ignored() -> None:
    extra = pb.IncomingMessage(
        source_topic="ignored",
        payload=b"ignored",
        message_type=pb.METRIC,
        workspace="ignored",
        on_behalf_subject=pb.PrincipalRef(principal_type="user", principal_id="us::ann"),
        access_receipt=pb.AccessDecisionReceipt(decision_id="d"),
        forwarded_authorization=pb.ForwardedAuthorization(root_grant_id="g"),
    )
    encoded = encode_delivery(delivery_prefix("s"), b"p", delivery_suffix(pb.CHAT, "w", extra=extra))
    expected = pb.DownstreamMessage()
    expected.msg.CopyFrom(extra)
    expected.msg.MergeFrom(pb.IncomingMessage(source_topic="s", payload=b"p", message_type=pb.CHAT, workspace="w"))
    assert encoded == expected.SerializeToString()
    assert extra.workspace == "ignored", "the caller's message must not be changed"


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, b"\x00"),
        (127, b"\x7f"),
        (128, b"\x80\x01"),
        (300, b"\xac\x02"),  # the example of protobuf's encoding guide
        (2**64 - 1, b"\xff" * 9 + b"\x01"),
        (-1, b"\xff" * 9 + b"\x01"),
    ],
)
def test_varint(value: int, encoded: bytes) -> None:
    assert varint(value) == encoded


def test_a_progress_update_is_wrapped() -> None:
    update = pb.ProgressUpdate(source="ag::w::i::1", kind=pb.PROGRESS_KIND_TASK)
    message = pb.DownstreamMessage.FromString(encode_progress(update))
    assert message.WhichOneof("payload") == "progress_update"
    assert message.progress_update == update


@given(name=texts, summary=texts, workspace=texts)
@example(name="", summary="", workspace="")
@example(name="s", summary="x" * 20_000, workspace="w")
def test_an_event_for_a_subscription_is_as_if_its_field_were_set(name: str, summary: str, workspace: str) -> None:
    event = pb.TaskEvent(task_id="t", workspace=workspace, progress=pb.TaskProgressEvent(message=summary))
    written = pb.DownstreamMessage.FromString(encode_task_event(event.SerializeToString(), name))
    event.subscription_id = name
    assert written == pb.DownstreamMessage(task_event=event)
