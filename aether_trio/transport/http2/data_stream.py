"""What the data plane keeps of one open stream."""

from __future__ import annotations

from typing import Final

from aether_trio.model.errors import StatusError

MESSAGES_AT_ONCE: Final = 256
"""Handed to a reader; a window may hold ten thousand."""
MESSAGE_BYTES: Final = 48
"""What a message costs beside its content: the head of a bytes object, and its place in a list."""


class DataStream:
    """Plain state; the owner subclasses it and adds the rest, so that a stream is one object."""

    __slots__ = (
        "accepted",
        "anew",
        "begun",
        "credit",
        "encoding",
        "ended",
        "failure",
        "header_bytes",
        "held",
        "inbox",
        "largest",
        "packed",
        "partial",
        "partial_need",
        "pending",
        "reading",
        "recv_window",
        "send_window",
        "stream_id",
        "unread",
    )

    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.inbox: list[bytes] = []
        """Complete messages that nobody has taken yet; those that are compressed are messages.Packed."""
        self.packed = 0
        """How many of these are compressed."""
        self.partial: bytearray | None = None
        """The beginning of a message, prefix included."""
        self.partial_need = 0
        """Prefix and message together, once the prefix is complete."""
        self.largest = 0
        """Of the message that its reader waits for, in bytes: little until the client is accepted."""
        self.accepted = False
        """The client has shown who it is."""
        self.begun = False
        """The account of unfinished input knows of the partial message."""
        self.anew = False
        """...and it was another one."""
        self.encoding = "identity"
        self.header_bytes = 0
        """Of the request that opened it."""
        self.recv_window = 0
        self.send_window = 0
        self.unread = 0
        """Bytes that count against our window and are not read."""
        self.held = 0
        """...and what they cost in memory."""
        self.credit = 0
        """Bytes read whose room the peer has not been given back."""
        self.pending: memoryview | None = None
        """Bytes to send that found no window."""
        self.reading = False
        """A reader waits: what arrives counts as read."""
        self.ended = False
        """The peer has ended its side."""
        self.failure: StatusError | None = None
        """Raised to the reader after what is in the inbox; further DATA is dropped."""
