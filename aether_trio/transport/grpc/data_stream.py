"""What the data plane keeps of one open stream."""

from __future__ import annotations

from aether_trio.model.errors import StatusError


class DataStream:
    """Plain state; the owner subclasses it and adds the rest, so that a stream is one object."""

    __slots__ = (
        "credit",
        "encoding",
        "ended",
        "failure",
        "inbox",
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
        """Complete messages that nobody has taken yet."""
        self.partial: bytearray | None = None
        """The beginning of a message, prefix included."""
        self.partial_need = 0
        """Prefix and message together, once the prefix is complete."""
        self.encoding = "identity"
        self.recv_window = 0
        self.send_window = 0
        self.unread = 0
        """Bytes that count against our window and are not read."""
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
