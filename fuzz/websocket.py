"""Fuzz the frames of a WebSocket client against wsproto.

How the bytes are split means nothing, little is held, and wsproto finds the same events.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Final

from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, TextMessage
from wsproto.events import Ping as WsprotoPing
from wsproto.events import Pong as WsprotoPong

from aether_trio.transport.websocket.frames import (
    MAX_CONTROL_BYTES,
    CloseCode,
    CloseFrame,
    DataFrame,
    Event,
    Fragment,
    FrameError,
    FrameReader,
    PingFrame,
    PongFrame,
)
from fuzz.feeding import choices, split

LIMITS: Final = (1, 125, 1000, 64 * 1024)
_HEADER_BYTES: Final = 14
_BAD_GATEWAY: Final = 1014
"""A close code that wsproto does not know."""


def read(parts: Iterable[bytes], limit: int) -> tuple[list[Event], CloseCode | None]:
    """Read frames; return the events, and the error code that ended them."""
    reader = FrameReader(limit)
    events: list[Event] = []
    for part in parts:
        reader.feed(part)
        try:
            while (event := reader.next()) is not None:
                events.append(event)
        except FrameError as error:
            assert not reader.held_bytes
            assert not reader.unread_bytes
            try:
                reader.next()
            except FrameError:
                return events, error.code
            raise AssertionError("a mistake is the end") from error
        if events and isinstance(events[-1], CloseFrame):
            return events, None
        assert reader.held_bytes <= max(limit, 1)
        assert reader.unread_bytes < _HEADER_BYTES + MAX_CONTROL_BYTES
    return events, None


def wsproto_says(stream: bytes) -> tuple[list[object], int | None]:
    """What wsproto finds: events without fragments, and its error code."""
    connection = Connection(ConnectionType.SERVER)
    connection.receive_data(stream)
    found: list[object] = []
    part = b""
    for event in connection.events():
        if isinstance(event, (BytesMessage, TextMessage)):
            part += event.data.encode() if isinstance(event, TextMessage) else bytes(event.data)
            if event.message_finished:
                found.append(DataFrame(isinstance(event, TextMessage), part))
                part = b""
        elif isinstance(event, WsprotoPing):
            found.append(PingFrame(bytes(event.payload)))
        elif isinstance(event, WsprotoPong):
            found.append(PongFrame())
        elif isinstance(event, CloseConnection):
            if connection.state is ConnectionState.OPEN:
                return found, int(event.code)
            found.append(CloseFrame(None if event.code == 1005 else int(event.code), event.reason or ""))
    return found, None


def check_against_wsproto(stream: bytes) -> None:
    """Check that events and error are those that wsproto finds."""
    events, code = read([stream], 1 << 62)
    ours = [event for event in events if not isinstance(event, Fragment)]
    theirs, their_code = wsproto_says(stream)
    if their_code == CloseCode.INVALID_TEXT:
        assert ours[: len(theirs)] == theirs  # texts are looked at by the link, when they are whole
    elif code is CloseCode.INVALID_TEXT and their_code == CloseCode.PROTOCOL_ERROR:
        # A close code that wsproto does not know, and a reason that is no UTF-8.
        assert ours == theirs
    elif code is not None and their_code is None:
        assert ours == theirs  # what is wrong from its first byte on is refused there
    elif (
        not (ours and isinstance(ours[-1], CloseFrame) and ours[-1].code == _BAD_GATEWAY)
        and code is not CloseCode.TOO_BIG
    ):
        assert (ours, code) == (theirs, their_code)


def check(data: bytes) -> None:
    """Check an input: two bytes of choices, and the stream."""
    (which, step), stream = choices(data, 2)
    limit = LIMITS[which % len(LIMITS)]
    whole = read([stream], limit)
    assert read(split(stream, step), limit) == whole, f"split into {step}"
    if len(stream) <= 8192:
        check_against_wsproto(stream)


def frame(first: int, payload: bytes = b"", mask: bytes = b"\1\2\3\4") -> bytes:
    """Encode a client's frame; `first` has FIN and opcode."""
    size = len(payload)
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = struct.pack(">BH", 0xFE, size) if size < 1 << 16 else struct.pack(">BQ", 0xFF, size)
    return bytes((first,)) + length + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def seeds() -> Iterator[bytes]:
    """Yield messages whole and in fragments, control frames, ends, and mistakes."""
    streams = [
        frame(0x82, b"binary") + frame(0x81, b"text"),
        frame(0x02, b"a") + frame(0x89, b"ping") + frame(0x00, b"") + frame(0x80, b"b"),
        frame(0x82, b"x" * 126) + frame(0x8A, b"pong"),
        frame(0x88, b"\x03\xe8bye") + b"behind",
        frame(0x88, b""),
        frame(0x88, b"\x03\xf6\xff"),
        frame(0x81, b"\xc3\x28"),
        b"\x82\xff" + struct.pack(">Q", 2**40) + bytes(4),
        b"\x00\x80\0\0\0\0" * 20,
        b"\x82\x05hello",
        b"\x80\xf0\xf4",
    ]
    for stream in streams:
        for which in range(len(LIMITS)):
            yield bytes((which, 3)) + stream
