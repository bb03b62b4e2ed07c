"""The messages that a client receives: their fields, types and acknowledgement."""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial

from aether_trio.wire.pb import aether_pb2 as pb


class MessageType(enum.IntEnum):
    """The type of a message; gateways check METRIC only, and pass on all others."""

    UNSPECIFIED = 0
    CHAT = 1
    CONTROL = 2
    TOOL_CALL = 3
    EVENT = 4
    METRIC = 5
    OPAQUE = 6


class IncomingMessage:
    """A message that this client has received.

    `raw` is the protobuf message, for the rarer fields. `topic` and `offset` name it for good: a
    repeated message has the same; on WebSocket and gRPC they are "" and 0.
    """

    __slots__ = ("_abandon", "_acknowledge", "acknowledged", "offset", "raw", "topic")

    def __init__(
        self,
        raw: pb.IncomingMessage,
        topic: str,
        offset: int,
        acknowledge: Callable[[], None],
        abandon: Callable[[], None],
    ) -> None:
        self.raw = raw
        self.topic = topic
        self.offset = offset
        self.acknowledged = False
        """Whether `ack` was called, by the program or by the loop."""
        self._acknowledge = acknowledge
        self._abandon = abandon

    @property
    def source(self) -> str:
        """The identity of the sender, which is also the topic to answer to."""
        return self.raw.source_topic

    @property
    def payload(self) -> bytes:
        """The bytes that the sender has sent."""
        return self.raw.payload

    @property
    def text(self) -> str:
        """The payload as UTF-8. Raises UnicodeDecodeError."""
        return self.raw.payload.decode()

    @property
    def type(self) -> MessageType:
        """The type that the sender gave; UNSPECIFIED for an unknown number (see `raw`)."""
        number = int(self.raw.message_type)
        return MessageType(number) if number in _KNOWN else MessageType.UNSPECIFIED

    @property
    def workspace(self) -> str:
        """The workspace the message was sent in; "" when the gateway does not say."""
        return self.raw.workspace

    def ack(self) -> None:
        """Acknowledge the message, so that it is not delivered again.

        Never waits; a second call does nothing. The gateway moves this participant's position when
        all before it in its topic is done too; on WebSocket and gRPC it has done so at the
        delivery.
        """
        if not self.acknowledged:
            self.acknowledged = True
            self._acknowledge()

    def abandon(self) -> None:
        """Note that the message's task failed: it is delivered again after a reconnect."""
        if not self.acknowledged:
            self._abandon()

    def acknowledge_through(self, call: Callable[[Callable[[], None]], None]) -> None:
        """Make `ack` run by way of `call`, for messages read in other threads."""
        self._acknowledge = partial(call, self._acknowledge)
        self._abandon = partial(call, self._abandon)

    def __repr__(self) -> str:
        what = f"{len(self.payload)} bytes of {self.type.name}"
        return f"<IncomingMessage {self.topic}/{self.offset} from {self.source}: {what}>"


_KNOWN = frozenset(int(kind) for kind in MessageType)
