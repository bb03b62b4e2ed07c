"""Tracks one topic in a client's inbox: offsets received, handled, acknowledged.

A topic of the participant's own is acknowledged by one number, below which all is done; a work
group's (shared) one by one. Both outlive the connection, so that a repeated message is recognized.

A gateway that has lost its data (a development gateway without a directory) counts from 1 again,
and what it delivers would look like repetitions. Its HELLO names another log then, and the inbox
begins anew with each topic. A log that was restored from a copy keeps its name, so two more signs
are looked for: its position for this client is 0 though more than RECENT messages were
acknowledged, or a "repetition" is not the bytes that came under this offset before.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from aether_trio.wire.framing import Delivered, FramedConnection

RECENT: Final = 1024
"""Messages of which a topic remembers a hash; of a shared topic, their offsets."""


class TopicState:
    """Offsets of one delivered topic: received, handled, and acknowledged."""

    __slots__ = (
        "_channel",
        "_done",
        "_hashes",
        "_here",
        "_outstanding",
        "_seen",
        "_sent",
        "_to_send",
        "floor",
        "name",
        "shared",
    )

    def __init__(self, name: str, *, shared: bool) -> None:
        self.name = name
        self.shared = shared
        self.floor = 0
        """The application has handled all offsets up to here (not of a shared topic)."""
        self._seen = 0  # the greatest offset that came
        self._sent = 0  # the greatest that this connection has acknowledged
        self._outstanding: deque[int] = deque()  # came and not below the floor, in order
        self._done: dict[int, None] = {}  # done out of order; of a shared topic, done lately
        self._hashes: dict[int, int] = {}
        self._channel: int | None = None
        self._here: set[int] = set()  # shared: delivered by this connection, not acknowledged
        self._to_send: list[int] = []  # shared: to be acknowledged

    def opened(self, channel: int, position: int) -> None:
        """Note the channel number under which a connection delivers this topic."""
        if position == 0 and self.floor > RECENT and not self.shared:
            self._begin_again()
        self._channel = channel
        self._sent = position

    def closed(self, channel: int | None = None) -> None:
        """Note that the topic is not delivered under `channel` (None: any) any more."""
        if channel is not None and channel != self._channel:
            return  # it has another one by now
        self._channel = None
        self._here.clear()
        self._to_send.clear()

    def abandon(self) -> None:
        """Forget all offsets, and acknowledge none of them: the gateway lost its log."""
        self.closed()
        self._begin_again()
        self._sent = 0

    def _begin_again(self) -> None:
        self.floor = self._seen = 0
        self._outstanding.clear()
        self._done.clear()
        self._hashes.clear()

    def arrived(self, offset: int, message: bytes) -> bool:
        """Note a delivered offset. Return False when it was delivered before."""
        if self.shared:
            return self._arrived_shared(offset)
        digest = hash(message)
        if offset <= self._seen:
            if self._hashes.get(offset, digest) == digest:
                return False
            self._begin_again()
        self._seen = offset
        self._outstanding.append(offset)
        hashes = self._hashes
        hashes[offset] = digest
        if len(hashes) > RECENT:
            del hashes[next(iter(hashes))]
        return True

    def _arrived_shared(self, offset: int) -> bool:
        self._here.add(offset)
        if offset in self._hashes:  # buffered, or in the application's hands
            return False
        if offset in self._done:
            self._to_send.append(offset)
            return False
        self._hashes[offset] = 0
        return True

    def forget(self, offset: int) -> None:
        """Forget an offset of a shared topic: its message was dropped unread."""
        self._hashes.pop(offset, None)

    def done(self, offset: int) -> None:
        """Note that the application has handled the message at this offset."""
        done = self._done
        if self.shared:
            if self._hashes.pop(offset, None) is None:
                return
            done[offset] = None
            if len(done) > RECENT:
                del done[next(iter(done))]
            if offset in self._here:
                self._to_send.append(offset)
            return
        outstanding = self._outstanding
        if not outstanding or offset < outstanding[0] or offset > self._seen:
            return  # of a log that is gone
        if offset != outstanding[0]:
            done[offset] = None
            return
        self.floor = outstanding.popleft()
        while outstanding and outstanding[0] in done:
            self.floor = outstanding.popleft()
            del done[self.floor]

    @property
    def busy(self) -> bool:
        """Whether any message of the topic is buffered or not yet handled."""
        return bool(self._hashes) if self.shared else bool(self._outstanding)

    @property
    def owes(self) -> bool:
        """Whether handled offsets are still to be acknowledged to the gateway."""
        return bool(self._to_send) if self.shared else self.floor > self._sent

    def acknowledgements(self, connection: FramedConnection) -> list[bytes]:
        """Return DELIVERED frames for handled offsets that this connection delivered."""
        channel = self._channel
        opened = connection.channels.get(channel) if channel is not None else None
        if channel is None or opened is None:
            return []
        if self.shared:
            frames = [connection.send(Delivered(channel, offset)) for offset in self._to_send]
            self._here.difference_update(self._to_send)
            self._to_send.clear()
            return frames
        offset = min(self.floor, opened.position)
        if offset <= self._sent:
            return []
        self._sent = offset
        return [connection.send(Delivered(channel, offset))]
