"""Queues a client's outgoing messages, and keeps them until they are confirmed.

The writer of a connection pulls from it whenever its socket takes more, so many frames leave in one
write. What was written and is not settled is kept for the next connection.

Invariants: publications are settled once, with None or an error; numbers grow in the order of the
queue, have no gaps when they are first written, and are never used for a second message; what is
behind a publication that the window has no room for waits with it, so an answer stays a barrier.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import anyio.lowlevel

from aether_trio.client.connection.outgoing_messages import ClockReading, MessageEncoder, OutgoingMessage, Publication
from aether_trio.client.connection.resend_or_in_doubt import in_doubt
from aether_trio.client.errors import AetherError, ClientClosed, ConnectionLost

_YIELD_EVERY: Final = 64


class SendQueue:
    """A client's outgoing messages in order; limits bound unsettled publications."""

    def __init__(self, max_unsettled: int, max_unsettled_bytes: int) -> None:
        if max_unsettled < 1 or max_unsettled_bytes < 1:
            raise ValueError(
                "max_unsettled or max_unsettled_bytes is under 1, so nothing could be sent; give at least 1"
            )
        self.max_unsettled = max_unsettled
        self.max_unsettled_bytes = max_unsettled_bytes
        self.wake: Callable[[], None] = lambda: None
        self._queue: deque[Publication | OutgoingMessage] = deque()
        self._written: deque[Publication] = deque()
        self._refused: dict[int, AetherError] = {}
        self._last_seq = 0
        self.published = 0
        """How many messages the application has ever published."""
        self.unsettled = 0
        """How many publications are neither committed nor refused yet."""
        self.unsettled_bytes = 0
        """The payload bytes of the publications that are not settled yet."""
        self._room = anyio.Event()
        self._closed: BaseException | None = None
        self.committed = self.refused = self.in_doubt = self.not_sent = 0
        """How many publications were settled in which way."""
        self.resent = 0
        """Publications that were queued again for another connection."""
        self._unseen: list[Publication] = []
        """Refused publications whose caller has not asked: the first `max_unsettled`."""
        self._unseen_more = 0
        """How many more such refusals there were."""

    # -- from the application

    @property
    def waiting(self) -> bool:
        """Whether a message waits to be written to the socket."""
        return bool(self._queue)

    @property
    def written_unsettled(self) -> int:
        """How many publications this connection has written and not settled."""
        return len(self._written)

    @property
    def doubtful(self) -> bool:
        """Whether an unsettled publication may have been committed."""
        return bool(self._written) or any(isinstance(item, Publication) and item.ever_written for item in self._queue)

    def has_room(self, size: int) -> bool:
        """Return whether the limits of unsettled messages have room for this many bytes."""
        return not self.unsettled or (
            self.unsettled < self.max_unsettled and self.unsettled_bytes + size <= self.max_unsettled_bytes
        )

    async def publish(
        self, topic: str, payload: bytes, message_type: int, extra: bytes, *, confirm: bool
    ) -> Publication:
        """Queue a message when the limits of unsettled ones have room for it."""
        if confirm or not self.published % _YIELD_EVERY:
            await anyio.lowlevel.checkpoint()
        else:
            await anyio.lowlevel.checkpoint_if_cancelled()  # a yield would write each message alone
        self._check_open()
        while not self.has_room(len(payload)):
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()
            self._check_open()
        self.published += 1
        publication = Publication(self.published, topic, payload, message_type, extra, confirm=confirm)
        self.unsettled += 1
        self.unsettled_bytes += len(payload)
        self._queue.append(publication)
        self.wake()
        return publication

    def put(self, upstream: OutgoingMessage) -> None:
        """Queue a request, answer or other message that is no publication."""
        self._check_open()
        upstream.queued = True
        self._queue.append(upstream)
        self.wake()

    def put_first(self, upstream: OutgoingMessage) -> None:
        """Queue a message in front of all others."""
        upstream.queued = True
        self._queue.appendleft(upstream)

    async def flush(self) -> None:
        """Wait until all messages published so far are settled. Raises an unseen refusal."""
        await anyio.lowlevel.checkpoint()
        target = self.published
        while self.unsettled and self._first_open() <= target:
            if self._room.is_set():
                self._room = anyio.Event()
            await self._room.wait()
        unseen = [publication for publication in self._unseen if not publication.seen]
        count = len(unseen) + self._unseen_more
        self._unseen, self._unseen_more = [], 0
        if unseen:
            error = unseen[0].error
            assert error is not None
            if count > 1:
                error.add_note(f"and {count - 1} more messages since the last flush")
            raise error

    def _first_open(self) -> int:
        """Return the serial number of the oldest unsettled publication."""
        for publication in self._written:
            if not publication.settled:
                return publication.order
        for item in self._queue:
            if isinstance(item, Publication) and not item.settled:
                return item.order
        return self.published + 1

    def withdraw(self, publication: Publication) -> None:
        """Withdraw a publication whose caller gave up.

        What waits for a connection is forgotten at once. What the present connection has written
        takes its course, but is not sent again after a cut.
        """
        publication.withdrawn = True
        if publication.written or publication.settled:
            return
        with contextlib.suppress(ValueError):  # what waits to be sent again is not in the queue
            self._queue.remove(publication)
        self._settle(publication, _withdrawn(publication))

    def discard(self, upstream: OutgoingMessage) -> None:
        """Remove a message whose caller gave up, if it has not been written."""
        if upstream.queued:
            upstream.queued = False
            self._queue.remove(upstream)

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed

    # -- from the connection

    def pull(self, encoder: MessageEncoder, max_bytes: int, *, starting: bool) -> list[bytes]:
        """Take and encode about `max_bytes` of messages; only answers unless `starting`."""
        if not starting:
            return self._pull_answers(encoder)
        frames: list[bytes] = []
        size = 0
        queue = self._queue
        now: ClockReading | None = None
        while queue and size < max_bytes:
            item = queue[0]
            frame: bytes | None
            try:
                if isinstance(item, Publication):
                    if now is None:
                        now = ClockReading.now()
                    frame = self._number(item, encoder, now)
                    if frame is None:
                        break
                else:
                    item.queued = False
                    frame = encoder.encode_upstream(item)
                    item.on_written(None)
            except AetherError as error:
                frame = b""
                self._fail(item, error)
            queue.popleft()
            if frame:
                frames.append(frame)
                size += len(frame)
        return frames

    def _number(self, publication: Publication, encoder: MessageEncoder, now: ClockReading) -> bytes | None:
        """Give a publication its number and encode it, unless the send window is full."""
        fresh = not publication.seq
        if fresh:
            publication.seq = self._last_seq + 1
        frame: bytes | None = None
        try:
            frame = encoder.encode_publication(publication)
        finally:
            if frame is None and fresh:
                publication.seq = 0
        if frame is not None:
            self._last_seq = max(self._last_seq, publication.seq)
            publication.written = True
            if publication.first_written is None:
                publication.first_written = now
            self._written.append(publication)
        return frame

    def _pull_answers(self, encoder: MessageEncoder) -> list[bytes]:
        frames = []
        for item in [item for item in self._queue if isinstance(item, OutgoingMessage) and item.answer]:
            self.discard(item)
            frames.append(encoder.encode_upstream(item))
            item.on_written(None)
        return frames

    def _fail(self, item: Publication | OutgoingMessage, error: AetherError) -> None:
        if isinstance(item, Publication):
            self._settle(item, error)
        else:
            item.on_written(error)

    def ack(self, seq: int) -> None:
        """Settle all written publications up to this number: an ACK has come."""
        written, refused = self._written, self._refused
        while written and written[0].seq <= seq:
            publication = written.popleft()
            self._settle(publication, refused.pop(publication.seq, None) if refused else None)

    def nack(self, seq: int, error: AetherError) -> None:
        """Note a publication's refusal, and settle it when none before it is open."""
        if self._written and self._written[0].seq == seq:
            self._settle(self._written.popleft(), error)
        else:
            self._refused[seq] = error

    def settle(self, publication: Publication, error: AetherError | None) -> None:
        """Set the outcome of one publication, on transports that confirm without numbers."""
        self._settle(publication, error)
        while self._written and self._written[0].settled:
            self._written.popleft()

    def _settle(self, publication: Publication, error: AetherError | None) -> None:
        if publication.settled:
            return
        self.unsettled -= 1
        self.unsettled_bytes -= len(publication.payload)
        publication.settle(error)
        self._count_outcome(error)
        if error is not None and not publication.confirm and not publication.seen:
            self._note_unseen(publication)
        self._room.set()

    def _note_unseen(self, publication: Publication) -> None:
        """Keep a refusal that no caller has seen for `flush`, which raises the first one."""
        if len(self._unseen) >= self.max_unsettled:
            if self._unseen_more % self.max_unsettled == 0:  # each look pays for as many refusals
                self._unseen = [one for one in self._unseen if not one.seen]
            if len(self._unseen) >= self.max_unsettled:
                self._unseen_more += 1
                return
        self._unseen.append(publication)

    def _count_outcome(self, error: AetherError | None) -> None:
        if error is None:
            self.committed += 1
        elif isinstance(error, ConnectionLost) and error.in_doubt:
            self.in_doubt += 1
        elif isinstance(error, ConnectionLost | ClientClosed) or error is self._closed:
            self.not_sent += 1
        else:
            self.refused += 1

    def cut(self) -> None:
        """After a cut, mark written messages as unwritten, and fail the refused ones."""
        for publication in self._written:
            publication.written = False
            error = self._refused.pop(publication.seq, None)
            if error is not None:
                self._settle(publication, error)
            elif publication.withdrawn:
                self._settle(publication, _withdrawn(publication))
        self._refused.clear()

    def reopen(self, *, repeat: bool, within_s: float = math.inf) -> None:
        """Queue unconfirmed publications again for a new connection, or fail them."""
        written = [publication for publication in self._written if not publication.settled]
        self._written.clear()
        queued = [item for item in self._queue if isinstance(item, Publication) and item.ever_written]
        lost = in_doubt((*written, *queued), repeat=repeat, within_s=within_s)
        again = [publication for publication in written if publication not in lost]
        self.resent += len(again)
        self._queue.extendleft(reversed(again))
        if not lost.isdisjoint(queued):
            self._queue = deque(item for item in self._queue if item not in lost)
        for publication in (*written, *queued):
            if publication in lost:
                text = "the connection was cut before the message was confirmed"
                self._settle(publication, ConnectionLost(text, in_doubt=True))

    def close(self, error: AetherError) -> None:
        """Fail all queued messages with `error`, and written ones as in doubt."""
        if self._closed is not None:
            return
        self._closed = error
        self.cut()
        self.reopen(repeat=False)
        for item in self._queue:
            if not isinstance(item, Publication):
                item.queued = False
                item.on_written(error)
            elif item.ever_written:
                text = "the client has ended before the message was confirmed"
                self._settle(item, ConnectionLost(text, in_doubt=True))
            else:
                self._settle(item, error)
        self._queue.clear()
        self._room.set()


def _withdrawn(publication: Publication) -> ConnectionLost:
    again = " again" if publication.ever_written else ""
    return ConnectionLost(f"the message was withdrawn before it was sent{again}", in_doubt=publication.ever_written)
