"""The framed transport: the framing of docs/wire.md, by hand.

The opening (preface and HELLO) is the same bytes for every connection. A publication is the part of
a SEND behind its number, so `send` packs length, type and number in front of it in one go; its
first byte is the upper one of the message type, which is 0, where an UpstreamMessage has a tag,
which never is. What is delivered is handed on as the serialized DownstreamMessage that a DELIVER
holds, and a NACK as the ErrorResponse that it stands for.

ACKs are read, for the window and for `unsettled`. DELIVERED is sent by `framed-acks` alone: the
last offset of each channel, once for each read, as an application does that is done with a batch.
Plain `framed` has no delivery acks, so that it does what gRPC does.
"""

from __future__ import annotations

import struct
from collections import deque

import msgspec

from bench import wire
from bench.transports.base import ClientCodec, Transport

PREFACE = b"\xaeAETHER\x01"
FROM_SERVER = RETRYABLE = CLOSED = 0x01
SHARED = 0x02
# Type and flags as one 16-bit number, because that is how a frame is told from another.
HELLO, SEND, DELIVER, ACK, NACK, DELIVERED = 0x0100, 0x0200, 0x0300, 0x0400, 0x0500, 0x0600
ENVELOPE, PING, PONG, GOAWAY, ERROR, CHANNEL = 0x0800, 0x0900, 0x0A00, 0x0B00, 0x0C00, 0x0D00
FIRST_OPTIONAL = 0x8000
DELIVER_FIXED = 12
DEFAULT_WINDOW = 4096

_FRAME = struct.Struct(">IH")
_SEND = struct.Struct(">IHq")
_DELIVERED = struct.Struct(">IHIq")
_PLACE = struct.Struct(">Iq")  # a channel and an offset of it
_NUMBER = struct.Struct(">q")
_LAST_WORDS = struct.Struct(">HI")  # of GOAWAY and ERROR, in front of the text
_NACK = struct.Struct(">qIH")
_SEND_REST = struct.Struct(">HHI")


def frame(kind: int, body: bytes) -> bytes:
    """Encode one frame; `kind` is its type and its flags."""
    return _FRAME.pack(len(body), kind) + body


class FramedTransport(Transport):
    def __init__(self, name: str = "framed", *, delivery_acks: bool = False) -> None:
        self.name = name
        self._delivery_acks = delivery_acks
        hello = msgspec.msgpack.encode({"agent": "aether-bench", "delivery_acks": delivery_acks})
        self._opening = PREFACE + frame(HELLO, hello)

    def codec(self, authority: str) -> FramedCodec:
        return FramedCodec(self._opening, self._delivery_acks)

    def publication_prefix(self, topic: str, payload_bytes: int, more: bytes = b"") -> bytes:
        name = topic.encode()
        return _SEND_REST.pack(wire.OPAQUE, len(name), len(more)) + name + more


class FramedCodec(ClientCodec):
    """`ClientCodec` of one framed connection. Its SENDs are numbered from 1."""

    __slots__ = (
        "_acking", "_fresh", "_goaway", "_held", "_limit", "_rest", "_seq", "_settled", "_shared", "_why",
        "_window", "ack_frames",
    )  # fmt: skip

    half_closes = True

    def __init__(self, opening: bytes, delivery_acks: bool) -> None:
        super().__init__(opening)
        self._held: deque[bytes] = deque()  # publications beyond the window
        self._acking = delivery_acks
        self._fresh = True
        self._rest = b""  # a frame cut by the end of a read
        self._seq = self._settled = 0
        self._window = self._limit = 0  # nothing may be published before the gateway's HELLO
        self._shared: set[int] = set()
        self._goaway = self._why = ""
        self.ack_frames = 0

    def send(self, message: bytes) -> None:
        if message[0]:
            self._out.append(_FRAME.pack(len(message), ENVELOPE) + message)
        elif self._seq < self._limit and not self._held:
            self._seq = seq = self._seq + 1
            self._out.append(_SEND.pack(len(message) + 8, SEND, seq) + message)
        else:
            self._held.append(message)

    def unsettled(self) -> int:
        return self._seq - self._settled + len(self._held)

    def receive(self, data: bytes) -> list[bytes]:
        """ValueError when the peer breaks the framing."""
        if self._rest:
            data = self._rest + data
        at, stop = 0, len(data)
        if self._fresh:
            if not data.startswith(PREFACE[:stop]):
                raise ValueError(f"no framing: the peer begins with {data[:8]!r}")
            if stop < len(PREFACE):
                self._rest = data
                return []
            at, self._fresh = len(PREFACE), False
        messages: list[bytes] = []
        done: dict[int, int] | None = {} if self._acking else None
        header = _FRAME.unpack_from
        while stop - at >= 6:
            size, kind = header(data, at)
            first = at + 6
            at = first + size
            if at > stop:
                at = first - 6
                break
            if kind == DELIVER:
                messages.append(data[first + DELIVER_FIXED : at])
                if done is not None:
                    channel, offset = _PLACE.unpack_from(data, first)
                    if channel in self._shared:
                        self._out.append(_DELIVERED.pack(DELIVER_FIXED, DELIVERED, channel, offset))
                    else:
                        done[channel] = offset
            elif kind == ENVELOPE:
                messages.append(data[first:at])
            elif kind == ACK:
                (self._settled,) = _NUMBER.unpack_from(data, first)
                self._limit = self._settled + self._window
                self.ack_frames += 1
                if self._held:
                    self._pump()
            else:
                self._control(kind, data[first:at], messages)
        self._rest = data[at:]
        if done:
            self._out += [_DELIVERED.pack(DELIVER_FIXED, DELIVERED, *place) for place in done.items()]
        return messages

    def _pump(self) -> None:
        held = self._held
        while held and self._seq < self._limit:
            message = held.popleft()
            self._seq += 1
            self._out.append(_SEND.pack(len(message) + 8, SEND, self._seq) + message)

    def _control(self, kind: int, body: bytes, messages: list[bytes]) -> None:
        if kind == CHANNEL | SHARED:
            self._shared.add(int.from_bytes(body[:4], "big"))
        elif kind == CHANNEL | CLOSED:
            self._shared.discard(int.from_bytes(body, "big"))
        elif kind in (NACK, NACK | RETRYABLE):
            _, _, code_bytes = _NACK.unpack_from(body)
            code, text = body[_NACK.size : _NACK.size + code_bytes], body[_NACK.size + code_bytes :]
            messages.append(wire.error_response(code, text))
        elif kind == HELLO | FROM_SERVER:
            self._window = self._limit = msgspec.msgpack.decode(body).get("publish_window", DEFAULT_WINDOW)
            self._pump()
        elif kind == PING:
            self._out.append(frame(PONG, body))
        elif kind in (ERROR, ERROR | RETRYABLE):
            self._why = f"framed error {_words(body)}"
            self.ended = True
        elif kind == GOAWAY:
            self._goaway = f"GOAWAY {_words(body)}"
        elif kind not in (CHANNEL, PONG) and kind < FIRST_OPTIONAL:
            raise ValueError(f"frame {kind:#06x} from a gateway")

    def status(self) -> str:
        """Say how the connection ended; a clean end is the socket's."""
        return self._why or self._goaway or "OK"


def _words(body: bytes) -> str:
    number, _ = _LAST_WORDS.unpack_from(body)
    return f"{number} {body[_LAST_WORDS.size :].decode(errors='replace')}".strip()
