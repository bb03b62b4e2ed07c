"""The writing half of a framed connection. No task: whoever has news calls `pump`, and that sends.

`pump` asks the session's outbox for what it has, in the order that the protocol wants, joins it into one buffer and hands
that to the kernel: receipts of sends, then answers, then deliveries within the client's credit, then progress. Only when
the kernel takes less than everything a writer task starts; it waits for room, finishes, pumps on, and ends.

Invariants: bytes go out in the order produced; nothing is pulled while a backlog exists, so it is bounded by one burst and
one message; nothing here blocks but `finish`; a call from inside a call leaves the work to the outer one. `pump` is called
by the tasks of others and raises nothing: a defect ends this connection (model/containment.py).
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

from aether_trio.model.containment import report
from aether_trio.transport.link import FrameSource
from aether_trio.wire import framing
from aether_trio.wire.framing import deliver_header, encode_ack, encode_channel, encode_channel_closed
from aether_trio.wire.framing.ledger import OpenChannel

if TYPE_CHECKING:
    from aether_trio.delivery.outbox import Origin
    from aether_trio.transport.framed.statistics import Counters
    from aether_trio.transport.socket.accepted import Accepted

BURST_BYTES: Final = 64 * 1024
"""Pulled for one send."""
BURSTS_PER_PUMP: Final = 4
"""Then the others have a turn: the writer task goes on."""
CHANNELS_BEFORE_SWEEP: Final = 16
"""A participant has fewer open. Until then topics that it has left stay open, so that DELIVEREDs on their way count."""


class Output:
    """See the module docstring. `connection` is the codec, whose reading half is the link's."""

    __slots__ = (
        "_accepted",
        "_backlog",
        "_channels",
        "_counters",
        "_drained",
        "_due",
        "_failed",
        "_finished",
        "_finishing",
        "_last",
        "_next_channel",
        "_nursery",
        "_origins",
        "_pumping",
        "_raw",
        "_source",
        "_writing",
        "connection",
        "deliveries",
        "is_broken",
        "pong",
        "stalled_since",
    )

    def __init__(
        self, accepted: Accepted, connection: framing.Connection, nursery: trio.Nursery, counters: Counters
    ) -> None:
        self._accepted = accepted
        self.connection = connection
        self._nursery = nursery
        self._counters = counters
        self._source: FrameSource | None = None
        self._raw: list[bytes] = []
        self._backlog: memoryview | None = None
        self._channels: dict[Origin, tuple[int, OpenChannel]] = {}
        self._origins: dict[int, Origin] = {}
        self._next_channel = 0
        self._pumping = self._writing = self._due = False
        self._finishing = self._finished = self._failed = False
        self._last: framing.Error | None = None
        self._drained: trio.Event | None = None
        self.pong: int | None = None
        """Of the last PING that was not answered yet."""
        self.deliveries = 0
        self.is_broken = False
        self.stalled_since: float | None = None

    # -- what the link says ---------------------------------------------------------------------------------------

    def attach(self, source: FrameSource) -> None:
        """See Link."""
        if self._source is not None:
            raise RuntimeError("a link has one source; attach it once")
        self._source = source
        if self.is_broken:
            source.cut()

    def put(self, event: framing.Event) -> None:
        """Queue a frame that is no part of the session. Sent by the next pump."""
        self._raw.append(self.connection.send(event))

    def say_goaway(self, event: framing.GoAway) -> None:
        """Ask the client to leave, if it has been let in and was not asked before."""
        if self.connection.state is framing.State.LIVE and not self._finishing and not self.is_broken:
            self.put(event)
            self.pump()

    def acknowledged(self, number: int, offset: int) -> None:
        """The client is done with a delivery; the codec has checked that it was delivered."""
        origin = self._origins.get(number)
        if origin is not None and self._source is not None:
            self._source.acknowledged(origin, offset)

    def look_again(self) -> None:
        """There is credit that was not there before."""
        self._due = True

    def pump_if_due(self) -> None:
        """Send what reading has brought up."""
        if self._due or self.pong is not None:
            self._due = False
            self.pump()

    def broken(self) -> None:
        """The stream is cut."""
        if not self.is_broken:
            self.is_broken = True
            self._backlog = None
            self._raw.clear()
            if self._source is not None:
                self._source.cut()
        self._tell_drained()

    def cut(self) -> None:
        """Break the stream from our side: whoever waits for its socket is woken."""
        self.broken()
        try:
            self._accepted.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster

    # -- sending --------------------------------------------------------------------------------------------------

    def pump(self) -> None:
        """Send what there is. Never blocks, raises nothing."""
        if self._pumping or self._writing or self.is_broken:
            return
        self._pumping = True
        failure: Exception
        try:
            for _ in range(BURSTS_PER_PUMP):
                parts = self._collect()
                if not parts:
                    self._tell_drained()
                    return
                if not self._send(b"".join(parts)):
                    return
                source = self._source
                if source is not None:
                    source.flushed()
                    if not (source.control_bytes or source.delivery_bytes or source.ephemeral_bytes or self._finishing):
                        return
            self._start_writer()
            return
        except Exception as error:
            failure = error
        finally:
            self._pumping = False
        self._fail(failure)

    def _fail(self, error: Exception) -> None:
        """A defect of the gateway: the session ends and its client is told; without one, or at the second time, cut."""
        if self._source is not None and not self._failed:
            self._failed = True
            self._source.failed(error)
        else:
            report(error, f"framed from {self._accepted.peer_address}")
            self.cut()

    def _collect(self) -> list[bytes]:
        parts, self._raw = self._raw, []
        source = self._source
        if source is not None and not self._finished and not self._failed:
            self._collect_from(source, parts)
        if not parts and self._finishing and not self._finished:
            self._finished = True
            if self._last is not None:
                parts.append(self.connection.send(self._last))
        return parts

    def _collect_from(self, source: FrameSource, parts: list[bytes]) -> None:
        send = self.connection.send
        if self.pong is not None:
            parts.append(send(framing.Pong(self.pong)))
            self.pong = None
        if source.receipts is not None:
            self._add_receipts(source, parts)
        if source.control_bytes:
            parts += [send(framing.Envelope(message)) for message in source.pull_control(BURST_BYTES)]
        if source.delivery_bytes and self.connection.deliverable:
            self._add_deliveries(source, parts)
        if source.ephemeral_bytes:
            parts += [send(framing.Envelope(message)) for message in source.pull_ephemeral(BURST_BYTES)]

    def _add_receipts(self, source: FrameSource, parts: list[bytes]) -> None:
        assert source.receipts is not None
        refused, acked = source.receipts.take()
        for seq, error in refused:
            nack = framing.Nack(seq, error.code, error.message, error.retryable, error.retry_after_ms)
            parts.append(self.connection.send(nack))
        if acked:
            self.connection.sequence.ack(acked)
            parts.append(encode_ack(acked))

    def _add_deliveries(self, source: FrameSource, parts: list[bytes]) -> None:
        connection = self.connection
        credit = connection.credit
        channels = self._channels
        bounded = credit.bounded
        max_messages = credit.message_count
        max_bytes = BURST_BYTES
        if bounded and credit.byte_count is not None:
            max_bytes = min(max_bytes, credit.byte_count)
        deliveries = source.pull_deliveries(max_bytes, max_messages, flush_is_done=not connection.delivery_acks)
        for message, origin, offset in deliveries:
            found = channels.get(origin)
            if found is None:
                if not origin.is_open:
                    continue  # it was given up while this waited: its topic may have a channel of a successor
                found = self._open(origin, parts)
            number, channel = found
            size = len(message)
            parts.append(deliver_header(number, offset, size))
            parts.append(message)
            # The codec's own bookkeeping (Connection.count_deliver), without its checks of what cannot be otherwise here.
            channel.position = max(channel.position, offset)
            if bounded:
                credit.take(size)
        self.deliveries += len(deliveries)

    def _open(self, origin: Origin, parts: list[bytes]) -> tuple[int, OpenChannel]:
        channels, ledger = self._channels, self.connection.channels
        many = len(channels) >= CHANNELS_BEFORE_SWEEP
        for old in [one for one in channels if not one.is_open and (many or one.topic == origin.topic)]:
            number, _ = channels.pop(old)
            del self._origins[number]
            ledger.close(number)
            parts.append(encode_channel_closed(number))
        # Never one that was used: a DELIVERED for the old topic may be on its way.
        number = self._next_channel
        self._next_channel += 1
        position = origin.position_done
        ledger.open(number, origin.topic, position, shared=origin.shared)
        parts.append(encode_channel(number, origin.topic, position, shared=origin.shared))
        channel = ledger.get(number)
        assert channel is not None
        found = channels[origin] = (number, channel)
        self._origins[number] = origin
        return found

    def _send(self, data: bytes) -> bool:
        """Give it to the kernel. False when that did not take everything, or the stream is broken."""
        tls = self._accepted.tls
        try:
            if tls is not None:
                data = tls.seal(data)
            sent = self._accepted.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.broken()
            return False
        self._counters.bytes_sent += sent
        if sent == len(data):
            return True
        self._backlog = memoryview(data)[sent:]
        if self.stalled_since is None:
            self.stalled_since = trio.current_time()
        self._start_writer()
        return False

    def _start_writer(self) -> None:
        self._writing = True
        self._nursery.start_soon(self._write, name="framed-writer")

    async def _write(self) -> None:
        sock = self._accepted.sock
        try:
            while self._backlog and not self.is_broken:
                await trio.lowlevel.wait_writable(sock)
                try:
                    sent = sock.send(self._backlog)
                except BlockingIOError:
                    continue
                self._counters.bytes_sent += sent
                self.stalled_since = trio.current_time()
                self._backlog = self._backlog[sent:]
            self._backlog = None
            await trio.lowlevel.checkpoint()
            if self._source is not None and not self.is_broken:
                self._source.flushed()
        except (OSError, trio.ClosedResourceError):
            self.broken()
        except Exception as error:
            self._backlog = None
            self._fail(error)
        finally:
            self._writing = False
            self.stalled_since = None
        self.pump()

    # -- ending ---------------------------------------------------------------------------------------------------

    def _tell_drained(self) -> None:
        if self._drained is not None and (self.is_broken or not self._writing):
            self._drained.set()

    async def finish(self, last: framing.Error | None) -> None:
        """Send what there is and then `last`, and wait until the kernel has it all. Nothing is pulled behind that."""
        self._last = last
        self._finishing = True
        self.pump()
        if self._writing and not self.is_broken:
            self._drained = trio.Event()
            await self._drained.wait()
        else:
            await trio.lowlevel.checkpoint()

    def forget(self) -> None:
        """The connection is over: refer to nobody, and let a writer end."""
        if self._writing:
            trio.lowlevel.notify_closing(self._accepted.sock)
        self._source = None
        self._channels = {}
        self._origins = {}
