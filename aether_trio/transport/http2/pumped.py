"""What a connection asks of each of its streams."""

from __future__ import annotations

from aether_trio.transport.http2.data_stream import DataStream


class PumpedStream(DataStream):
    """A stream that the connection asks for bytes and tells about room."""

    __slots__ = ()

    @property
    def answered(self) -> bool:
        """The response has begun."""
        raise NotImplementedError

    @property
    def has_source(self) -> bool:
        """What it sends is pulled as there is room, so little of it waits."""
        return False

    @property
    def is_public(self) -> bool:
        """The call needs no credential."""
        return False

    def fill(self) -> bool:
        """Put bytes into the plane. True when there is more and room for it."""
        raise NotImplementedError

    def drained(self) -> None:
        """The kernel has everything that this stream gave."""
        raise NotImplementedError

    def stall(self) -> None:
        """What this stream gave, or would give, waits for room."""

    def moved(self) -> None:
        """Some of what waits has left."""

    def wake(self) -> None:
        """There is news for the reader."""
        raise NotImplementedError

    def broken(self, reason: str) -> None:
        """The stream has ended abnormally; nothing more comes or goes."""
        raise NotImplementedError

    def evict(self, status: int, message: str) -> None:
        """End the stream now with a status."""
        raise NotImplementedError
