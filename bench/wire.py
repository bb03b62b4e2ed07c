"""The few protobuf messages that the load needs, laid by hand.

A real protobuf runtime would cost the load as much as the server; a benchmark client that sends the
same message with another number in it needs a prefix and a concatenation. Field numbers are those
of reference `aether.v1` (InitConnection, SendMessage, KVOperation upstream; IncomingMessage,
ErrorResponse, KVResponse, ConnectionAck downstream).

Invariant: a function that makes bytes makes one whole message, unless its name ends in `_prefix` or
`_field`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

# Tags (field number << 3 | BYTES) of DownstreamMessage's oneof: a message's first byte tells what
# it is, because every protobuf serializer in use writes fields in ascending order and nothing in
# the message comes before the oneof.
DELIVERY, CONFIG, SIGNAL, ERROR, KV, ACK = 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x3A

OPAQUE = 6
"""MessageType OPAQUE: the gateway carries it through unread."""

KV_GET, KV_PUT = 0, 1
SCOPE_WORKSPACE = 2


def varint(value: int) -> bytes:
    """Encode a number (not negative) as a varint."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def number_field(number: int, value: int) -> bytes:
    """Encode a varint field; empty for 0, as proto3 does."""
    return varint(number << 3 | VARINT) + varint(value) if value else b""


def bytes_field(number: int, value: bytes | str) -> bytes:
    """Encode a string, bytes or message field, also an empty one, for oneofs."""
    raw = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | BYTES) + varint(len(raw)) + raw


def _init(client_type: int, identity: bytes, credentials: Mapping[str, str], extensions: bytes = b"") -> bytes:
    entries = b"".join(bytes_field(10, bytes_field(1, key) + bytes_field(2, text)) for key, text in credentials.items())
    return bytes_field(1, bytes_field(client_type, identity) + entries + extensions + bytes_field(51, "bench"))


def agent_init(
    workspace: str, implementation: str, specifier: str, credentials: Mapping[str, str], extensions: bytes = b""
) -> bytes:
    """Encode an agent's InitConnection; `extensions` are encoded fields."""
    identity = bytes_field(1, workspace) + bytes_field(2, implementation) + bytes_field(3, specifier)
    return _init(1, identity, credentials, extensions)


def service_init(implementation: str, specifier: str, credentials: Mapping[str, str]) -> bytes:
    """Encode InitConnection of `sv::{implementation}::{specifier}`, in no workspace."""
    return _init(8, bytes_field(1, implementation) + bytes_field(2, specifier), credentials)


def on_behalf(subject_type: str, subject_id: str, grant_id: str) -> bytes:
    """Encode the field of a SendMessage that says in whose name it is sent."""
    subject = bytes_field(1, subject_type) + bytes_field(2, subject_id)
    return bytes_field(4, bytes_field(1, "on_behalf_of") + bytes_field(2, subject) + bytes_field(3, grant_id))


def send_prefix(topic: str, payload_bytes: int, more: bytes = b"") -> bytes:
    """Encode a SendMessage up to its payload of `payload_bytes` bytes, which follows.

    `more` are further fields of it, encoded.
    """
    inner = bytes_field(1, topic) + number_field(3, OPAQUE) + more + varint(2 << 3 | BYTES) + varint(payload_bytes)
    return varint(2 << 3 | BYTES) + varint(len(inner) + payload_bytes) + inner


def kv_put(key: str, value: bytes, request_id: str) -> bytes:
    fields = number_field(1, KV_PUT) + number_field(2, SCOPE_WORKSPACE) + bytes_field(3, key) + bytes_field(4, value)
    return bytes_field(4, fields + bytes_field(8, request_id))


def kv_get(key: str, request_id: str) -> bytes:
    fields = number_field(1, KV_GET) + number_field(2, SCOPE_WORKSPACE) + bytes_field(3, key)
    return bytes_field(4, fields + bytes_field(8, request_id))


def error_response(code: bytes, text: bytes) -> bytes:
    """Encode an ErrorResponse as a DownstreamMessage, for transports without one."""
    return bytes_field(4, bytes_field(1, code) + bytes_field(2, text))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a varint at `at`; give it and the offset behind it; raises IndexError."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def fields(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Give (field number, first offset, last offset + 1) of each field's value.

    A varint's value is given as (number, value, -1). ValueError for wire types that the protocol
    does not use.
    """
    at = start
    while at < stop:
        tag, at = read_varint(data, at)
        kind = tag & 7
        if kind == BYTES:
            size, at = read_varint(data, at)
            yield tag >> 3, at, at + size
            at += size
        elif kind == VARINT:
            value, at = read_varint(data, at)
            yield tag >> 3, value, -1
        elif kind == FIXED64:
            yield tag >> 3, at, at + 8
            at += 8
        elif kind == FIXED32:
            yield tag >> 3, at, at + 4
            at += 4
        else:
            raise ValueError(f"wire type {kind} in field {tag >> 3}")


def _body(message: bytes) -> tuple[int, int]:
    for _, start, stop in fields(message, 0, len(message)):
        return start, stop
    raise ValueError("empty DownstreamMessage")


def payload_at(message: bytes) -> int:
    """Where the payload of a delivery begins; -1 if there is none."""
    if message[0] != DELIVERY:
        return -1
    for number, start, _ in fields(message, *_body(message)):
        if number == 2:
            return start
    return -1


def read_error(message: bytes) -> tuple[str, str]:
    code = text = ""
    for number, start, stop in fields(message, *_body(message)):
        if number == 1:
            code = message[start:stop].decode()
        elif number == 2:
            text = message[start:stop].decode()
    return code, text


def read_kv(message: bytes) -> tuple[bool, bytes, str]:
    success, value, request_id = False, b"", ""
    for number, start, stop in fields(message, *_body(message)):
        if number == 1:
            success = bool(start)
        elif number == 2:
            value = message[start:stop]
        elif number == 5:
            request_id = message[start:stop].decode()
    return success, value, request_id
