"""Ephemeral topics: progress updates, which are of use only while they are fresh.

Nothing here is stored. In a cluster a relay (cluster/relay/progress_relay.py) carries updates to
the other nodes that have listeners for their topic. A node announces its listeners to the others
first, so that a listener misses no update that is published after its session is acknowledged. An
update goes to the listeners of that moment; a listener that does not keep up loses the oldest
updates and is told so once (delivery/outbox.py). What tasks derive from a progress report
(heartbeats, task events) is in services/tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from aether_trio.concurrency.kicks import KICKS_PER_SLICE, Kicks
from aether_trio.model.identity import has_all_parts


class EphemeralSink(Protocol):
    """Takes progress updates for a listener: an Outbox, or an operator's watcher."""

    def put_ephemeral(self, frame: bytes) -> None:
        """Take an update, and drop old ones if there is no room."""

    def kick(self) -> None:
        """Write the updates that were put. Never blocks."""


class EphemeralListener:
    """A listener to progress updates; a watcher gets `everything`, unfiltered."""

    __slots__ = ("everything", "identity", "outbox", "topic")

    def __init__(self, identity: str, topic: str, outbox: EphemeralSink, *, everything: bool = False) -> None:
        self.identity = identity
        self.topic = topic
        self.outbox = outbox
        self.everything = everything

    def accepts(self, source: str, recipient: str) -> bool:
        """Whether an update from `source` for `recipient` is for this listener.

        An empty recipient means all listeners, and `us::uid` all windows of that user.
        """
        if self.everything:
            return True
        if source == self.topic:
            return False
        return not recipient or recipient == self.identity or self.identity.startswith(recipient + "::")


class _EphemeralTopic:
    """Listeners of a topic by identity (`named`); `others`: duplicates and watchers."""

    __slots__ = ("named", "others")

    def __init__(self) -> None:
        self.named: dict[str, EphemeralListener] = {}
        self.others: tuple[EphemeralListener, ...] = ()

    def __len__(self) -> int:
        return len(self.named) + len(self.others)

    def add(self, listener: EphemeralListener) -> None:
        if listener in self.others:
            return
        if listener.everything or self.named.setdefault(listener.identity, listener) is not listener:
            self.others = (*self.others, listener)

    def remove(self, listener: EphemeralListener) -> None:
        if self.named.get(listener.identity) is listener:
            del self.named[listener.identity]
        else:
            self.others = tuple(one for one in self.others if one is not listener)

    def candidates(self, recipient: str) -> Iterable[EphemeralListener]:
        """Return the listeners that may accept an update for this recipient."""
        if recipient and has_all_parts(recipient):
            holder = self.named.get(recipient)
            return self.others if holder is None else (holder, *self.others)
        return (*self.named.values(), *self.others)


class EphemeralRelay(Protocol):
    """Carries progress updates to the listeners on other nodes."""

    async def expect(self, topics: Sequence[str]) -> None:
        """Announce this node's listeners to other nodes. Raises StorageUnavailable."""

    def listening(self, topic: str) -> None:
        """Note that a topic has its first listener on this node. Never blocks."""

    def publish(self, topic: str, source: str, recipient: str, frame: bytes) -> None:
        """Carry an update to the listeners on other nodes. Never blocks."""


@dataclass(frozen=True, slots=True)
class EphemeralStatistics:
    """Progress updates published and delivered since start; listeners of now."""

    published: int
    delivered: int
    listeners: int


def _kick(sink: EphemeralSink) -> None:
    sink.kick()


class EphemeralTopics:
    """Delivers progress updates to the listeners of ephemeral topics on a node."""

    def __init__(self) -> None:
        self._relay: EphemeralRelay | None = None
        self._listeners: dict[str, _EphemeralTopic] = {}
        self._kicks = Kicks()
        self._published = 0
        self._delivered = 0

    async def run(self) -> None:
        """Kick listeners' outboxes a few at a time, until cancelled."""
        await self._kicks.run()

    @contextmanager
    def relayed_by(self, relay: EphemeralRelay) -> Iterator[None]:
        """Carry updates to and from other nodes through `relay` until the block ends."""
        self._relay = relay
        try:
            yield
        finally:
            self._relay = None

    async def expect(self, topics: Sequence[str]) -> None:
        """Announce these topics' listeners to other nodes. Raises StorageUnavailable."""
        if self._relay is not None and topics:
            await self._relay.expect(topics)

    def listen(self, topic: str, listener: EphemeralListener) -> None:
        """Give this listener the updates of a topic from now on."""
        if self._relay is not None and topic not in self._listeners:
            self._relay.listening(topic)
        self._listeners.setdefault(topic, _EphemeralTopic()).add(listener)

    def listened_topics(self) -> list[str]:
        """Return the topics that have a listener on this node."""
        return list(self._listeners)

    def unlisten(self, topic: str, listener: EphemeralListener) -> None:
        """Give this listener no further updates of a topic. Idempotent."""
        ephemeral_topic = self._listeners.get(topic)
        if ephemeral_topic is not None:
            ephemeral_topic.remove(listener)
            if not len(ephemeral_topic):
                del self._listeners[topic]

    def publish(
        self, topic: str, source: str, recipient: str, frame: bytes, kick: Callable[[EphemeralSink], None] = _kick
    ) -> int:
        """Give an update to its listeners on all nodes; return how many are here."""
        self._published += 1
        if self._relay is not None:
            self._relay.publish(topic, source, recipient, frame)
        return self.deliver(topic, source, recipient, frame, kick)

    def deliver(
        self, topic: str, source: str, recipient: str, frame: bytes, kick: Callable[[EphemeralSink], None] = _kick
    ) -> int:
        """Give an update to its listeners on this node; return how many they are."""
        ephemeral_topic = self._listeners.get(topic)
        if ephemeral_topic is None:
            return 0
        count = 0
        for listener in ephemeral_topic.candidates(recipient):
            if listener.accepts(source, recipient):
                listener.outbox.put_ephemeral(frame)
                if count < KICKS_PER_SLICE:
                    kick(listener.outbox)
                else:
                    self._kicks.add(listener.outbox)
                count += 1
        self._delivered += count
        return count

    def statistics(self) -> EphemeralStatistics:
        return EphemeralStatistics(self._published, self._delivered, sum(map(len, self._listeners.values())))
