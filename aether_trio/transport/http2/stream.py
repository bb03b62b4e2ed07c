"""The state of one open HTTP/2 stream, and the tasks that wait for it.

The data plane (dataplane.py) reads and sets its fields, its PayloadReader makes messages of DATA,
and its StreamHandler (an RPC) gives bytes to send. Invariants: at most one task waits to read, and
one for its bytes to leave; a stream that has broken stays broken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

import trio

from aether_trio.model.errors import StatusError

MESSAGES_AT_ONCE: Final = 256
"""Messages handed to a reader at once; a window may hold ten thousand."""
MESSAGE_BYTES: Final = 48
"""What a message costs beside its content: the head of a bytes object, and its place in a list."""


class PayloadReader(Protocol):
    """Protocol: makes messages of a stream's DATA and puts them into its inbox."""

    def read(self, data: bytes, position: int, stop: int) -> None:
        """Take DATA `data[position:stop]`; for a bad message set the stream's `failure`."""

    def end(self) -> None:
        """Handle the peer's end of a stream that has not failed."""

    def after_read(self) -> None:
        """Handle the end of a socket read that brought DATA for the stream."""

    def drop(self) -> None:
        """Drop the message that is still arriving."""


class StreamHandler:
    """Base of the RPCs on HTTP/2 streams; events that one does not handle do nothing."""

    __slots__ = ()

    @property
    def answered(self) -> bool:
        """Whether the RPC's response has begun."""
        raise NotImplementedError

    @property
    def has_source(self) -> bool:
        """Whether the stream pulls messages from a source when there is room to send."""
        return False

    @property
    def is_public(self) -> bool:
        """Whether the RPC needs no credential (health, reflection)."""
        return False

    def fill(self) -> bool:
        """Put bytes to send into the data plane; return whether more can follow now."""
        raise NotImplementedError

    def on_drained(self) -> None:
        """Handle that the kernel has taken all bytes of the stream."""

    def on_stall(self) -> None:
        """Handle that the stream's bytes must wait for the peer to make room."""

    def on_moved(self) -> None:
        """Handle that some of the stream's waiting bytes have left."""

    def on_peer_ended(self) -> None:
        """Handle that the peer ended the stream while no task waits to read."""

    def on_broken(self) -> None:
        """Handle, once, that the stream ended abnormally (`broken_reason`)."""

    def evict(self, status: int, message: str) -> None:
        """End the RPC's stream now with a status."""


class Http2Stream:
    """The state of one HTTP/2 stream, with its waiting reader and sender."""

    __slots__ = (
        "_offer", "_reader", "_sender", "broken_reason", "credit", "ended", "failure", "finished", "handler", "header_bytes",
        "held", "inbox", "payload", "pending", "reading", "recv_window", "send_window", "stream_id", "unread",
    )  # fmt: skip

    def __init__(self, stream_id: int, handler: StreamHandler, payload: PayloadReader) -> None:
        self.stream_id = stream_id
        self.handler = handler
        self.payload = payload
        self.header_bytes = 0
        """Bytes of names and values in the request that opened the stream."""
        self.inbox: list[bytes] = []
        """Complete messages that no reader has taken yet."""
        self.recv_window = 0
        self.send_window = 0
        self.unread = 0
        """Bytes that count against our window and are not read."""
        self.held = 0
        """What the unread messages cost in memory."""
        self.credit = 0
        """Bytes read whose room the peer has not been given back."""
        self.pending: memoryview | None = None
        """Bytes to send that found no window."""
        self.reading = False
        """Whether a reader waits: what arrives then counts as read."""
        self.ended = False
        """Whether the peer has ended its side."""
        self.finished = False
        """Whether we have sent the last that we shall send, or the stream broke."""
        self.failure: StatusError | None = None
        """Raised to the reader after what is in the inbox; further DATA is dropped."""
        self.broken_reason: str | None = None
        self._offer: Callable[[], bool] | None = None
        """Called with new messages while a reader waits; returns whether it is to wake."""
        self._reader: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None

    @property
    def has_news(self) -> bool:
        """Whether a reader finds a message, the end or an error without waiting."""
        return bool(self.inbox) or self.ended or self.failure is not None or self.broken_reason is not None

    def park_reader(self, offer: Callable[[], bool] | None = None) -> Awaitable[object]:
        """Suspend the reader until `wake`; await at once. Raises BusyResourceError.

        `offer` is called when messages have come, may take them from the inbox, and returns whether
        the reader is to wake. It raises nothing.
        """
        if self._reader is not None:
            raise trio.BusyResourceError("another task is already receiving from this stream")
        self.reading = True
        self._offer = offer
        self._reader = trio.lowlevel.current_task()
        return trio.lowlevel.wait_task_rescheduled(self._stop_reading)  # noqa: ASYNC105 -- the caller awaits it

    def _stop_reading(self, _: object) -> trio.lowlevel.Abort:
        self._reader = self._offer = None
        self.reading = False
        return trio.lowlevel.Abort.SUCCEEDED

    def wake(self) -> None:
        """Resume a waiting reader that has news; without one tell the handler of the end."""
        if self._reader is not None:
            offer = self._offer
            self._resume_reader(wanted=offer is not None and bool(self.inbox) and offer())
        elif self.ended:
            self.handler.on_peer_ended()

    def _resume_reader(self, *, wanted: bool = False) -> None:
        reader = self._reader
        if reader is not None and (wanted or self.has_news):
            self._reader = self._offer = None
            self.reading = False
            trio.lowlevel.reschedule(reader)

    async def park_sender(self) -> None:
        """Suspend the sender until its bytes left. Raises BusyResourceError if one waits."""
        if self._sender is not None:
            raise trio.BusyResourceError("another task is already sending on this stream")
        self._sender = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._stop_sending)

    def _stop_sending(self, _: object) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _resume_sender(self) -> None:
        sender, self._sender = self._sender, None
        if sender is not None:
            trio.lowlevel.reschedule(sender)

    def drained(self) -> None:
        """Resume the sender: the kernel has taken all bytes of this stream."""
        if self._sender is not None:
            self._resume_sender()
        self.handler.on_drained()

    def broken(self, reason: str) -> None:
        """Tell reader, sender and handler that the stream ended abnormally. Idempotent."""
        if self.broken_reason is None:
            self.broken_reason = reason
            self.finished = True
            self._resume_reader()
            self._resume_sender()
            self.handler.on_broken()


class DiscardedPayload:
    """A PayloadReader that drops all DATA, for requests that are refused."""

    def read(self, data: bytes, position: int, stop: int) -> None:
        """Drop the DATA."""

    def end(self) -> None:
        """Do nothing at the end of the stream."""

    def after_read(self) -> None:
        """Do nothing after a socket read."""

    def drop(self) -> None:
        """Do nothing: no message is kept."""


DISCARDED: Final = DiscardedPayload()
