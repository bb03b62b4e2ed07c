"""The frames of the binary framing as frozen records.

msgspec Structs, because a frozen dataclass of five fields costs 0.63 µs to make and such a Struct
0.06 (CPython 3.11), and SEND and DELIVER are made for every message. None can be part of a
reference cycle, hence gc=False. Protobuf stays bytes, times are milliseconds.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec

from aether_trio.wire.framing.constants import (
    DEFAULT_MAX_FRAME_BYTES,
    DEFAULT_PUBLISH_WINDOW,
    LEAST_MAX_FRAME_BYTES,
    MAX_AGENT_BYTES,
    MAX_CREDIT,
    MAX_FRAME_BYTES,
    MAX_INT64,
    MAX_LOG_BYTES,
    MAX_PUBLISH_WINDOW,
    MAX_UINT16,
    MAX_UINT32,
    MINOR,
    PUBLISHER_BYTES,
)

Minor: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_UINT16)]
MaxFrame: TypeAlias = Annotated[int, msgspec.Meta(ge=LEAST_MAX_FRAME_BYTES, le=MAX_FRAME_BYTES)]
# Characters, of which none is shorter than a byte; the bytes are bounded by the frame.
Agent: TypeAlias = Annotated[str, msgspec.Meta(max_length=MAX_AGENT_BYTES)]
Credit: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_CREDIT)]
Publisher: TypeAlias = Annotated[bytes, msgspec.Meta(min_length=PUBLISHER_BYTES, max_length=PUBLISHER_BYTES)]
Log: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MAX_LOG_BYTES)]
Window: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MAX_PUBLISH_WINDOW)]


class ClientHello(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=False):
    """HELLO of a framed client. A bound of None is no bound."""

    minor: Minor = MINOR
    max_frame: MaxFrame = DEFAULT_MAX_FRAME_BYTES
    """The longest frame it accepts, in bytes behind the header."""
    agent: Agent = ""
    """Program and version, for logs: "name/1.2"."""
    credit_messages: Credit | None = None
    credit_bytes: Credit | None = None
    delivery_acks: bool = True
    """Whether positions move by DELIVERED, or else as soon as the kernel has the bytes."""
    publisher: Publisher | None = None
    """Whose sequence numbers these are; None does without deduplication across connections."""


class ServerHello(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=False):
    """HELLO of a framed server."""

    minor: Minor = MINOR
    """What is spoken from here on: at most the client's."""
    max_frame: MaxFrame = DEFAULT_MAX_FRAME_BYTES
    max_payload: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT64)] = 1024 * 1024
    """Payload of one SEND in bytes; a longer one is NACKed."""
    publish_window: Window = DEFAULT_PUBLISH_WINDOW
    """How far a SEND's number may be beyond the last ACK's."""
    dedup_s: Annotated[int, msgspec.Meta(ge=0, le=MAX_UINT32)] = 0
    """Seconds for which a publisher's numbers are remembered after its connection has ended."""
    agent: Agent = ""
    log: Log = b""
    """The identity of the log that offsets belong to; empty when the gateway does not say."""


class Send(msgspec.Struct, frozen=True, gc=False):
    """SEND: a client publishes a message; `extra` has SendMessage's rarer fields."""

    seq: int
    topic: str
    payload: bytes
    message_type: int = 0
    extra: bytes = b""


class Deliver(msgspec.Struct, frozen=True, gc=False):
    """DELIVER: a durable message to a subscriber, a serialized DownstreamMessage{msg}."""

    channel: int
    offset: int
    message: bytes


class Ack(msgspec.Struct, frozen=True, gc=False):
    """ACK: all SENDs of the connection up to `seq` are settled: committed or NACKed."""

    seq: int


class Nack(msgspec.Struct, frozen=True, gc=False):
    """NACK: one SEND was refused. `code` as in ErrorResponse."""

    seq: int
    code: str
    message: str = ""
    retryable: bool = False
    retry_after_ms: int = 0


class Delivered(msgspec.Struct, frozen=True, gc=False):
    """DELIVERED: the application is done with the channel's messages up to `offset`.

    Of a shared channel it is done with that one message only.
    """

    channel: int
    offset: int


class GrantCredit(msgspec.Struct, frozen=True, gc=False):
    """CREDIT: allows the server to deliver more messages and bytes."""

    message_count: int = 0
    byte_count: int = 0


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """ENVELOPE: a serialized UpstreamMessage of a client, or DownstreamMessage."""

    message: bytes


class Ping(msgspec.Struct, frozen=True, gc=False):
    """PING: asks for a PONG with the same number."""

    number: int = 0


class Pong(msgspec.Struct, frozen=True, gc=False):
    """PONG: answers the PING with `number`, and all PINGs before that one."""

    number: int = 0


class GoAway(msgspec.Struct, frozen=True, gc=False):
    """GOAWAY: its sender leaves for a GoAwayReason; the peer has `within_ms`."""

    reason: int = 0
    within_ms: int = 0
    message: str = ""


class Error(msgspec.Struct, frozen=True, gc=False):
    """ERROR: its sender's last frame, with a gRPC status or an ErrorCode."""

    code: int
    message: str = ""
    retryable: bool = False
    retry_after_ms: int = 0


class Channel(msgspec.Struct, frozen=True, gc=False):
    """CHANNEL: gives `topic` the number `channel`; DELIVERs follow after `position`."""

    channel: int
    topic: str
    position: int = 0
    shared: bool = False


class ChannelClosed(msgspec.Struct, frozen=True, gc=False):
    """CHANNEL with CLOSED: the channel's number is free until it is announced again."""

    channel: int


class Skipped(msgspec.Struct, frozen=True, gc=False):
    """An optional frame of a type that this version does not know; never sent."""

    kind: int
    size: int


Event: TypeAlias = (
    ClientHello
    | ServerHello
    | Send
    | Deliver
    | Ack
    | Nack
    | Delivered
    | GrantCredit
    | Envelope
    | Ping
    | Pong
    | GoAway
    | Error
    | Channel
    | ChannelClosed
    | Skipped
)
