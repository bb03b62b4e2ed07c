"""A stream with one waiting reader and one waiting sender, the same on both sides of a connection.

Both park their task and are rescheduled by the connection: the reader when a read brought messages, once however many;
the sender when the kernel has everything. Every coroutine here is a checkpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from grpclib.exceptions import ProtocolError

from aether_trio.model.errors import Status, StatusError
from aether_trio.transport.grpc.messages import Packed, too_large_to_open
from aether_trio.transport.http2.data_stream import MESSAGES_AT_ONCE
from aether_trio.transport.http2.pumped import PumpedStream
from aether_trio.transport.link import LinkBroken

if TYPE_CHECKING:
    from aether_trio.transport.http2.connection import Connection


class DuplexStream(PumpedStream):
    """Receiving batches and waiting for what was sent."""

    __slots__ = ("_reader", "_sender", "broken_reason", "finished")

    def __init__(self, stream_id: int) -> None:
        super().__init__(stream_id)
        self.broken_reason: str | None = None
        self.finished = False
        """We have sent the last that we shall send, or the stream broke."""
        self._reader: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None

    @property
    def _wire(self) -> Connection:
        raise NotImplementedError

    # Receiving -----------------------------------------------------------------------------------------------------

    @property
    def _has_news(self) -> bool:
        return bool(self.inbox) or self.ended or self.failure is not None or self.broken_reason is not None

    async def receive_batch(self) -> list[bytes]:
        """Messages that have arrived, at least one, MESSAGES_AT_ONCE at most; [] once the peer has ended its side.

        Raises StatusError for what cannot be accepted (after the messages before it) and LinkBroken for a cut stream.
        """
        await self._wait_for_news()
        if self.inbox:
            return await self._unpack() if self.packed else self._take()
        self._raise_what_happened()
        return []

    async def receive_one(self) -> bytes | None:
        """The next message, None at the end. The others stay unread and hold the window shut."""
        await self._wait_for_news()
        if not self.inbox:
            self._raise_what_happened()
            return None
        if isinstance(self.inbox[0], Packed):
            return await self._inflate()
        message = self.inbox.pop(0)
        if not self.inbox:
            self._take()
        return message

    async def _unpack(self) -> list[bytes]:
        """The messages in front of a compressed one, or that one alone; the others stay unread and hold the window shut."""
        inbox = self.inbox
        count = next(index for index, message in enumerate(inbox) if isinstance(message, Packed))
        count = min(count, MESSAGES_AT_ONCE)
        if not count:
            return [await self._inflate()]
        batch = inbox[:count]
        del inbox[:count]
        return batch

    async def _inflate(self) -> bytes:
        """The first message, which is compressed. Raises StatusError; then nothing more is read."""
        largest = self.largest
        try:
            message = await self._wire.inflater.inflate(self.inbox[0], self.encoding, largest)
        except StatusError as failure:
            error = failure
            if error.status is Status.RESOURCE_EXHAUSTED and largest < self._wire.limits.max_receive_message_bytes:
                error = too_large_to_open(largest + 1, largest)
            self.inbox.clear()
            self.packed = 0
            self._wire.plane.fail(self, error)
            raise error from None
        self.inbox.pop(0)
        self.packed -= 1
        if not self.inbox:
            self._take()
        return message

    def _take(self) -> list[bytes]:
        wire = self._wire
        waited = len(wire.plane.out)
        batch = wire.plane.take(self)
        if len(wire.plane.out) > waited:
            wire.pump()  # the peer may be waiting for this room; what waited before has a reason (Connection.received)
        return batch

    def _raise_what_happened(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.broken_reason is not None:
            raise LinkBroken(self.broken_reason)

    async def _wait_for_news(self) -> None:
        if self._has_news:
            await trio.lowlevel.checkpoint()
            return
        if self._reader is not None:
            raise trio.BusyResourceError("another task is already receiving from this stream")
        if self.partial_need > self.largest:
            self._wire.plane.check_rest(self)
            if self.failure is not None:
                await trio.lowlevel.checkpoint()
                return
        self.reading = True
        if self.unread:
            # Parts of a message that must be read before the rest can come.
            self._take()
        self._reader = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_reading)

    def _stop_reading(self, _: object) -> trio.lowlevel.Abort:
        self._reader = None
        self.reading = False
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        reader = self._reader
        if reader is not None and self._has_news:
            self._reader = None
            self.reading = False
            trio.lowlevel.reschedule(reader)

    # Sending -------------------------------------------------------------------------------------------------------

    async def _send_and_wait(self, batch: list[bytes]) -> None:
        wire = self._wire
        wire.dirty[self] = None
        if wire.stalled:
            # Framed now it would be memory that a peer which does not read makes us hold, for as many streams as it has.
            wire.plane.hold(self, batch)
            wire.kick(self)
        else:
            wire.plane.send(self, batch)
            wire.pump()
        await self.wait_drained()

    @property
    def drains(self) -> bool:
        """Something that was given is not with the kernel yet."""
        return self in self._wire.dirty

    async def wait_drained(self) -> None:
        """Until everything given so far is with the kernel. Raises LinkBroken."""
        if self.drains:
            if self._sender is not None:
                raise trio.BusyResourceError("another task is already sending on this stream")
            self._sender = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._stop_sending)
        else:
            await trio.lowlevel.checkpoint()
        self.check_sendable()

    def check_sendable(self) -> None:
        """Raises LinkBroken when the stream was cut, ProtocolError when we have ended it ourselves."""
        if self.broken_reason is not None:
            raise LinkBroken(self.broken_reason)
        if self.finished:
            raise ProtocolError("the stream has ended already")

    def _stop_sending(self, _: object) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def drained(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            trio.lowlevel.reschedule(sender)

    # Ending --------------------------------------------------------------------------------------------------------

    def broken(self, reason: str) -> None:
        """The peer reset the stream, or the connection has ended: reader and sender are told."""
        if self.broken_reason is None:
            self.broken_reason = reason
            self.finished = True
            self.wake()
            DuplexStream.drained(self)
