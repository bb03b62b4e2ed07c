"""Encode events of the binary framing; each function returns one whole frame.

The functions of hot frames (SEND, DELIVER, ACK) take plain values, so that no event is made only
to be encoded. What no correct peer could accept raises LocalProtocolError. What may be sent when,
and the peer's frame limit, are the business of FramedConnection.

`deliver_header` is for many deliveries at once: `join([header, message, header, message])` copies
each message once, `join` of encoded frames twice. A frame is the same for all receivers that have
the same number for the channel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from aether_trio.model.topics import MAX_TOPIC_BYTES
from aether_trio.wire.framing import events
from aether_trio.wire.framing.constants import (
    HEADER_BYTES,
    MAX_CODE_BYTES,
    MAX_HELLO_BYTES,
    MAX_TEXT_BYTES,
    ErrorCode,
    Flag,
    FrameType,
)
from aether_trio.wire.framing.errors import LocalProtocolError

__all__ = [
    "deliver_header",
    "encode",
    "encode_ack",
    "encode_channel",
    "encode_channel_closed",
    "encode_credit",
    "encode_deliver",
    "encode_delivered",
    "encode_envelope",
    "encode_error",
    "encode_goaway",
    "encode_hello",
    "encode_nack",
    "encode_ping",
    "encode_pong",
    "encode_send",
    "join",
]

# Length, type and flags as one u16, then the fixed part of the body.
_HEADER: Final = struct.Struct(">IH").pack
_SEND: Final = struct.Struct(">IHqHHI").pack
_DELIVER: Final = struct.Struct(">IHIq").pack
_ACK: Final = struct.Struct(">IHq").pack
_NACK: Final = struct.Struct(">IHqIH").pack
_DELIVERED: Final = _DELIVER
_CREDIT: Final = struct.Struct(">IHqq").pack
_PING: Final = struct.Struct(">IHQ").pack
_GOAWAY: Final = struct.Struct(">IHHI").pack
_ERROR: Final = _GOAWAY
_CHANNEL: Final = _DELIVER
_CHANNEL_CLOSED: Final = struct.Struct(">IHI").pack

_DELIVER_FIXED: Final = 12
_NACK_FIXED: Final = 14
_GOAWAY_FIXED: Final = 6

# Type and flags; plain ints, because every access of an enum's member is a look-up.
_HELLO_TYPE: Final = FrameType.HELLO << 8
_SEND_TYPE: Final = FrameType.SEND << 8
_DELIVER_TYPE: Final = FrameType.DELIVER << 8
_ACK_TYPE: Final = FrameType.ACK << 8
_NACK_TYPE: Final = FrameType.NACK << 8
_DELIVERED_TYPE: Final = FrameType.DELIVERED << 8
_CREDIT_TYPE: Final = FrameType.CREDIT << 8
_ENVELOPE_TYPE: Final = FrameType.ENVELOPE << 8
_PING_TYPE: Final = FrameType.PING << 8
_PONG_TYPE: Final = FrameType.PONG << 8
_GOAWAY_TYPE: Final = FrameType.GOAWAY << 8
_ERROR_TYPE: Final = FrameType.ERROR << 8
_CHANNEL_TYPE: Final = FrameType.CHANNEL << 8


def _refuse(what: str, cause: Exception | None = None) -> LocalProtocolError:
    error = LocalProtocolError(ErrorCode.MALFORMED, what)
    error.__cause__ = cause
    return error


def _positive(value: int, what: str) -> None:
    if value < 1:
        raise _refuse(f"{what} is {value}; it must be at least 1")


def _text(text: str) -> bytes:
    data = text.encode(errors="replace")
    if len(data) > MAX_TEXT_BYTES:
        data = data[:MAX_TEXT_BYTES].decode(errors="ignore").encode()
    return data


def encode_send(seq: int, topic: str, payload: bytes, message_type: int = 0, extra: bytes = b"") -> bytes:
    """Encode SEND, which publishes a message; topic and `extra` up to 65,535 bytes."""
    if seq < 1:
        raise _refuse(f"the seq of a SEND is {seq}; it must be at least 1")
    try:
        target = topic.encode()
        size = len(target)
        head = _SEND(16 + size + len(extra) + len(payload), _SEND_TYPE, seq, message_type, size, len(extra))
    except (struct.error, UnicodeEncodeError) as error:
        raise _refuse(f"cannot encode SEND: {error}", error) from error
    return b"".join((head, target, extra, payload))


def deliver_header(channel: int, offset: int, size: int) -> bytes:
    """Encode what precedes a serialized message of `size` bytes in a DELIVER."""
    if offset < 1:
        raise _refuse(f"the offset of a DELIVER is {offset}; it must be at least 1")
    try:
        return _DELIVER(size + 12, _DELIVER_TYPE, channel, offset)
    except struct.error as error:
        raise _refuse(f"cannot encode DELIVER: {error}", error) from error


def encode_deliver(channel: int, offset: int, message: bytes) -> bytes:
    """Encode DELIVER, which carries a serialized DownstreamMessage to a subscriber."""
    if offset < 1:
        raise _refuse(f"the offset of a DELIVER is {offset}; it must be at least 1")
    try:
        return _DELIVER(len(message) + 12, _DELIVER_TYPE, channel, offset) + message
    except struct.error as error:
        raise _refuse(f"cannot encode DELIVER: {error}", error) from error


def encode_ack(seq: int) -> bytes:
    """Encode ACK, which settles every SEND up to `seq`."""
    _positive(seq, "the seq of an ACK")
    return _pack(_ACK, 8, _ACK_TYPE, seq)


def encode_nack(seq: int, code: str, message: str = "", *, retryable: bool = False, retry_after_ms: int = 0) -> bytes:
    """Encode NACK, which refuses one SEND; a text over MAX_TEXT_BYTES is cut."""
    _positive(seq, "the seq of a NACK")
    try:
        name = code.encode()
    except UnicodeEncodeError as error:
        raise _refuse(f"cannot encode the code of a NACK: {error}", error) from error
    if not 0 < len(name) <= MAX_CODE_BYTES:
        raise _refuse(f"the code of a NACK has 1 to {MAX_CODE_BYTES} bytes, not {len(name)}")
    text = _text(message)
    kind = _NACK_TYPE | (Flag.RETRYABLE if retryable else 0)
    return _pack(_NACK, _NACK_FIXED + len(name) + len(text), kind, seq, retry_after_ms, len(name)) + name + text


def encode_delivered(channel: int, offset: int) -> bytes:
    """Encode DELIVERED for all up to `offset`, on a shared channel for `offset` alone."""
    _positive(offset, "the offset of a DELIVERED")
    return _pack(_DELIVERED, 12, _DELIVERED_TYPE, channel, offset)


def encode_credit(message_count: int = 0, byte_count: int = 0) -> bytes:
    """Encode CREDIT, which allows more messages and bytes to be delivered."""
    if message_count < 0 or byte_count < 0 or not (message_count or byte_count):
        raise _refuse(f"a CREDIT cannot grant {message_count} messages and {byte_count} bytes; credit only grows")
    return _pack(_CREDIT, 16, _CREDIT_TYPE, message_count, byte_count)


def encode_envelope(message: bytes) -> bytes:
    """Encode ENVELOPE, which carries a serialized protobuf message."""
    try:
        return _HEADER(len(message), _ENVELOPE_TYPE) + message
    except struct.error as error:
        raise _refuse(f"cannot encode a frame: {error}", error) from error


def encode_ping(number: int = 0) -> bytes:
    """Encode PING with any unsigned 64-bit number."""
    return _pack(_PING, 8, _PING_TYPE, number)


def encode_pong(number: int) -> bytes:
    """Encode PONG, which answers the PINGs up to `number`."""
    return _pack(_PING, 8, _PONG_TYPE, number)


def encode_goaway(reason: int = 0, within_ms: int = 0, message: str = "") -> bytes:
    """Encode GOAWAY, with which a side leaves for a GoAwayReason."""
    text = _text(message)
    return _pack(_GOAWAY, _GOAWAY_FIXED + len(text), _GOAWAY_TYPE, reason, within_ms) + text


def encode_error(code: int, message: str = "", *, retryable: bool = False, retry_after_ms: int = 0) -> bytes:
    """Encode ERROR with a gRPC status or an ErrorCode; 0 is refused."""
    _positive(code, "the code of an ERROR")
    text = _text(message)
    kind = _ERROR_TYPE | (Flag.RETRYABLE if retryable else 0)
    return _pack(_ERROR, _GOAWAY_FIXED + len(text), kind, code, retry_after_ms) + text


def encode_channel(channel: int, topic: str, position: int = 0, *, shared: bool = False) -> bytes:
    """Encode CHANNEL, which gives a topic its number in this connection."""
    if position < 0:
        raise _refuse(f"the position of a CHANNEL is {position}; it must be at least 0")
    try:
        name = topic.encode()
    except UnicodeEncodeError as error:
        raise _refuse(f"cannot encode the topic of a CHANNEL: {error}", error) from error
    if not 0 < len(name) <= MAX_TOPIC_BYTES:
        raise _refuse(f"the topic of a CHANNEL has 1 to {MAX_TOPIC_BYTES} bytes, not {len(name)}")
    kind = _CHANNEL_TYPE | (Flag.SHARED if shared else 0)
    return _pack(_CHANNEL, _DELIVER_FIXED + len(name), kind, channel, position) + name


def encode_channel_closed(channel: int) -> bytes:
    """Encode CHANNEL with the flag CLOSED, which frees a channel number."""
    return _pack(_CHANNEL_CLOSED, 4, _CHANNEL_TYPE | Flag.CLOSED, channel)


@lru_cache(maxsize=64)
def encode_hello(hello: events.ClientHello | events.ServerHello) -> bytes:
    """Encode HELLO of either side. Checks what the peer will check."""
    try:
        body = msgspec.msgpack.encode(hello)
        msgspec.msgpack.decode(body, type=type(hello))
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise _refuse(f"cannot encode HELLO: {error}", error) from error
    assert len(body) <= MAX_HELLO_BYTES
    kind = _HELLO_TYPE | (Flag.FROM_SERVER if isinstance(hello, events.ServerHello) else 0)
    return _HEADER(len(body), kind) + body


def _pack(pack: Callable[..., bytes], *values: int) -> bytes:
    try:
        return pack(*values)
    except struct.error as error:
        raise _refuse(f"cannot encode a frame: {error}", error) from error


def _skipped(event: events.Skipped) -> bytes:
    raise _refuse(f"cannot encode a skipped frame of type {event.kind:#04x}: its content was not kept")


_ENCODERS: Final[dict[type, Callable[[Any], bytes]]] = {
    events.ClientHello: encode_hello,
    events.ServerHello: encode_hello,
    events.Send: lambda one: encode_send(one.seq, one.topic, one.payload, one.message_type, one.extra),
    events.Deliver: lambda one: encode_deliver(one.channel, one.offset, one.message),
    events.Ack: lambda one: encode_ack(one.seq),
    events.Nack: lambda one: encode_nack(
        one.seq, one.code, one.message, retryable=one.retryable, retry_after_ms=one.retry_after_ms
    ),
    events.Delivered: lambda one: encode_delivered(one.channel, one.offset),
    events.GrantCredit: lambda one: encode_credit(one.message_count, one.byte_count),
    events.Envelope: lambda one: encode_envelope(one.message),
    events.Ping: lambda one: encode_ping(one.number),
    events.Pong: lambda one: encode_pong(one.number),
    events.GoAway: lambda one: encode_goaway(one.reason, one.within_ms, one.message),
    events.Error: lambda one: encode_error(
        one.code, one.message, retryable=one.retryable, retry_after_ms=one.retry_after_ms
    ),
    events.Channel: lambda one: encode_channel(one.channel, one.topic, one.position, shared=one.shared),
    events.ChannelClosed: lambda one: encode_channel_closed(one.channel),
    events.Skipped: _skipped,
}


def encode(event: events.Event) -> bytes:
    """Encode any event of the binary framing as a frame."""
    return _ENCODERS[type(event)](event)


def join(parts: Iterable[bytes]) -> bytes:
    """Join frames, or headers and messages in turn, for one `send_all`."""
    return b"".join(parts)


assert len(_HEADER(0, 0)) == HEADER_BYTES
