"""Ephemeral topics: progress updates, which are worth something only while they are fresh.

Nothing here is stored. In a cluster a relay (cluster/relay/progress_relay.py) carries updates to the other nodes that have listeners for their topic:
who is to listen is made known to them first, so that a listener misses nothing that is published after its session is acknowledged.
An update goes to whoever listens now; a listener that does not keep up loses the oldest ones
and is told so once (session/outbox.py). The side effects that durable work hangs on a progress report (heartbeats, task
events) will live with tasks, not here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aether_trio.delivery.kicks import AT_ONCE, Kicks
from aether_trio.model.identity import has_all_parts


class EphemeralSink(Protocol):
    """Where updates go: an Outbox, or somebody who only watches."""

    def put_ephemeral(self, frame: bytes) -> None:
        """Take an update, dropping old ones if need be."""
        ...

    def kick(self) -> None:
        """There is something new."""
        ...


class EphemeralListener:
    """One participant that listens. `identity` is its identity string, for the recipient filter.

    `everything` is for watchers, whom the filter does not concern.
    """

    __slots__ = ("everything", "identity", "outbox", "topic")

    def __init__(self, identity: str, topic: str, outbox: EphemeralSink, *, everything: bool = False) -> None:
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


class _EphemeralTopic:
    """Who listens to one topic. `named` by identity, one each; `others` are watchers, and further ones of an identity."""

    __slots__ = ("named", "others")

    def __init__(self) -> None:
        self.named: dict[str, EphemeralListener] = {}
        self.others: tuple[EphemeralListener, ...] = ()

    def __len__(self) -> int:
        return len(self.named) + len(self.others)

    def add(self, listener: EphemeralListener) -> None:
        """Idempotent."""
        if listener in self.others:
            return
        if listener.everything or self.named.setdefault(listener.identity, listener) is not listener:
            self.others = (*self.others, listener)

    def remove(self, listener: EphemeralListener) -> None:
        """Idempotent."""
        if self.named.get(listener.identity) is listener:
            del self.named[listener.identity]
        else:
            self.others = tuple(one for one in self.others if one is not listener)

    def asked(self, recipient: str) -> Iterable[EphemeralListener]:
        """All who may accept what is for this recipient: of a whole identity its holder, found by key."""
        if recipient and has_all_parts(recipient):
            holder = self.named.get(recipient)
            return self.others if holder is None else (holder, *self.others)
        return (*self.named.values(), *self.others)


class EphemeralRelay(Protocol):
    """The way to the listeners on other nodes."""

    async def expect(self, topics: Sequence[str]) -> None:
        """Make known that this node is about to listen to these topics. Raises StorageUnavailable."""
        ...

    def listening(self, topic: str) -> None:
        """A topic has its first listener here. Never blocks."""
        ...

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> None:
        """Carry an update to the listeners on other nodes. Never blocks."""
        ...


@dataclass(frozen=True, slots=True)
class EphemeralStatistics:
    """Counters since start."""

    published: int
    delivered: int
    listeners: int


def _kick(sink: EphemeralSink) -> None:
    sink.kick()


class EphemeralTopics:
    """All ephemeral topics of a node. `relay` is set before anybody listens, or never. `run` is its one task."""

    def __init__(self) -> None:
        self.relay: EphemeralRelay | None = None
        self._listeners: dict[str, _EphemeralTopic] = {}
        self._later = Kicks()
        self._published = 0
        self._delivered = 0

    async def run(self) -> None:
        """Kick those behind the first of an update's many listeners, until cancelled: one report may not hold up the gateway."""
        await self._later.run()

    async def expect(self, topics: Sequence[str]) -> None:
        """Before `listen`: have other nodes know of it. Raises StorageUnavailable. A checkpoint only where it has to wait."""
        if self.relay is not None and topics:
            await self.relay.expect(topics)

    def listen(self, topic: str, listener: EphemeralListener) -> None:
        """Give this listener the updates of a topic."""
        if self.relay is not None and topic not in self._listeners:
            self.relay.listening(topic)
        ephemeral_topic = self._listeners.get(topic)
        if ephemeral_topic is None:
            ephemeral_topic = self._listeners[topic] = _EphemeralTopic()
        ephemeral_topic.add(listener)

    def has_listeners(self, topic: str) -> bool:
        """Whether anybody on this node listens to a topic."""
        return topic in self._listeners

    def heard(self) -> list[str]:
        """Every topic that somebody on this node listens to."""
        return list(self._listeners)

    def unlisten(self, topic: str, listener: EphemeralListener) -> None:
        """Undo `listen`. Idempotent."""
        ephemeral_topic = self._listeners.get(topic)
        if ephemeral_topic is not None:
            ephemeral_topic.remove(listener)
            if not len(ephemeral_topic):
                del self._listeners[topic]

    def publish(
        self, topic: str, source: str, recipient: str, frame: bytes, kick: Callable[[EphemeralSink], None] = _kick
    ) -> int:
        """Hand an update to everybody on the topic whom it is for; returns how many of them are on this node.

        `kick` is called with each of these sinks, which has the update already; it may do it later (kicks.py).
        """
        self._published += 1
        if self.relay is not None:
            self.relay.publish(topic, source, recipient, frame)
        return self.deliver(topic, source, recipient, frame, kick)

    def deliver(
        self, topic: str, source: str, recipient: str, frame: bytes, kick: Callable[[EphemeralSink], None] = _kick
    ) -> int:
        """Hand an update to the listeners on this node; returns how many it was for."""
        ephemeral_topic = self._listeners.get(topic)
        if ephemeral_topic is None:
            return 0
        count = 0
        for listener in ephemeral_topic.asked(recipient):
            if listener.accepts(source, recipient):
                listener.outbox.put_ephemeral(frame)
                if count < AT_ONCE:
                    kick(listener.outbox)
                else:
                    self._later.add(listener.outbox)
                count += 1
        self._delivered += count
        return count

    def statistics(self) -> EphemeralStatistics:
        """Counters since start."""
        return EphemeralStatistics(self._published, self._delivered, sum(map(len, self._listeners.values())))
