"""The hand-laid protobuf is what the real runtime reads and writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire.pb import aether_pb2 as pb
from bench import wire

TEXT = st.text(max_size=200)


@given(st.integers(0, 2**63 - 1))
def test_a_varint_reads_back(value: int) -> None:
    raw = wire.varint(value)
    assert wire.read_varint(b"\xff" + raw + b"\x01", 1) == (value, 1 + len(raw))


@given(TEXT, TEXT, TEXT, st.dictionaries(TEXT, TEXT, max_size=3))
def test_agent_init(workspace: str, implementation: str, specifier: str, credentials: dict[str, str]) -> None:
    read = pb.UpstreamMessage.FromString(wire.agent_init(workspace, implementation, specifier, credentials)).init
    assert (read.agent.workspace, read.agent.implementation, read.agent.specifier) == (
        workspace,
        implementation,
        specifier,
    )
    assert dict(read.credentials) == credentials


def test_service_init() -> None:
    read = pb.UpstreamMessage.FromString(wire.service_init("i", "s", {})).init
    assert read.service == pb.ServiceIdentity(implementation="i", specifier="s")


@given(st.text(min_size=1, max_size=256), st.binary(max_size=40_000))
def test_a_send_is_prefix_and_payload(topic: str, payload: bytes) -> None:
    read = pb.UpstreamMessage.FromString(wire.send_prefix(topic, len(payload)) + payload).send
    assert read == pb.SendMessage(target_topic=topic, payload=payload, message_type=pb.OPAQUE)


@given(TEXT, st.binary(max_size=300), TEXT)
def test_kv_requests(key: str, value: bytes, request_id: str) -> None:
    scope = pb.KVOperation.WORKSPACE
    put = pb.UpstreamMessage.FromString(wire.kv_put(key, value, request_id)).kv_op
    assert put == pb.KVOperation(op=pb.KVOperation.PUT, scope=scope, key=key, value=value, request_id=request_id)
    get = pb.UpstreamMessage.FromString(wire.kv_get(key, request_id)).kv_op
    assert get == pb.KVOperation(op=pb.KVOperation.GET, scope=scope, key=key, request_id=request_id)


@given(TEXT, st.binary(min_size=1, max_size=300), TEXT)
def test_a_delivery_shows_its_payload(source: str, payload: bytes, workspace: str) -> None:
    message = pb.DownstreamMessage(
        msg=pb.IncomingMessage(source_topic=source, payload=payload, message_type=pb.CHAT, workspace=workspace)
    ).SerializeToString()
    at = wire.payload_at(message)
    assert message[at : at + len(payload)] == payload


def test_what_is_no_delivery_has_no_payload() -> None:
    assert wire.payload_at(pb.DownstreamMessage(config=pb.ConfigSnapshot()).SerializeToString()) == -1
    assert wire.payload_at(pb.DownstreamMessage(msg=pb.IncomingMessage(source_topic="x")).SerializeToString()) == -1


def test_first_bytes_tell_the_kind() -> None:
    kinds = {
        wire.DELIVERY: pb.DownstreamMessage(msg=pb.IncomingMessage()),
        wire.CONFIG: pb.DownstreamMessage(config=pb.ConfigSnapshot()),
        wire.SIGNAL: pb.DownstreamMessage(signal=pb.Signal()),
        wire.ERROR: pb.DownstreamMessage(error=pb.ErrorResponse()),
        wire.KV: pb.DownstreamMessage(kv=pb.KVResponse()),
        wire.ACK: pb.DownstreamMessage(connection_ack=pb.ConnectionAck()),
    }
    assert {tag: message.SerializeToString()[0] for tag, message in kinds.items()} == {tag: tag for tag in kinds}


def test_errors_and_kv_answers_are_read() -> None:
    error = pb.DownstreamMessage(error=pb.ErrorResponse(code="ERR_X", message="näh", retryable=True))
    assert wire.read_error(error.SerializeToString()) == ("ERR_X", "näh")
    answer = pb.DownstreamMessage(kv=pb.KVResponse(success=True, value=b"v", request_id="r", counter_value=9))
    assert wire.read_kv(answer.SerializeToString()) == (True, b"v", "r")
    failed = pb.DownstreamMessage(kv=pb.KVResponse(request_id="r"))
    assert wire.read_kv(failed.SerializeToString()) == (False, b"", "r")


def test_unknown_wire_types_are_refused() -> None:
    with pytest.raises(ValueError, match="wire type 3"):
        list(wire.fields(b"\x0b", 0, 1))


def test_fixed_width_fields_are_skipped() -> None:
    data = b"\x09" + bytes(8) + b"\x15" + bytes(4) + b"\x1a\x01x"
    assert [number for number, _, _ in wire.fields(data, 0, len(data))] == [1, 2, 3]
