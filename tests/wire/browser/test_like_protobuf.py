"""The plain forms agree with protobuf's JSON and with another MessagePack."""

from __future__ import annotations

import json
import math
from typing import Any

import msgpack
import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.wire.browser import CODECS, JSON, MSGPACK, Codec
from aether_trio.wire.pb import aether_pb2 as pb
from tests.wire.messages import build, enveloped_plans

UPSTREAM = enveloped_plans(pb.UpstreamMessage.DESCRIPTOR)
DOWNSTREAM = enveloped_plans(pb.DownstreamMessage.DESCRIPTOR)


def as_protobuf_says(message: Any) -> Any:
    plain: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return plain


@given(UPSTREAM)
def test_json_is_what_protobuf_writes(plan: dict[str, Any]) -> None:
    message = build(plan, pb.UpstreamMessage())
    assert json.loads(JSON.encode_upstream(message)) == as_protobuf_says(message)


@given(DOWNSTREAM)
def test_json_of_what_goes_out_is_what_protobuf_writes(plan: dict[str, Any]) -> None:
    message = build(plan, pb.DownstreamMessage())
    assert json.loads(JSON.encode(message.SerializeToString())) == as_protobuf_says(message)


@given(UPSTREAM)
def test_protobuf_reads_our_json_and_we_read_its(plan: dict[str, Any]) -> None:
    message = build(plan, pb.UpstreamMessage())
    assert json_format.Parse(JSON.encode_upstream(message), pb.UpstreamMessage()) == message
    assert JSON.decode(json_format.MessageToJson(message, preserving_proto_field_name=True)) == message


@given(UPSTREAM)
def test_what_has_every_field_with_its_default_is_read(plan: dict[str, Any]) -> None:
    message = build(plan, pb.UpstreamMessage())
    text = json_format.MessageToJson(
        message,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        use_integers_for_enums=True,
    )
    assert JSON.decode(text.encode()) == message


@given(DOWNSTREAM)
def test_another_msgpack_reads_what_we_write_and_writes_what_we_read(plan: dict[str, Any]) -> None:
    message = build(plan, pb.DownstreamMessage())
    plain = msgpack.unpackb(MSGPACK.encode(message.SerializeToString()))
    assert MSGPACK.decode_downstream(msgpack.packb(plain)) == message


def test_in_msgpack_bytes_are_bytes_and_integers_are_integers() -> None:
    op = pb.KVOperation(op=pb.KVOperation.PUT, scope=pb.KVOperation.GLOBAL, value=b"\x00\xff", ttl=2**40)
    plain = {"kv_op": {"op": "PUT", "scope": "GLOBAL", "value": b"\x00\xff", "ttl": 2**40}}
    assert msgpack.unpackb(MSGPACK.encode_upstream(pb.UpstreamMessage(kv_op=op))) == plain


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@given(plan=UPSTREAM)
def test_upstream_comes_back_equal(codec: Codec, plan: dict[str, Any]) -> None:
    message = build(plan, pb.UpstreamMessage())
    assert codec.decode(codec.encode_upstream(message)) == message


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@given(plan=DOWNSTREAM)
def test_downstream_comes_back_equal(codec: Codec, plan: dict[str, Any]) -> None:
    message = build(plan, pb.DownstreamMessage())
    assert codec.decode_downstream(codec.encode(message.SerializeToString())) == message


@given(st.sampled_from([math.nan, math.inf, -math.inf]))
def test_numbers_that_json_lacks_are_texts(value: float) -> None:
    message = pb.UpstreamMessage(progress=pb.ProgressReport(completion=value))
    data = JSON.encode_upstream(message)
    assert json.loads(data) == as_protobuf_says(message)
    read = JSON.decode(data).progress.completion
    assert read == value or (math.isnan(read) and math.isnan(value))
