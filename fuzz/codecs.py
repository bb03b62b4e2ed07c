"""Fuzz the three codecs of WebSocket: each input is a message or one refusal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from aether_trio.model.errors import Status, StatusError
from aether_trio.wire.browser import CODECS, JSON, MSGPACK
from aether_trio.wire.browser.value_count import UNCOUNTED_BYTES, json_has_too_many, msgpack_has_too_many
from aether_trio.wire.pb import aether_pb2 as pb
from fuzz.feeding import choices

_CODECS: Final = tuple(CODECS.values())


def check(data: bytes) -> None:
    """Check an input: a byte of choices, and the data of one WebSocket message."""
    (which,), body = choices(data, 1)
    codec = _CODECS[which % len(_CODECS)]
    message_data: bytes | str = body
    if codec.text:
        try:
            message_data = body.decode()
        except UnicodeDecodeError:
            return  # the link has refused it
    try:
        message = codec.decode(message_data)
    except StatusError as refused:
        assert refused.status in (Status.INVALID_ARGUMENT, Status.RESOURCE_EXHAUSTED)
        assert len(refused.message) < 600
        return
    message.DiscardUnknownFields()  # type: ignore[no-untyped-call]  # which only protobuf keeps
    plain = json.loads(JSON.encode_upstream(message))
    for other in _CODECS:
        encoded = other.encode_upstream(message)
        if len(encoded) <= UNCOUNTED_BYTES:
            again = other.decode(encoded.decode() if other.text else encoded)
            # As plain values: one NaN is not another, but its text is; and maps have no order.
            assert json.loads(JSON.encode_upstream(again)) == plain
    if not codec.text and codec is not MSGPACK:
        return
    too_many = json_has_too_many(message_data) if isinstance(message_data, str) else msgpack_has_too_many(body)
    assert not too_many or len(body) > UNCOUNTED_BYTES


def seeds() -> Iterator[bytes]:
    """Yield messages of several kinds in every codec, nested or repeated too often."""
    messages = [
        pb.UpstreamMessage(send=pb.SendMessage(target_topic="ag::w::i::1", payload=b"\0\xff")),
        pb.UpstreamMessage(init=pb.InitConnection(user=pb.UserIdentity(user_id="u"), credentials={"a": "b"})),
        pb.UpstreamMessage(kv_op=pb.KVOperation(op=pb.KVOperation.GET, key="k", ttl=2**40)),
        pb.UpstreamMessage(progress=pb.ProgressReport(task_id="t", summary="s")),
    ]
    for message in messages:
        for which, codec in enumerate(_CODECS):
            yield bytes((which,)) + codec.encode_upstream(message)
    json_number, msgpack_number = _CODECS.index(JSON), _CODECS.index(MSGPACK)
    yield bytes((json_number,)) + b"[" * 2000
    yield bytes((json_number,)) + json.dumps({"send": {"payload": [[]] * 300}}).encode()
    yield bytes((json_number,)) + b'{"progress": {"fraction": 1e999, "step": NaN}}'
    yield bytes((msgpack_number,)) + b"\x91" * 2000
    yield bytes((msgpack_number,)) + b"\x91" * 500 + b"\xc7\x01\xff\0"
    yield bytes((msgpack_number,)) + b"\xdd\xff\xff\xff\xff" + b"\x90" * 100
    yield bytes((msgpack_number,)) + b"\x81\xa4send\x81\xa7payload\xc6\xff\xff\xff\xff"
