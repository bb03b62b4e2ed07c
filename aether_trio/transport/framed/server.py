"""The gateway's server for framed (binary protocol) connections: HELLO and drain.

Invariants: one task per connection, the caller's; writers live in `nursery` only while their socket
is full; the answer to HELLO waits for the answer to an `init` that came with it: one write.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from aether_trio.concurrency.events import RepeatedEvent
from aether_trio.model.errors import Status
from aether_trio.transport.framed.limits import FramedLimits
from aether_trio.transport.framed.link import FRAMES_AT_ONCE, FramedLink
from aether_trio.transport.framed.output import FramedOutput
from aether_trio.transport.framed.statistics import FramedCounters, FramedStatistics
from aether_trio.transport.link import Link, LinkBroken, Peer
from aether_trio.transport.socket.accepted import Accepted, notice_s
from aether_trio.transport.socket.unfinished_input import UnfinishedInput
from aether_trio.wire import framing
from aether_trio.wire.framing import ErrorCode, GoAwayReason, LocalProtocolError
from aether_trio.wire.framing.constants import MAX_UINT32


class FramedServer:
    """Serves all framed (binary protocol) connections of a gateway."""

    def __init__(
        self,
        serve: Callable[[Link], Awaitable[None]],
        limits: FramedLimits,
        nursery: trio.Nursery,
        *,
        agent: str = "aether-trio",
        log: bytes = b"",
        unfinished: UnfinishedInput | None = None,
    ) -> None:
        self._serve = serve
        self._limits = limits
        self._nursery = nursery
        self._counters = FramedCounters()
        self._unfinished = unfinished or UnfinishedInput()
        self._outputs: set[FramedOutput] = set()
        self._greeting: set[trio.CancelScope] = set()
        """Of those that wait for a HELLO."""
        self._draining = False
        self._gone = RepeatedEvent()
        self._hello = framing.ServerHello(
            max_frame=limits.max_frame_bytes,
            max_payload=limits.payload_bytes,
            publish_window=limits.publish_window,
            dedup_s=limits.dedup_s,
            agent=agent,
            log=log,
        )

    def statistics(self) -> FramedStatistics:
        return self._counters.snapshot()

    async def serve(self, accepted: Accepted) -> None:
        """Exchange HELLOs on one connection, then serve its session to the end."""
        counters = self._counters
        counters.connections_open += 1
        counters.connections_total += 1
        connection = framing.FramedConnection(
            framing.Side.SERVER, max_frame_bytes=self._limits.max_frame_bytes, at_once=FRAMES_AT_ONCE
        )
        output = FramedOutput(accepted, connection, self._nursery, counters)
        self._outputs.add(output)
        link = FramedLink(accepted, output, self._limits, counters, self._unfinished.account(accepted.address))
        try:
            if await self._greet(accepted, output, link):
                await self._serve(link)
        except LinkBroken as error:
            error.__traceback__ = None
        finally:
            counters.connections_open -= 1
            self._outputs.discard(output)
            output.release()
            link.release()
            if not self._outputs:
                self._gone.set()

    async def _greet(self, accepted: Accepted, output: FramedOutput, reader: FramedLink) -> bool:
        """Read the client's HELLO and answer it; False if none came. Raises LinkBroken."""
        head, accepted.head = accepted.head, b""  # not kept for as long as the connection lasts
        events: Sequence[framing.Event] = reader.decode(head) if head else reader.read_now()
        if not events and reader.waits_for_hello:
            events = await self._wait_for_hello(reader)
        if not events and reader.waits_for_hello:
            if self._draining:
                await reader.close(Status.UNAVAILABLE, "the gateway is shutting down; connect again")
                return False
            reader.fail(ErrorCode.TIMEOUT, f"no HELLO within {self._limits.handshake_timeout_s:g} seconds")
        if not events or not isinstance(events[0], framing.ClientHello):
            await reader.close(Status.INVALID_ARGUMENT, "no HELLO")
            return False
        if not reader.waits_for_hello:
            # Behind the HELLO is a mistake. The codec takes that for the client's end, before it
            # was let in.
            await reader.close(Status.INVALID_ARGUMENT, "a mistake behind the HELLO")
            return False
        hello = events[0]
        try:
            output.put(_answer(self._hello, hello))
        except LocalProtocolError:
            # What came behind the HELLO was a mistake already; the session is told by its first
            # read.
            await reader.close(Status.INVALID_ARGUMENT, "a mistake in the first frames")
            return False
        if not any(isinstance(event, framing.Envelope) for event in events):
            output.writer.kick()  # else it leaves with the answer to that
        reader.peer = Peer(
            accepted.peer_address,
            "framed",
            accepted.certificate,
            {"user-agent": hello.agent} if hello.agent else {},
            hello.publisher if self._limits.dedup_s else None,
        )
        reader.put_back(events[1:])
        return True

    async def _wait_for_hello(self, reader: FramedLink) -> Sequence[framing.Event]:
        """Return the client's first frames; none if it is too slow or the gateway drains."""
        events: Sequence[framing.Event] = ()
        with trio.move_on_after(self._limits.handshake_timeout_s) as waiting:
            self._greeting.add(waiting)
            if self._draining:
                waiting.cancel()
            try:
                while not events and reader.waits_for_hello:
                    events = await reader.read()
            finally:
                self._greeting.discard(waiting)
        return events

    async def drain(self, deadline_s: float, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send framed clients GOAWAY and wait for their end; cut those without a HELLO."""
        self._draining = True
        for waiting in self._greeting:
            waiting.cancel()
        within_ms = min(round(notice_s(deadline_s) * 1000), MAX_UINT32)
        for count, output in enumerate(list(self._outputs)):
            output.send_goaway(framing.GoAway(GoAwayReason.DRAINING, within_ms, "the gateway is shutting down"))
            if count % 64 == 63:
                await trio.lowlevel.checkpoint()
        task_status.started()
        with trio.move_on_after(deadline_s):
            while self._outputs:
                await self._gone.wait()
        for output in list(self._outputs):
            output.writer.abort()
        await trio.lowlevel.checkpoint()


def _answer(ours: framing.ServerHello, theirs: framing.ClientHello) -> framing.ServerHello:
    return ours if theirs.minor >= ours.minor else msgspec.structs.replace(ours, minor=theirs.minor)
