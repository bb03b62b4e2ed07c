"""One direction of a proxied connection, with the faults it can have.

fault_proxy.py joins two of them. A task reads up to 64 KiB at a time, another one writes; between
them are at most 16 pieces, so a stalled direction keeps 1 MiB and leaves the rest to TCP.

Invariants: bytes leave in the order in which they came, unchanged, or not at all; once one was
dropped none follows; a fault takes effect on what has not been handed to the kernel, also when the
writer waits for room at that moment.
"""

from __future__ import annotations

import contextlib
import enum
import math
import socket
from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

_READ_BYTES: Final = 64 * 1024
_PIECES: Final = 16
_OPENING_BYTES: Final = 8 * 1024


class NetworkFault(enum.Enum):
    """The faults that a proxy injects into a connection."""

    CUT = "cut"
    """RST, to both sides or to one."""
    END = "end"
    """FIN to both sides, in place of whatever was on its way."""
    HALF_CLOSE = "half_close"
    """FIN to one side only; what the other one says to it is dropped."""
    STALL = "stall"
    """Nothing moves for a time, and nothing closes."""
    DELAY = "delay"
    """Everything comes later."""
    DROP = "drop"
    """The rest of a direction is read and thrown away, and nothing closes."""
    TRUNCATE = "truncate"
    """A certain byte is the last; another fault follows it."""
    DRIP = "drip"
    """A few bytes at a time."""


class NetworkFlow:
    """Forwards one direction of a proxied connection, from `source` to `sink`."""

    def __init__(
        self, source: trio.socket.SocketType, sink: trio.socket.SocketType, injected: Counter[NetworkFault]
    ) -> None:
        self._source = source
        self._sink = sink
        self._injected = injected
        self._pieces, self._take = trio.open_memory_channel[tuple[float, bytes]](_PIECES)
        self._news = trio.Event()  # something below has changed, or bytes were forwarded
        self._stalled_until = -math.inf
        self._delay_s = 0.0
        self._drip: tuple[int, float] | None = None
        self._last: tuple[int, Callable[[], None]] | None = None
        self._dropping = False
        self._trap: tuple[Callable[[bytes], bool], Callable[[], None]] | None = None
        self.opening = b""
        """The first of what the sender has said, up to some KiB: who it is."""
        self.forwarded_bytes = 0
        self.dropped_bytes = 0

    # Faults.

    def stall(self, seconds: float = math.inf) -> None:
        """Forward nothing for this time, or until `release`."""
        self._injected[NetworkFault.STALL] += 1
        self._stalled_until = trio.current_time() + seconds
        self._tell()

    def delay(self, seconds: float) -> None:
        """Forward every byte this much later than it came, in order; 0 ends the delay."""
        self._injected[NetworkFault.DELAY] += 1
        self._delay_s = seconds

    def drip(self, size: int, interval_s: float) -> None:
        """Forward at most `size` bytes at a time, with a pause after each piece."""
        self._injected[NetworkFault.DRIP] += 1
        self._drip = size, interval_s

    def release(self) -> None:
        """End a stall, a delay and a drip of this direction."""
        self._stalled_until = -math.inf
        self._delay_s = 0.0
        self._drip = None
        self._tell()

    def truncate(self, after_bytes: int, then: Callable[[], None]) -> None:
        """Forward `after_bytes` more, drop the rest, and call another fault's method."""
        self._injected[NetworkFault.TRUNCATE] += 1
        self._last = self.forwarded_bytes + after_bytes, then
        self._tell()

    def trap(self, catches: Callable[[bytes], bool], then: Callable[[], None]) -> None:
        """Call another fault's method before the first data that `catches` accepts."""
        self._trap = catches, then

    def disarm(self) -> None:
        """End a trap that has caught nothing."""
        self._trap = None

    def drop(self) -> None:
        """Read the rest of this direction and drop it. Neither side is told."""
        self._injected[NetworkFault.DROP] += 1
        self.discard()

    def half_close(self) -> None:
        """Send FIN to the receiver, although the sender has not ended, and drop the rest."""
        self._injected[NetworkFault.HALF_CLOSE] += 1
        self.finish()

    # For scripts.

    async def until_forwarded(self, total_bytes: int) -> None:
        """Wait until this direction has forwarded this many bytes since it began."""
        while self.forwarded_bytes < total_bytes:
            await self._news.wait()

    # For the proxy.

    def discard(self) -> None:
        """Drop the rest as `drop` does, without counting a fault."""
        self._dropping = True
        self.release()

    def finish(self) -> None:
        """Send FIN as `half_close` does, without counting a fault."""
        self.discard()
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)

    async def run(self) -> bool:
        """Forward until the sender has ended; return False if a socket failed."""
        whole = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read)
                async with self._take:
                    async for arrived, data in self._take:
                        await self._write(arrived, data)
        except* (OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            whole = False
        if whole:
            with contextlib.suppress(OSError):
                self._sink.shutdown(socket.SHUT_WR)
        return whole

    async def _read(self) -> None:
        async with self._pieces:
            while data := await self._source.recv(_READ_BYTES):
                await self._pieces.send((trio.current_time(), data))

    async def _write(self, arrived: float, data: bytes) -> None:
        if len(self.opening) < _OPENING_BYTES:
            self.opening += data[: _OPENING_BYTES - len(self.opening)]
        if self._trap is not None and self._trap[0](data):
            (_, then), self._trap = self._trap, None
            then()
        view = memoryview(data)
        while view:
            await self._wait_for_turn(arrived)
            room, pause = self._room(len(view))
            if self._dropping:
                self.dropped_bytes += len(view)
                return
            sent = await self._send(view[:room]) if room else 0
            self.forwarded_bytes += sent
            view = view[sent:]
            self._tell()
            await trio.sleep(pause)

    async def _send(self, data: memoryview) -> int:
        try:
            return await self._sink.send(data)
        except (OSError, trio.ClosedResourceError):
            if not self._dropping:
                raise
            return 0  # finished while this waited for room

    async def _wait_for_turn(self, arrived: float) -> None:
        while not self._dropping and trio.current_time() < (until := max(self._stalled_until, arrived + self._delay_s)):
            with trio.move_on_at(until):
                await self._news.wait()

    def _room(self, size: int) -> tuple[int, float]:
        """Return how many bytes may leave now, and the pause after them."""
        room, pause = size, 0.0
        if self._drip is not None:
            room, pause = min(room, self._drip[0]), self._drip[1]
        if self._last is not None and not self._dropping:
            last, then = self._last
            room = min(room, last - self.forwarded_bytes)
            if room <= 0:
                self.discard()
                then()
        return room, pause

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()
