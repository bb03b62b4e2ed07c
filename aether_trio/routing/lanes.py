"""Ephemeral lanes: progress updates, which are worth something only while they are fresh.

Nothing here is stored. In a cluster a relay (cluster/lanes.py) carries updates to the other nodes that have listeners for their lane:
who is to listen is made known to them first, so that a listener misses nothing that is published after its session is acknowledged.
An update goes to whoever listens now; a listener that does not keep up loses the oldest ones
and is told so once (session/outbox.py). The side effects that durable work hangs on a progress report (heartbeats, task
events) will live with tasks, not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class LaneSink(Protocol):
    """Where updates go: an Outbox, or somebody who only watches."""

    def put_lane(self, frame: bytes) -> None:
        """Take an update, dropping old ones if need be."""
        ...

    def kick(self) -> None:
        """There is something new."""
        ...


class LaneListener:
    """One participant that listens. `identity` is its identity string, for the recipient filter.

    `everything` is for watchers, whom the filter does not concern.
    """

    __slots__ = ("everything", "identity", "outbox", "topic")

    def __init__(self, identity: str, topic: str, outbox: LaneSink, *, everything: bool = False) -> None:
        self.identity = identity
        self.topic = topic
        self.outbox = outbox
        self.everything = everything

    def accepts(self, source: str, recipient: str) -> bool:
        """The protocol's filter: never one's own updates; an empty recipient is everybody; `us::uid` is every window."""
        if self.everything:
            return True
        if source == self.topic:
            return False
        return not recipient or recipient == self.identity or self.identity.startswith(recipient + "::")


class LaneRelay(Protocol):
    """The way to the listeners on other nodes."""

    async def expect(self, topics: Sequence[str]) -> None:
        """Make known that this node is about to listen to these lanes. Raises StorageUnavailable."""
        ...

    def listening(self, topic: str) -> None:
        """A lane has its first listener here. Never blocks."""
        ...

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> None:
        """Carry an update to the listeners on other nodes. Never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """Counters since start."""

    published: int
    delivered: int
    listeners: int


class Lanes:
    """All ephemeral topics of a node. `relay` is set before anybody listens, or never."""

    def __init__(self) -> None:
        self.relay: LaneRelay | None = None
        self._listeners: dict[str, dict[LaneListener, None]] = {}
        self._published = 0
        self._delivered = 0

    async def expect(self, topics: Sequence[str]) -> None:
        """Before `listen`: have other nodes know of it. Raises StorageUnavailable. A checkpoint only where it has to wait."""
        if self.relay is not None and topics:
            await self.relay.expect(topics)

    def listen(self, topic: str, listener: LaneListener) -> None:
        """Give this listener the updates of a lane."""
        if self.relay is not None and topic not in self._listeners:
            self.relay.listening(topic)
        self._listeners.setdefault(topic, {})[listener] = None

    def has_listeners(self, topic: str) -> bool:
        """Whether anybody on this node listens to a lane."""
        return topic in self._listeners

    def heard(self) -> list[str]:
        """Every lane that somebody on this node listens to."""
        return list(self._listeners)

    def unlisten(self, topic: str, listener: LaneListener) -> None:
        """Undo `listen`. Idempotent."""
        listeners = self._listeners.get(topic)
        if listeners is not None:
            listeners.pop(listener, None)
            if not listeners:
                del self._listeners[topic]

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> int:
        """Hand an update to everybody on the lane whom it is for; returns how many of them are on this node."""
        self._published += 1
        if self.relay is not None:
            self.relay.publish(topic, source, recipient, frame)
        return self.deliver(topic, source, recipient, frame)

    def deliver(self, topic: str, source: str, recipient: str, frame: bytes) -> int:
        """Hand an update to the listeners on this node; returns how many it was for."""
        count = 0
        for listener in tuple(self._listeners.get(topic, ())):
            if listener.accepts(source, recipient):
                listener.outbox.put_lane(frame)
                listener.outbox.kick()
                count += 1
        self._delivered += count
        return count

    def statistics(self) -> LaneStatistics:
        """Counters since start."""
        return LaneStatistics(self._published, self._delivered, sum(map(len, self._listeners.values())))
