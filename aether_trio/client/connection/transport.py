"""Base of a client's transports: reads, writes, pings and ends one connection.

The writer pulls: whenever the socket has taken the last write it asks `collect` for everything that
is due, so a burst becomes few writes and a slow socket bounds what is encoded. `wake` tells it to
look again.

A connection on which nothing has come for `ping_interval_s` is asked (ping); when nothing comes for
as long again, it is cut. TCP's own keepalive would find the same, after a time that others choose.
"""

from __future__ import annotations

import abc
import contextlib
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

import anyio
import anyio.abc

from aether_trio.client.connection.confirmations import Confirmations
from aether_trio.client.connection.inbox import Inbox
from aether_trio.client.connection.outgoing_messages import OutgoingMessage
from aether_trio.client.connection.send_queue import SendQueue
from aether_trio.client.errors import AetherError
from aether_trio.model.errors import Code
from aether_trio.wire.pb import aether_pb2 as pb

READ_BYTES: Final = 65536
WRITE_BYTES: Final = 262144
"""About how many bytes are collected for one write."""
ACK_DELAY_S: Final = 0.02
"""How long an acknowledgement waits for others, unless credit is missing."""
LAST_WORDS_S: Final = 0.5
"""Time for the goodbye of a client that was cancelled."""
GOODBYE_S: Final = 5.0
"""How long the gateway has to end its side, unless its GOAWAY names another time."""

NOTICES: Final = frozenset({Code.BACKPRESSURE})
"""Codes of an ErrorResponse that reports and refuses nothing."""

BROKEN: Final = (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


@dataclass(frozen=True, slots=True)
class ConnectionEnd:
    """How a connection of a client ended, and whether it may be made again.

    `error` is what the gateway said, or None for a cut or a good end. `retryable`: reconnect.
    `expected`: both sides were done, so reconnecting needs no pause.
    """

    error: AetherError | None
    retryable: bool
    expected: bool = False
    why: str = ""


class TransportClient(Protocol):
    """Protocol: what a transport calls in the client that it belongs to."""

    inbox: Inbox
    send_queue: SendQueue
    publisher: bytes
    """16 bytes that identify the client to which the numbers of publications belong."""
    program: str
    """"name/version" of the program, for the gateway's log."""

    def downstream(self, message: pb.DownstreamMessage) -> None:
        """Take a message from the gateway that is no durable delivery."""

    def awaiting(self) -> bool:
        """Return whether any sent request still waits for its answer."""

    def principal(self, ack: pb.ConnectionAck) -> pb.PrincipalRef:
        """Return the client's kind and identity, once the gateway has let it in."""


class Transport(abc.ABC):
    """One connection to a gateway, whatever its protocol."""

    def __init__(self, stream: anyio.abc.ByteStream, client: TransportClient, ping_interval_s: float | None) -> None:
        self._stream = stream
        self._client = client
        self._ping_interval_s = ping_interval_s
        self._work = anyio.Event()
        self._urgent = True
        self._soon = False
        self._control: list[bytes] = []
        """Control frames that are due."""
        self._heard = False
        self.ack: pb.ConnectionAck | None = None
        self.remembers_s = 0.0
        """How long the gateway remembers what was published, after a cut."""
        self.draining = False
        """The gateway has said that it leaves: nothing new is started here."""
        self._ended: ConnectionEnd | None = None
        self._leaving = False
        self._said_goodbye = False
        self._mid_write = False
        self._drain_by: float | None = None
        self.confirmations = Confirmations(pb.PrincipalRef())

    # -- what a transport does its own way

    @abc.abstractmethod
    def greet(self, init: pb.InitConnection) -> bytes:
        """Return the first bytes to send to the gateway."""

    @abc.abstractmethod
    def feed(self, data: bytes) -> None:
        """Decode bytes from the gateway, and handle them; set `ack` and `_ended`."""

    @abc.abstractmethod
    def collect(self) -> bytes:
        """Return all bytes that are due, as one write; b"" when there are none."""

    @abc.abstractmethod
    def ping(self) -> None:
        """Put a ping among the bytes that are due."""

    @abc.abstractmethod
    async def goodbye(self) -> None:
        """End the client's side of the stream, after everything was written."""

    def end_of_stream(self) -> None:
        """Note that the gateway has ended its side without giving a reason."""
        if self._ended is None:
            self._ended = ConnectionEnd(
                None, retryable=True, expected=self._said_goodbye, why="the gateway ended the connection"
            )

    @property
    def _owes_bytes(self) -> bool:
        """Whether a received frame must be answered at once."""
        return bool(self._control)

    # -- what all do

    async def open(self, init: pb.InitConnection) -> pb.ConnectionAck:
        """Greet the gateway, return its ConnectionAck. Raises a refusal, or stream error."""
        await self._send_first(self.greet(init))
        while self.ack is None:
            if self._ended is not None:
                raise self._ended.error or anyio.BrokenResourceError(self._ended.why)
            if (data := await self._read()) is None:
                raise anyio.BrokenResourceError("the gateway closed the connection before it accepted the client")
            self.feed(data)
        return self.ack

    async def _send_first(self, data: bytes) -> None:
        """Send the first bytes. Raises what the gateway said before it closed."""
        try:
            await self._stream.send(data)
        except BROKEN:
            with anyio.move_on_after(GOODBYE_S):
                await self._read()
            raise

    async def run(self) -> ConnectionEnd:
        """Read and write until the connection ends, and return how it ended."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._write, group.cancel_scope)
            if self._ping_interval_s is not None:
                group.start_soon(self._watch, self._ping_interval_s, group.cancel_scope)
            try:
                while self._ended is None:
                    data = await self._read()
                    if data is None:
                        self.end_of_stream()
                        break
                    self.feed(data)
                    if self._owes_bytes or self.draining or self._client.send_queue.waiting:
                        self.wake()
            except BROKEN as error:
                self._cut(str(error) or type(error).__name__)
            group.cancel_scope.cancel()
        assert self._ended is not None
        return self._ended

    def accepted(self, ack: pb.ConnectionAck) -> None:
        """Note the gateway's ConnectionAck: the client is connected."""
        self.ack = ack
        self.confirmations = Confirmations(self._client.principal(ack))

    def downstream(self, message: pb.DownstreamMessage) -> None:
        """Take an answer to a barrier request; hand any other message to the client."""
        if message.HasField("error"):
            if self._about_confirmations(message.error):
                return
        elif message.HasField("connection_status_response") and self.confirmations.answered(
            message.connection_status_response.request_id
        ):
            return
        self._client.downstream(message)

    def _about_confirmations(self, error: pb.ErrorResponse) -> bool:
        if error.request_id:
            return self.confirmations.answered(error.request_id) or self.confirmations.refused_send(error)
        return error.code not in NOTICES and self.confirmations.refused(error)

    def confirming(
        self, upstream: OutgoingMessage, data: bytes, frame: Callable[[bytes], bytes], number: int = 0
    ) -> bytes:
        """Return a message's bytes with the barrier requests that confirm it."""
        if upstream.settle is not None:
            return self.confirmations.alone(data, upstream.settle, frame, number)
        if upstream.unanswered:
            self.confirmations.plain()
        return data

    @property
    def expecting(self) -> bool:
        """Whether an answer of the gateway is still to come."""
        return self.confirmations.open or self._client.awaiting()

    def wake(self) -> None:
        """Wake the writer: there may be bytes to write."""
        self._urgent = True
        self._work.set()

    def wake_soon(self) -> None:
        """Wake the writer after a short delay, in which more bytes may be due."""
        if not self._soon:
            self._soon = True
            self._work.set()

    def leave(self) -> None:
        """Say goodbye after all that is under way is written; start nothing new."""
        self._leaving = True
        self.wake()

    async def last_words(self) -> None:
        """Send acknowledgements and a goodbye after a cancelled `run`; await no answer."""
        if self._mid_write or self._ended is not None or self._said_goodbye:
            return
        self._leaving = self._said_goodbye = True
        with anyio.move_on_after(LAST_WORDS_S, shield=True), contextlib.suppress(*BROKEN):
            await self._stream.send(self.collect())
            await self.goodbye()

    async def aclose(self) -> None:
        """Close the stream, within about a second."""
        with anyio.move_on_after(1.0, shield=True):
            with contextlib.suppress(*BROKEN, anyio.EndOfStream):
                await self._stream.aclose()
            return
        await anyio.aclose_forcefully(self._stream)

    def _cut(self, why: str) -> None:
        if self._ended is None:
            self._ended = ConnectionEnd(None, retryable=True, why=f"the connection was cut: {why}")

    async def _read(self) -> bytes | None:
        try:
            data = await self._stream.receive(READ_BYTES)
        except anyio.EndOfStream:
            return None
        self._heard = True
        return data

    async def _write(self, scope: anyio.CancelScope) -> None:
        try:
            while True:
                if self._soon and not self._urgent:
                    self._work = anyio.Event()
                    with anyio.move_on_after(ACK_DELAY_S):
                        await self._work.wait()
                self._urgent = self._soon = False
                if self._work.is_set():
                    self._work = anyio.Event()
                if data := self.collect():
                    self._urgent = len(data) >= WRITE_BYTES // 2  # there may be more of it
                    self._mid_write = True
                    await self._stream.send(data)
                    self._mid_write = False
                    continue
                if self._may_go() and not self._said_goodbye:
                    self._said_goodbye = True
                    await self.goodbye()
                    continue
                with anyio.move_on_after(self._patience_s()) as patience:
                    await self._work.wait()
                if patience.cancelled_caught:
                    self._give_up()
                    scope.cancel()
        except BROKEN as error:
            # The reader finds the ERROR that came before the cut, if there is one; a stream that is
            # only half dead ends here.
            with anyio.move_on_after(GOODBYE_S):
                await anyio.sleep_forever()
            self._cut(str(error) or type(error).__name__)
            scope.cancel()

    def _may_go(self) -> bool:
        if self._leaving:
            return True
        return self.draining and not self._client.send_queue.written_unsettled and not self.expecting

    def _patience_s(self) -> float | None:
        if self._said_goodbye:
            return GOODBYE_S
        if self._drain_by is not None:
            return max(self._drain_by - anyio.current_time(), 0.0)
        return None

    def _give_up(self) -> None:
        if self._said_goodbye:
            if self._ended is None:
                self._ended = ConnectionEnd(None, retryable=True, expected=True, why="the gateway did not end its side")
        else:
            self._cut("the gateway was leaving, and did not answer in the time it gave")

    async def _watch(self, interval_s: float, scope: anyio.CancelScope) -> None:
        while True:
            self._heard = False
            await anyio.sleep(interval_s)
            if self._heard:
                continue
            self.ping()
            self.wake()
            await anyio.sleep(interval_s)
            if not self._heard:
                self._cut(f"the gateway sent nothing for {2 * interval_s:g} s")
                scope.cancel()


def tune(stream: anyio.abc.SocketStream) -> None:
    """Turn on TCP_NODELAY and SO_KEEPALIVE on a client's socket."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 - anyio's, not Django's
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
