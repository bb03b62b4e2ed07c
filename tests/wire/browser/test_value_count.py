"""Documents with too many values are told from those with a long payload."""

from __future__ import annotations

import json
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire.browser import CODECS, JSON, MSGPACK, value_count
from aether_trio.wire.browser.value_count import MAX_VALUES, UNCOUNTED_BYTES, json_has_too_many, msgpack_has_too_many
from aether_trio.wire.pb import aether_pb2 as pb

MIB = 1024 * 1024
documents = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**31), 2**63), st.floats(allow_nan=False), st.text(), st.binary()
    ),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    max_leaves=40,
)


def values(document: Any) -> int:
    """Of a document, keys included."""
    if isinstance(document, dict):
        return 1 + sum(1 + values(value) for value in document.values())
    return 1 + (sum(map(values, document)) if isinstance(document, list) else 0)


def marks(document: Any) -> int:
    """The commas and opening brackets of a JSON document."""
    if isinstance(document, (dict, list)):
        inner = document.values() if isinstance(document, dict) else document
        return 1 + max(0, len(document) - 1) + sum(map(marks, inner))
    return 0


@given(document=documents, most=st.integers(0, 60))
def test_values_are_counted(document: Any, most: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_count, "MAX_VALUES", most)
        assert msgpack_has_too_many(msgspec.msgpack.encode(document)) == (values(document) > most)
        text = msgspec.json.encode(document).decode()
        assert json_has_too_many(text) == (marks(document) > most)
        assert json_has_too_many(json.dumps(msgspec.json.decode(text), ensure_ascii=True)) == (marks(document) > most)


@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_counted_or_not(data: bytes) -> None:
    assert not msgpack_has_too_many(data)
    assert not json_has_too_many(data.decode("latin-1"))


@pytest.mark.parametrize(
    "data",
    [
        '{"send":[' + "[]," * 100_000 + "[]]}",
        '{"progress":{"metadata":{' + ",".join(f'"{number}":"a"' for number in range(100_000)) + "}}}",
        '["' + '",["' * 10_000,
        "[" * 20_000,
    ],
    ids=["arrays", "map", "unended", "deep"],
)
def test_json_of_too_many_values_is_refused(data: str) -> None:
    with pytest.raises(StatusError, match="has more than 8192 values") as caught:
        JSON.decode(data)
    assert caught.value.status is Status.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "data",
    [
        b"\x81\xa4send\xdd" + struct.pack(">I", 2 * MIB) + b"\x90" * 2 * MIB,
        b"\xdf" + struct.pack(">I", 2**32 - 1) + b"\xa1a\x80" * 100_000,
        b"\x91" * 20_000,
    ],
    ids=["arrays", "map", "deep"],
)
def test_msgpack_of_too_many_values_is_refused(data: bytes) -> None:
    with pytest.raises(StatusError, match="has more than 8192 values"):
        MSGPACK.decode(data)


@pytest.mark.parametrize("codec", CODECS.values(), ids=list(CODECS))
@pytest.mark.parametrize("payload", [b",[{" * 500_000, bytes(range(256)) * 6000, b"\x90" * MIB])
def test_a_long_payload_is_one_value(codec: Any, payload: bytes) -> None:
    message = pb.UpstreamMessage(send=pb.SendMessage(target_topic='"\\,[{' * 10, payload=payload))
    data = codec.encode_upstream(message)
    assert codec.decode(data.decode() if codec.text else data) == message


@pytest.mark.parametrize("text", [",[{" * 50_000, '"\\' * 50_000, "\\" * 99_999, '\\"' * 50_000 + "\n,["])
def test_text_that_looks_like_values_is_none(text: str) -> None:
    message = pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t", summary=text))
    assert JSON.decode(JSON.encode_upstream(message).decode()) == message


def test_what_is_not_counted_has_no_more_values() -> None:
    assert UNCOUNTED_BYTES <= MAX_VALUES
