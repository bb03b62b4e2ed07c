"""Count the sequence numbers, channels and credit of one framed connection.

Both ends count the same frames and find the same mistakes. Methods raise `Breach`, which
FramedConnection turns into the local or the remote error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.wire.framing.constants import MAX_CHANNELS, MAX_CREDIT, ErrorCode


class Breach(Exception):
    """Raised when either end of a framed connection breaks a rule of the framing."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Late(Breach):
    """Raised for a DELIVERED on a channel closed or reopened; its receiver ignores it."""


class Sequence:
    """Counts SENDs, whose numbers grow, with gaps, and their ACKs and NACKs."""

    __slots__ = ("acked", "last", "window")

    def __init__(self) -> None:
        self.last = 0
        self.acked = 0
        """The last ACK's number; before the first ACK, the number in front of the first SEND's."""
        self.window = 0
        """How far `last` may be ahead of `acked`; set by the server's HELLO."""

    def send(self, seq: int) -> None:
        """Count a SEND; refuse numbers that do not grow or exceed the window."""
        if seq <= self.last:
            raise Breach(ErrorCode.BAD_SEQUENCE, f"SEND {seq} after SEND {self.last}; sequence numbers must grow")
        acked = self.acked if self.last else seq - 1
        if seq - acked > self.window:
            raise Breach(
                ErrorCode.BAD_SEQUENCE,
                f"SEND {seq} is beyond the publish window of {self.window}; the last ACK is {acked}",
            )
        self.acked = acked
        self.last = seq

    def ack(self, seq: int) -> None:
        """Count an ACK of all SENDs up to `seq`."""
        if not self.acked < seq <= self.last:
            raise Breach(
                ErrorCode.BAD_SEQUENCE,
                f"ACK {seq} must be above the last ACK {self.acked} and at most the last SEND {self.last}",
            )
        self.acked = seq

    def nack(self, seq: int) -> None:
        """Check that a NACK names a SEND that no ACK has settled."""
        if not self.acked < seq <= self.last:
            raise Breach(
                ErrorCode.BAD_SEQUENCE,
                f"NACK {seq} must be above the last ACK {self.acked} and at most the last SEND {self.last}",
            )


@dataclass(slots=True)
class OpenChannel:
    """An open channel; `position` is its greatest delivered offset, or its start."""

    topic: str
    position: int
    shared: bool


_NONE_OPEN: Final[dict[int, OpenChannel]] = {}
"""Of all connections without a channel; never written to."""


class Channels:
    """The open channels of a framed connection by number."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open = _NONE_OPEN

    def __len__(self) -> int:
        return len(self._open)

    def get(self, number: int) -> OpenChannel | None:
        """Return the channel with this number, None if it is not open."""
        return self._open.get(number)

    def open(self, number: int, topic: str, position: int, *, shared: bool) -> None:
        """Open a channel for a topic, as a CHANNEL frame does."""
        if number in self._open:
            raise Breach(ErrorCode.BAD_CHANNEL, f"CHANNEL opens channel {number}, which is open already")
        if len(self._open) >= MAX_CHANNELS:
            raise Breach(ErrorCode.BAD_CHANNEL, f"CHANNEL opens channel {number}; at most {MAX_CHANNELS} may be open")
        if not self._open:
            self._open = {}
        self._open[number] = OpenChannel(topic, position, shared)

    def close(self, number: int) -> None:
        """Close a channel, as a CHANNEL frame with CLOSED does."""
        if self._open.pop(number, None) is None:
            raise Breach(ErrorCode.BAD_CHANNEL, f"CHANNEL closes channel {number}, which is not open")

    def deliver(self, number: int, offset: int) -> None:
        """Advance a channel to the offset of a DELIVER."""
        channel = self._open.get(number)
        if channel is None:
            raise Breach(ErrorCode.BAD_CHANNEL, f"DELIVER on channel {number}, which is not open")
        if offset > channel.position:
            channel.position = offset
        elif not channel.shared:
            raise Breach(
                ErrorCode.BAD_OFFSET, f"DELIVER {offset} after {channel.position} on channel {number}; offsets grow"
            )

    def delivered(self, number: int, offset: int) -> None:
        """Check a DELIVERED's offset. Raises Late for a closed or reopened channel."""
        channel = self._open.get(number)
        if channel is None:
            raise Late(ErrorCode.BAD_CHANNEL, f"DELIVERED on channel {number}, which is not open")
        if offset > channel.position:
            raise Late(
                ErrorCode.BAD_OFFSET,
                f"DELIVERED {offset} on channel {number}, whose last DELIVER was {channel.position}",
            )


class Credit:
    """Counts the messages and bytes that may still be delivered; None is no bound.

    The last delivery may take the bytes below zero, so that a message longer than all the credit is
    not stuck.
    """

    __slots__ = ("bounded", "byte_count", "message_count")

    def __init__(self, message_count: int | None = None, byte_count: int | None = None) -> None:
        self.message_count = message_count
        self.byte_count = byte_count
        self.bounded = message_count is not None or byte_count is not None

    @property
    def available(self) -> bool:
        """Whether one more message may be delivered, of any size."""
        messages, size = self.message_count, self.byte_count
        return (messages is None or messages > 0) and (size is None or size > 0)

    def take(self, size: int) -> None:
        """Subtract one delivery of `size` bytes; credit must be available."""
        assert self.available
        if self.message_count is not None:
            self.message_count -= 1
        if self.byte_count is not None:
            self.byte_count -= size

    def grant(self, message_count: int, byte_count: int) -> None:
        """Add the messages and bytes that a CREDIT frame grants."""
        after = []
        for what, held, more in (
            ("messages", self.message_count, message_count),
            ("bytes", self.byte_count, byte_count),
        ):
            if held is None and more:
                raise Breach(ErrorCode.BAD_CREDIT, f"CREDIT for {what}, for which the HELLO set no bound")
            if held is not None and held + more > MAX_CREDIT:
                raise Breach(
                    ErrorCode.BAD_CREDIT, f"CREDIT of {more} {what} on top of {held}; at most {MAX_CREDIT} are allowed"
                )
            after.append(None if held is None else held + more)
        self.message_count, self.byte_count = after
