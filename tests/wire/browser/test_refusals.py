from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire.browser import CODECS, JSON, MSGPACK, PROTO, Codec
from aether_trio.wire.pb import aether_pb2 as pb


def problem(codec: Codec, data: bytes | str) -> str:
    with pytest.raises(StatusError) as caught:
        codec.decode(data)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert len(caught.value.message) < 400
    return caught.value.message


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({"send": {"payload": "?"}}, "send.payload: expected base64 text, not '?'"),
        ({"send": {"payload": 5}}, "send.payload: expected base64 text, not a number"),
        ({"send": {"target_topic": 5}}, "send.target_topic: expected text, not a number"),
        ({"send": {"targetTopic": "x"}}, "send: unknown field 'targetTopic' in SendMessage"),
        ({"sent": {}}, "unknown field 'sent' in UpstreamMessage"),
        ({"send": []}, "send: expected a map of fields, not a list"),
        ({"send": {"message_type": "CHATTER"}}, "send.message_type: 'CHATTER' is not a value of MessageType"),
        ({"send": {"message_type": 1.5}}, "send.message_type: expected the name of a MessageType, not 1.5"),
        (
            {"send": {"message_type": 2**31}},
            "send.message_type: 2147483648 is out of range (-2147483648 to 2147483647)",
        ),
        ({"send": {}, "init": {}}, "send and init are members of one oneof (payload); send one of them"),
        (
            {"init": {"agent": {}, "user": {}}},
            "init: agent and user are members of one oneof (client_type); send one of them",
        ),
        ({"init": {"credentials": {"api_key": 7}}}, "init.credentials.'api_key': expected text, not a number"),
        ({"init": {"credentials": [1]}}, "init.credentials: expected a map, not a list"),
        ({"init": {"extensions": {}}}, "init.extensions: expected a list, not a map"),
        (
            {"init": {"extensions": [{}, {"required": 1}]}},
            "init.extensions.1.required: expected true or false, not a number",
        ),
        ({"init": {"extensions": [{}, None]}}, "init.extensions.1: expected a map of fields, not null"),
        ({"active_extensions": [5]}, "active_extensions.0: expected text, not a number"),
        ({"kv_op": {"ttl": "12x"}}, "kv_op.ttl: expected an integer, not '12x'"),
        ({"kv_op": {"ttl": "9" * 20}}, "kv_op.ttl: '99999999999999999999' is out of range"),
        ({"kv_op": {"ttl": "9" * 21}}, "kv_op.ttl: expected an integer, not '999999999999999999999'"),
        ({"kv_op": {"ttl": 1.5}}, "kv_op.ttl: expected an integer, not 1.5"),
        ({"kv_op": {"ttl": True}}, "kv_op.ttl: expected an integer, not True"),
        ({"kv_op": {"limit": 2**31}}, "kv_op.limit: 2147483648 is out of range"),
        ({"kv_op": {"limit": 10**30}}, "kv_op.limit: 1000000000000000000000000000000 is out of range"),
        ({"progress": {"completion": "half"}}, "progress.completion: expected a number, not 'half'"),
        ([], "expected a map of fields, not a list"),
        (None, "expected a map of fields, not null"),
    ],
)
def test_json_that_has_no_place_in_the_message(plain: Any, text: str) -> None:
    assert problem(JSON, json.dumps(plain)).startswith(text)


@pytest.mark.parametrize(
    ("plain", "text"),
    [
        ({"send": {"payload": "dGV4dA=="}}, "send.payload: expected bytes, not text"),
        ({"send": {"target_topic": b"ag"}}, "send.target_topic: expected text, not bytes"),
        ({"send": {5: "x"}}, "send: unknown field 5 in SendMessage"),
        ({"init": {"credentials": {5: "x"}}}, "init.credentials.5: expected text, not a number"),
        ({"send": msgspec.msgpack.Ext(4, b"x")}, "send: expected a map of fields, not a value of another type"),
    ],
)
def test_msgpack_that_has_no_place_in_the_message(plain: Any, text: str) -> None:
    assert problem(MSGPACK, msgspec.msgpack.encode(plain)).startswith(text)


# From Python 3.12 on C code may nest deeper than a document of so few values can: its end is
# missing is what is found then.
TOO_DEEP = "it is nested too deeply" if sys.version_info < (3, 12) else "Input data was truncated"


@pytest.mark.parametrize(
    ("codec", "data", "text"),
    [
        (JSON, b"{", "cannot decode JSON: Input data was truncated"),
        (JSON, b'{"send": {"target_topic": "\\ud800"}}', "cannot decode JSON: "),
        (JSON, b'{"a": "\xff"}', "cannot decode JSON: "),
        (JSON, b"[" * 8_000, f"cannot decode JSON: {TOO_DEEP}"),
        (JSON, b'{"kv_op": {"ttl": ' + b"9" * 5000 + b"}}", ""),
        (JSON, b'{"progress": {"completion": 1e999}}', "cannot decode JSON: "),
        (MSGPACK, b"\xc1", "cannot decode MessagePack: "),
        (MSGPACK, b"\xdd\xff\xff\xff\xff", "cannot decode MessagePack: "),
        (MSGPACK, b"\xdf\xff\xff\xff\xff", "cannot decode MessagePack: "),
        (MSGPACK, b"\x81\x81\x01\x01\x01", "cannot decode MessagePack: "),
        (MSGPACK, b"\x91" * 8_000, f"cannot decode MessagePack: {TOO_DEEP}"),
        (MSGPACK, b"\x81\xa4send\x81\xactarget_topic\xa1\xff", "cannot decode MessagePack: "),
        (PROTO, b"\xff\xff", "cannot decode UpstreamMessage: "),
        (PROTO, b"\x12\x03\x0a\x01\xff", "cannot decode UpstreamMessage: "),
    ],
)
def test_data_that_is_none(codec: Codec, data: bytes, text: str) -> None:
    assert problem(codec, data).startswith(text)


def test_a_long_value_is_quoted_in_part() -> None:
    assert problem(JSON, json.dumps({"kv_op": {"ttl": "a\n" * 10_000}})).startswith(
        "kv_op.ttl: expected an integer, not 'a\\n"
    )


@pytest.mark.parametrize(
    ("plain", "payload"), [("_-8=", b"\xff\xef"), ("_-8", b"\xff\xef"), ("/+8=", b"\xff\xef"), ("", b"")]
)
def test_base64_of_both_alphabets_is_read(plain: str, payload: bytes) -> None:
    assert JSON.decode(json.dumps({"send": {"payload": plain}})).send.payload == payload


@pytest.mark.parametrize("ttl", [7, "7", 7.0])
def test_integers_may_be_written_in_other_ways(ttl: Any) -> None:
    assert JSON.decode(json.dumps({"kv_op": {"ttl": ttl}})).kv_op.ttl == 7


def test_null_is_not_there() -> None:
    message = JSON.decode(b'{"send": null, "init": {"user": null, "agent": {}, "resume_session_id": null}}')
    assert message == pb.UpstreamMessage(init=pb.InitConnection(agent=pb.AgentIdentity()))


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [field.name for message in (pb.SendMessage, pb.InitConnection) for field in message.DESCRIPTOR.fields]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from(["send", "init", "kv_op", "active_extensions"]), _ANYTHING))
def test_anything_is_read_or_refused(plain: dict[str, Any]) -> None:
    for codec, encode in ((JSON, msgspec.json.encode), (MSGPACK, msgspec.msgpack.encode)):
        try:
            message = codec.decode(encode(plain))
        except StatusError as error:
            assert error.status is Status.INVALID_ARGUMENT  # noqa: PT017  # whether it raises is open
        else:
            assert codec.decode(codec.encode_upstream(message)) == message


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(codec: Codec, data: bytes) -> None:
    for decode in (codec.decode, codec.decode_downstream):
        try:
            decode(data)
        except StatusError as error:
            assert error.status is Status.INVALID_ARGUMENT  # noqa: PT017  # whether it raises is open


def test_a_complaint_about_something_deep_is_short() -> None:
    assert len(problem(MSGPACK, b"\x91" * 500 + b"\xc7\x01\xff\0")) < 300
    assert len(problem(JSON, b"[" * 500 + b"1e999" + b"]" * 500)) < 300
