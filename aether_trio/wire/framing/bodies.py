"""Decode the bodies of the framing's rarer frames; decode.py has SEND and DELIVER.

A reader takes the body of one frame, whose length and flags _SHAPES has accepted, and raises
RemoteProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Final, NoReturn, TypeAlias

import msgspec

from aether_trio.model.topics import MAX_TOPIC_BYTES
from aether_trio.wire.framing import events
from aether_trio.wire.framing.constants import (
    FIRST_OPTIONAL_TYPE,
    MAX_CODE_BYTES,
    MAX_FRAME_BYTES,
    MAX_HELLO_BYTES,
    MAX_HELLO_NESTING,
    MAX_TEXT_BYTES,
    ErrorCode,
    Flag,
    FrameType,
)
from aether_trio.wire.framing.errors import RemoteProtocolError
from aether_trio.wire.framing.nesting import nesting

__all__ = ["CHANNEL_OFFSET", "malformed", "reader_of", "text_of"]

CHANNEL_OFFSET: Final = struct.Struct(">Iq").unpack_from
_SEQ: Final = struct.Struct(">q").unpack_from
_NACK: Final = struct.Struct(">qIH").unpack_from
_CREDIT: Final = struct.Struct(">qq").unpack_from
_PING: Final = struct.Struct(">Q").unpack_from
_CODE_DELAY: Final = struct.Struct(">HI").unpack_from
_U32: Final = struct.Struct(">I").unpack_from

_FROM_SERVER: Final = int(Flag.FROM_SERVER)  # an operation on a Flag costs as much as a frame
_CLIENT_HELLO: Final = msgspec.msgpack.Decoder(events.ClientHello)
_SERVER_HELLO: Final = msgspec.msgpack.Decoder(events.ServerHello)


def malformed(message: str) -> NoReturn:
    """Raise the RemoteProtocolError for a frame of the peer that cannot be read."""
    raise RemoteProtocolError(ErrorCode.MALFORMED, message)


def text_of(data: bytes, limit: int, what: str) -> str:
    """Decode UTF-8 of at most `limit` bytes; refuse what is not."""
    if len(data) > limit:
        malformed(f"{what} of {len(data)} bytes; {limit} are allowed")
    try:
        return data.decode()
    except UnicodeDecodeError:
        malformed(f"{what} is not UTF-8")


def _positive(value: int, what: str) -> int:
    if value < 1:
        malformed(f"{what} is {value}; it must be at least 1")
    return value


def _hello(body: bytes, flags: int) -> events.Event:
    decoder = _SERVER_HELLO if flags & _FROM_SERVER else _CLIENT_HELLO
    if nesting(body, MAX_HELLO_NESTING) > MAX_HELLO_NESTING:
        raise RemoteProtocolError(ErrorCode.BAD_HELLO, f"HELLO: nested deeper than {MAX_HELLO_NESTING} arrays and maps")
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise RemoteProtocolError(ErrorCode.BAD_HELLO, f"HELLO: {error}") from error


def _nack(body: bytes, flags: int) -> events.Event:
    seq, delay, size = _NACK(body)
    if not 0 < size <= len(body) - 14:
        malformed(f"NACK: a code of {size} bytes in a body of {len(body)}")
    code = text_of(body[14 : 14 + size], MAX_CODE_BYTES, "a code")
    text = text_of(body[14 + size :], MAX_TEXT_BYTES, "a text")
    return events.Nack(_positive(seq, "seq"), code, text, bool(flags & Flag.RETRYABLE), delay)


def _delivered(body: bytes, _flags: int) -> events.Event:
    channel, offset = CHANNEL_OFFSET(body)
    return events.Delivered(channel, _positive(offset, "offset"))


def _credit(body: bytes, _flags: int) -> events.Event:
    message_count, byte_count = _CREDIT(body)
    if message_count < 0 or byte_count < 0 or not (message_count or byte_count):
        malformed(f"credit of {message_count} messages and {byte_count} bytes; credit only grows")
    return events.GrantCredit(message_count, byte_count)


def _goaway(body: bytes, _flags: int) -> events.Event:
    reason, within = _CODE_DELAY(body)
    return events.GoAway(reason, within, text_of(body[6:], MAX_TEXT_BYTES, "a text"))


def _error(body: bytes, flags: int) -> events.Event:
    code, delay = _CODE_DELAY(body)
    text = text_of(body[6:], MAX_TEXT_BYTES, "a text")
    return events.Error(_positive(code, "code"), text, bool(flags & Flag.RETRYABLE), delay)


def _channel(body: bytes, flags: int) -> events.Event:
    if flags & Flag.CLOSED:
        if flags != Flag.CLOSED or len(body) != 4:
            malformed("CHANNEL: the flag CLOSED goes with a number and nothing else")
        return events.ChannelClosed(_U32(body)[0])
    if len(body) < 13:
        malformed(f"CHANNEL: a body of {len(body)} bytes has no topic")
    channel, position = CHANNEL_OFFSET(body)
    if position < 0:
        malformed(f"CHANNEL: position is {position}")
    return events.Channel(channel, text_of(body[12:], MAX_TOPIC_BYTES, "a topic"), position, bool(flags & Flag.SHARED))


Reader: TypeAlias = Callable[[bytes, int], events.Event]

# Least length, greatest length, flags that are defined, reader.
_SHAPES: Final[Mapping[int, tuple[int, int, int, Reader]]] = {
    int(kind): (least, greatest, int(flags), reader)
    for kind, (least, greatest, flags, reader) in {
        FrameType.HELLO: (1, MAX_HELLO_BYTES, Flag.FROM_SERVER, _hello),
        FrameType.ACK: (8, 8, 0, lambda body, _flags: events.Ack(_positive(_SEQ(body)[0], "seq"))),
        FrameType.NACK: (15, 14 + MAX_CODE_BYTES + MAX_TEXT_BYTES, Flag.RETRYABLE, _nack),
        FrameType.DELIVERED: (12, 12, 0, _delivered),
        FrameType.CREDIT: (16, 16, 0, _credit),
        FrameType.ENVELOPE: (0, MAX_FRAME_BYTES, 0, lambda body, _flags: events.Envelope(body)),
        FrameType.PING: (8, 8, 0, lambda body, _flags: events.Ping(_PING(body)[0])),
        FrameType.PONG: (8, 8, 0, lambda body, _flags: events.Pong(_PING(body)[0])),
        FrameType.GOAWAY: (6, 6 + MAX_TEXT_BYTES, 0, _goaway),
        FrameType.ERROR: (6, 6 + MAX_TEXT_BYTES, Flag.RETRYABLE, _error),
        FrameType.CHANNEL: (4, 12 + MAX_TOPIC_BYTES, Flag.CLOSED | Flag.SHARED, _channel),
    }.items()
}


def reader_of(length: int, kind: int) -> Reader | None:
    """Return the reader of a frame other than SEND and DELIVER; None: skip the frame."""
    kind, flags = kind >> 8, kind & 0xFF
    shape = _SHAPES.get(kind)
    if shape is None:
        if kind >= FIRST_OPTIONAL_TYPE:
            return None
        if kind in {FrameType.SEND, FrameType.DELIVER}:
            malformed(f"{FrameType(kind).name}: undefined flags {flags:#04x}")
        raise RemoteProtocolError(ErrorCode.UNKNOWN_FRAME, f"a frame of the unknown type {kind:#04x}")
    least, greatest, defined, reader = shape
    if not least <= length <= greatest:
        malformed(f"{FrameType(kind).name} has {length} bytes; it must have {least} to {greatest}")
    if flags & ~defined:
        malformed(f"{FrameType(kind).name}: undefined flags {flags:#04x}")
    return reader
