"""Client side of the binary framing transport (docs/wire.md)."""

from __future__ import annotations

from typing import Final

import anyio
import anyio.abc
from anyio.streams.tls import TLSStream

from aether_trio.client.connection.outgoing_messages import OutgoingMessage, Publication
from aether_trio.client.connection.transport import GOODBYE_S, WRITE_BYTES, ConnectionEnd, Transport, TransportClient
from aether_trio.client.errors import (
    AetherError,
    InvalidArgument,
    PayloadTooLarge,
    ProtocolViolation,
    from_response,
    from_status,
)
from aether_trio.wire import framing
from aether_trio.wire.framing import ConnectionState, FramedConnection, Side
from aether_trio.wire.pb import aether_pb2 as pb

_CUT: Final = frozenset({framing.ErrorCode.TRUNCATED, framing.ErrorCode.TIMEOUT})
"""Errors that the gateway reports when the client's bytes did not arrive: a cut."""
_HEARING: Final = frozenset({ConnectionState.LIVE, ConnectionState.LEAVING})


class FramedTransport(Transport):
    """A client's connection in the binary framing."""

    def __init__(self, stream: anyio.abc.ByteStream, client: TransportClient, ping_interval_s: float | None) -> None:
        super().__init__(stream, client, ping_interval_s)
        self._connection = FramedConnection(Side.CLIENT)
        self._pings = 0
        self._last_ping: int | None = None
        """The PING whose PONG says that all was read: TLS cannot end one side alone."""

    def greet(self, init: pb.InitConnection) -> bytes:
        messages, size = self._client.inbox.hello_credit()
        hello = framing.ClientHello(
            agent=self._client.program[:256],
            credit_messages=messages,
            credit_bytes=size,
            publisher=self._client.publisher,
        )
        connection = self._connection
        greeting = connection.send(hello)
        message = pb.UpstreamMessage(init=init).SerializeToString()
        return greeting + connection.send(framing.Envelope(message))

    def feed(self, data: bytes) -> None:
        try:
            found = self._connection.receive(data)
        except framing.RemoteProtocolError as error:
            for event in error.events:
                self._event(event)
            self._violation(error)
            return
        for event in found:
            self._event(event)

    def _violation(self, error: framing.RemoteProtocolError) -> None:
        if self._ended is None:
            hint = ""
            if error.code is framing.ErrorCode.BAD_PREFACE:
                hint = "; is this the port of a gateway that speaks the framing (aether://), and TLS as expected?"
            self._ended = ConnectionEnd(
                ProtocolViolation(error.code.name, f"the gateway sent what it may not: {error.message}{hint}"),
                # What is no gateway stays none; one that has made a mistake may do better with a
                # fresh connection.
                retryable=self.ack is not None,
            )

    def end_of_stream(self) -> None:
        if self._ended is None:
            try:
                self._connection.receive_end()
            except framing.RemoteProtocolError:
                self._cut("inside of a frame")
        super().end_of_stream()

    def _event(self, event: framing.Event) -> None:
        client = self._client
        match event:
            case framing.Deliver():
                client.inbox.deliver(event.channel, event.offset, event.message)
            case framing.Ack():
                client.send_queue.ack(event.seq)
            case framing.Envelope():
                self._envelope(event.message)
            case framing.Nack():
                client.send_queue.nack(event.seq, from_response(event))
            case framing.Channel():
                client.inbox.open_channel(event)
            case framing.ChannelClosed():
                client.inbox.close_channel(event.channel)
            case framing.Ping():
                self._control.append(self._connection.send(framing.Pong(event.number)))
            case framing.Pong():
                if self._last_ping is not None and event.number >= self._last_ping and self._ended is None:
                    self._ended = ConnectionEnd(None, retryable=True, expected=True, why="both sides have ended")
            case framing.ServerHello():
                self.remembers_s = float(event.dedup_s)
                client.inbox.reads(event.log)
            case framing.GoAway():
                self.draining = True
                self._drain_by = anyio.current_time() + (event.within_ms / 1000 or GOODBYE_S)
            case framing.Error():
                after_ms = event.retry_after_ms
                error = from_status(event.code, event.message, retryable=event.retryable, retry_after_ms=after_ms)
                self._ended = ConnectionEnd(error, retryable=event.retryable or event.code in _CUT)
            case _:
                pass

    def _envelope(self, data: bytes) -> None:
        try:
            message = pb.DownstreamMessage.FromString(data)
        except Exception:  # protobuf's DecodeError is of another module in each implementation
            if self._ended is None:
                text = "the gateway sent an envelope that is no DownstreamMessage"
                self._ended = ConnectionEnd(ProtocolViolation("MALFORMED", text), retryable=self.ack is not None)
            return
        if self.ack is None and message.HasField("connection_ack"):
            self.accepted(message.connection_ack)
        else:
            self.downstream(message)

    def collect(self) -> bytes:
        connection = self._connection
        if connection.state not in _HEARING:
            return b""
        frames, self._control = self._control, []
        if connection.state is ConnectionState.LIVE:
            frames += self._client.inbox.frames(connection)
            starting = connection.peer_state is ConnectionState.LIVE and not (self._leaving or self.draining)
            frames += self._client.send_queue.pull(self, WRITE_BYTES, starting=starting)
        return b"".join(frames)

    def encode_publication(self, publication: Publication) -> bytes | None:
        sequence = self._connection.sequence
        if sequence.last and publication.seq - sequence.acked > sequence.window:
            return None
        one = publication
        try:
            return self._connection.send(framing.Send(one.seq, one.topic, one.payload, one.message_type, one.extra))
        except framing.LocalProtocolError as error:
            raise _refusal(error) from error

    def encode_upstream(self, upstream: OutgoingMessage) -> bytes:
        try:
            return self.confirming(upstream, self._frame(upstream.data), self._frame)
        except framing.LocalProtocolError as error:
            raise _refusal(error) from error

    def _frame(self, message: bytes) -> bytes:
        return self._connection.send(framing.Envelope(message))

    def ping(self) -> None:
        if self._connection.state in _HEARING:
            self._pings += 1
            self._control.append(self._connection.send(framing.Ping(self._pings)))

    async def goodbye(self) -> None:
        """Send GOAWAY and half-close the stream; over TLS, send a PING in its place."""
        connection = self._connection
        if connection.state is not ConnectionState.LIVE:
            return
        words = connection.send(framing.GoAway(framing.GoAwayReason.LEAVING))
        if isinstance(self._stream, TLSStream):
            self._pings += 1
            self._last_ping = self._pings
            words += connection.send(framing.Ping(self._pings))
            await self._stream.send(words)
            return
        await self._stream.send(words)
        connection.end()
        await self._stream.send_eof()


def _refusal(error: framing.LocalProtocolError) -> AetherError:
    if error.code is framing.ErrorCode.FRAME_TOO_LARGE:
        return PayloadTooLarge(error.code.name, error.message)
    return InvalidArgument(error.code.name, error.message)
