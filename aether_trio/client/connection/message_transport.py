"""Client side of WebSocket and gRPC: both carry whole protobuf messages.

These two have no acknowledgements and no offsets. So a publication is confirmed by a barrier behind
it (confirmations.py), and a message counts as done when the gateway has sent it. Two extensions do
what the framing has frames for: a refusal says which send it was, and deliveries have credit.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import anyio
import anyio.abc

from aether_trio.client.connection.outgoing_messages import OutgoingMessage, Publication
from aether_trio.client.connection.transport import WRITE_BYTES, ConnectionEnd, Transport, TransportClient
from aether_trio.client.errors import AetherError, ConnectionLost, ProtocolViolation
from aether_trio.client.options import DELIVERY_CREDIT, NUMBERED_SENDS
from aether_trio.wire.pb import aether_pb2 as pb

MAX_RECEIVED_BYTES: Final = 8 * 1024 * 1024
"""The longest message that is accepted. The gateway sends less than 4 MiB."""
_SHARED: Final = 256
"""Publications whose caller does not wait share a barrier, at most this many."""


@dataclass(frozen=True, slots=True)
class ProtocolBreak:
    """A transport rule that the gateway broke; `code` is a CloseReason or the codec's."""

    code: str
    why: str


class MessageCodec(abc.ABC):
    """Base of the codecs, which turn messages into bytes and back, without I/O."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []

    @property
    def has_pending(self) -> bool:
        """Whether control bytes are due: `pending` would not be empty."""
        return bool(self._pending)

    def pending(self) -> bytes:
        """Take the control bytes that are due, such as pings and close frames."""
        pending, self._pending = self._pending, []
        return b"".join(pending)

    @property
    def refusal(self) -> AetherError | None:
        """Why the gateway did not open the stream, as far as it has said so."""
        return None

    @abc.abstractmethod
    def greeting(self) -> bytes:
        """Return the first bytes of the connection, which ask to open a message stream."""

    @property
    @abc.abstractmethod
    def can_send(self) -> bool:
        """Whether a message may be sent now: the stream is open, and has room."""

    @abc.abstractmethod
    def receive(self, data: bytes) -> Sequence[bytes | ProtocolBreak | ConnectionEnd]:
        """Decode bytes from the gateway: whole messages, a broken rule, or the end."""

    @abc.abstractmethod
    def frame(self, message: bytes) -> bytes:
        """Return the bytes that carry a message. Raises PayloadTooLarge."""

    @abc.abstractmethod
    def ping(self) -> None:
        """Add a ping to the bytes that are due."""

    @abc.abstractmethod
    def break_off(self, violation: ProtocolBreak) -> None:
        """Add bytes that tell the gateway which rule it broke, to those due."""

    @abc.abstractmethod
    def goodbye(self) -> bytes:
        """Return the last bytes; the gateway then ends its side of the stream."""


class MessageTransport(Transport):
    """A client's connection over WebSocket or gRPC, by way of a codec."""

    def __init__(
        self, stream: anyio.abc.ByteStream, client: TransportClient, ping_interval_s: float | None, codec: MessageCodec
    ) -> None:
        super().__init__(stream, client, ping_interval_s)
        self._codec = codec
        self._sent = 0
        """SendMessages of this connection. The gateway counts them too."""
        self._credit_messages = self._credit_bytes = 0
        """What the gateway may still deliver."""

    def greet(self, init: pb.InitConnection) -> bytes:
        messages, size = self._credit_messages, self._credit_bytes = self._client.inbox.hello_credit()
        for uri, version in ((NUMBERED_SENDS, ""), (DELIVERY_CREDIT, f"{messages}/{size}")):
            init.extensions.append(pb.ExtensionDeclaration(uri=uri, version=version, required=True))
        return self._codec.greeting()

    async def open(self, init: pb.InitConnection) -> pb.ConnectionAck:
        await self._send_first(self.greet(init))
        said = False
        while self.ack is None:
            if self._codec.can_send and not said:
                said = True
                await self._stream.send(self._codec.frame(pb.UpstreamMessage(init=init).SerializeToString()))
            if pending := self._codec.pending():
                await self._stream.send(pending)
            if self._ended is not None:
                raise self._ended.error or anyio.BrokenResourceError(self._ended.why)
            if (data := await self._read()) is None:
                why = "the gateway closed the connection before it accepted the client"
                raise self._codec.refusal or anyio.BrokenResourceError(why)
            self.feed(data)
        return self.ack

    def feed(self, data: bytes) -> None:
        for found in self._codec.receive(data):
            match found:
                case bytes():
                    self._message(found)
                case ProtocolBreak():
                    self._break_off(found)
                case ConnectionEnd():
                    if self._ended is None:
                        self._ended = replace(found, expected=found.expected and self._said_goodbye)

    def _message(self, data: bytes) -> None:
        try:
            message = pb.DownstreamMessage.FromString(data)
        except Exception:  # protobuf's DecodeError is of another module in each implementation
            self._break_off(
                ProtocolBreak("INVALID_FRAME_PAYLOAD_DATA", "the gateway sent bytes that are no DownstreamMessage")
            )
            return
        if message.HasField("msg"):
            if self._credit_messages <= 0 or self._credit_bytes <= 0:
                self._break_off(ProtocolBreak("PROTOCOL_ERROR", "the gateway delivered more than it had credit for"))
                return
            self._credit_messages -= 1
            self._credit_bytes -= len(data)
            self._client.inbox.deliver_plain(message.msg, len(data))
        elif self.ack is None and message.HasField("connection_ack"):
            self.accepted(message.connection_ack)
        else:
            self.downstream(message)

    def _break_off(self, violation: ProtocolBreak) -> None:
        if self._ended is None:
            error = ProtocolViolation(violation.code, violation.why)
            self._ended = ConnectionEnd(error, retryable=self.ack is not None)
            self._codec.break_off(violation)

    @property
    def _owes_bytes(self) -> bool:
        return self._codec.has_pending

    def collect(self) -> bytes:
        codec = self._codec
        parts = [codec.pending()]
        if codec.can_send:
            grant = self._client.inbox.grant_due(self._credit_messages, self._credit_bytes)
            if grant is not None:
                parts.append(self._grant(*grant))
            parts += self._client.send_queue.pull(self, WRITE_BYTES, starting=not (self._leaving or self.draining))
            if self.confirmations.shared:
                parts.append(self.confirmations.guard(codec.frame))
        return b"".join(parts)

    def _grant(self, messages: int, size: int) -> bytes:
        self._credit_messages += messages
        self._credit_bytes += size
        granted = pb.UpstreamMessage(active_extensions=[f"{DELIVERY_CREDIT}:{messages}:{size}"])
        return self._codec.frame(granted.SerializeToString())

    def encode_publication(self, publication: Publication) -> bytes | None:
        message = pb.SendMessage.FromString(publication.extra) if publication.extra else pb.SendMessage()
        message.target_topic = publication.topic
        message.payload = publication.payload
        message.message_type = pb.MessageType.ValueType(publication.message_type)
        frame = self._codec.frame(pb.UpstreamMessage(send=message).SerializeToString())
        self._sent += 1

        def settle(error: AetherError | None) -> None:
            if not isinstance(error, ConnectionLost):  # the send queue decides what is in doubt
                self._client.send_queue.settle(publication, error)

        if publication.confirm:
            return self.confirmations.alone(frame, settle, self._codec.frame, self._sent)
        self.confirmations.together(settle, self._sent)
        if self.confirmations.shared >= _SHARED:
            frame += self.confirmations.guard(self._codec.frame)
        return frame

    def encode_upstream(self, upstream: OutgoingMessage) -> bytes:
        frame = self._codec.frame(upstream.data)
        number = 0
        if upstream.unanswered and pb.UpstreamMessage.FromString(upstream.data).HasField("send"):
            number = self._sent = self._sent + 1
        return self.confirming(upstream, frame, self._codec.frame, number)

    def ping(self) -> None:
        self._codec.ping()

    async def goodbye(self) -> None:
        if words := self._codec.goodbye():
            await self._stream.send(words)
