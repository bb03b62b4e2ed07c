"""One HTTP/2 connection on a socket, seen from its reader. Both our server and our client use it.

One task reads; the other half is Output, which needs none.

Sockets are plain non-blocking ones from the standard library, waited for with `trio.lowlevel.wait_readable/writable`:
trio documents both for foreign sockets, whereas the send of trio's own socket objects is async only and their inner
socket private. It also keeps an idle connection smaller. The socket is closed by whoever opened it, after all tasks.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import trio

from aether_trio.transport.grpc.inflation import Inflater, InflationTurns
from aether_trio.transport.http2 import frames
from aether_trio.transport.http2.data_stream import DataStream
from aether_trio.transport.http2.frames import ErrorCode, ProtocolViolation
from aether_trio.transport.http2.limits import GrpcLimits
from aether_trio.transport.http2.output import Output, Sealer

if TYPE_CHECKING:
    from aether_trio.transport.http2.flood_budgets import Budgets
    from aether_trio.transport.http2.statistics import Counters
    from aether_trio.transport.socket.unfinished_input import Account

RECV_BYTES: Final = 64 * 1024
ANSWER_TURNS: Final = 6
"""Of the scheduler, in which a new stream may answer: enough for a session that waits for no other thread."""


class Connection(Output):
    """What both sides of a connection do alike. Subclasses decide what streams and control frames mean."""

    __slots__ = ("_inflater", "_turns", "opened")

    def __init__(
        self,
        sock: socket.socket,
        sealer: Sealer | None,
        limits: GrpcLimits,
        budgets: Budgets,
        counters: Counters,
        nursery: trio.Nursery,
        *,
        client_side: bool,
        account: Account | None = None,
        turns: InflationTurns | None = None,
    ) -> None:
        super().__init__(
            self, sock, sealer, limits, budgets, counters, nursery, client_side=client_side, account=account
        )
        self._turns = turns
        self._inflater: Inflater | None = None
        self.opened = False
        """The bytes being served have opened a stream."""

    # Owner of the data plane -------------------------------------------------------------------------------------

    def control(self, kind: int, flags: int, stream_id: int, frame: bytes) -> None:
        raise NotImplementedError

    def end_of_stream(self, stream: DataStream) -> None:
        raise NotImplementedError

    def stream_error(self, stream_id: int, code: ErrorCode, text: str) -> None:
        raise NotImplementedError

    @property
    def inflater(self) -> Inflater:
        """For compressed messages, made when the first one is read."""
        if self._inflater is None:
            self._inflater = Inflater(self._turns or InflationTurns())
        return self._inflater

    # Reading -----------------------------------------------------------------------------------------------------

    async def read_until_end(self) -> str:
        """Read and serve until the peer ends the connection, or it breaks, or `closing`. Returns why."""
        sock = self.sock
        while True:
            data = b""  # an idle connection must not keep what it read last alive in this frame
            if self.sealer is not None and self.sealer.ended:
                return "end of connection"
            await trio.lowlevel.wait_readable(sock)
            try:
                data = self.receive_some()
                if not data:
                    return "end of connection"
                if self.sealer is not None:
                    data = self.sealer.open(data)
            except BlockingIOError:
                continue
            except OSError as error:
                return error.strerror or type(error).__name__
            if not await self.received(data):
                return "closed"

    def receive_some(self) -> bytes:
        """What the socket has; raises OSError."""
        data = self.sock.recv(RECV_BYTES)
        self.counters.bytes_received += len(data)
        return data

    async def received(self, data: bytes) -> bool:
        """Serve what one read brought. False when that was the last. A checkpoint only when it opened streams, or holds much."""
        plane = self.plane
        while True:
            try:
                plane.receive(data)
            except ProtocolViolation as violation:
                self.violated(violation)
                return False
            if plane.touched:
                self._wake_touched()
            if not plane.more:
                break
            await self._let_others()
            if self.closing:
                return False
            data = b""
        if self.opened:
            self.opened = False
            if plane.out and not plane.ready:
                await self._let_answer()
        if plane.out or plane.ready:
            self.pump()
        return not self.closing

    async def _let_others(self) -> None:
        """Have their turn, before more of the same read is looked at. What is to be sent leaves with the last of it."""
        await trio.lowlevel.checkpoint()

    async def _let_answer(self) -> None:
        """Streams were opened. If they answer soon, then acknowledgements leave with that, in one send instead of two."""
        for _ in range(ANSWER_TURNS):
            await trio.lowlevel.cancel_shielded_checkpoint()
            if not self.plane.out:
                return

    def _wake_touched(self) -> None:
        touched, self.plane.touched = self.plane.touched, []
        for stream in touched:
            stream.wake()  # type: ignore[attr-defined]

    def violated(self, violation: ProtocolViolation) -> None:
        """The peer broke a rule: say so once and stop."""
        self.counters.reject(violation.reason)
        if not self.closing:
            self.closing = True
            self.plane.out.append(frames.goaway(self.plane.highest_stream_id, violation.code, violation.debug))
            self.pump()
