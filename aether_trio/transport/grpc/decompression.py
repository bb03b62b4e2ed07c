"""Decompresses gRPC messages in slices, so that other tasks run in between.

61 KB can become six messages of 10 MiB. So a message waits, compressed and under the stream's
window, until its reader asks for it, and the reader's task decompresses that one message.

Invariants: in a turn of the scheduler one slice is decompressed, of one connection after the other;
at most one message longer than a slice is under way; a connection more than AHEAD_S ahead of its
rate waits, its peer's window shut, and no other connection waits for it.
"""

from __future__ import annotations

from typing import Final

import trio

from aether_trio.transport.grpc.message_encoding import Decompression

MIB: Final = 1024 * 1024
DECOMPRESSED_BYTES_PER_S: Final = 16 * MIB
"""Of one connection: some 5 % of what a core decompresses."""
AHEAD_S: Final = 1.0


class DecompressionTurns:
    """Locks by which all connections of a gRPC server take turns at decompressing."""

    __slots__ = ("large", "slices")

    def __init__(self) -> None:
        self.slices = trio.Lock()
        self.large = trio.Lock()


class Decompressor:
    """Decompresses the messages of one gRPC connection, at a limited rate."""

    __slots__ = ("_one", "_paid_at", "_per_second", "_turns")

    def __init__(self, turns: DecompressionTurns, per_second: float = DECOMPRESSED_BYTES_PER_S) -> None:
        self._turns = turns
        self._per_second = per_second
        self._one = trio.Lock()
        self._paid_at = 0.0
        """trio time at which everything so far would be decompressed at the rate."""

    async def decompress(self, message: bytes, encoding: str, max_bytes: int) -> bytes:
        """Decompress a message in slices. Raises StatusError for bad or too long data."""
        decompression = Decompression(message, encoding, max_bytes)
        async with self._one:
            wait_s = self._paid_at - trio.current_time() - AHEAD_S
            if wait_s > 0:
                await trio.sleep(wait_s)
            try:
                if not await self._step(decompression):
                    async with self._turns.large:
                        while not await self._step(decompression):
                            pass
            finally:
                self._paid_at = max(self._paid_at, trio.current_time()) + decompression.size / self._per_second
        return decompression.message()

    async def _step(self, decompression: Decompression) -> bool:
        async with self._turns.slices:
            return decompression.step()
