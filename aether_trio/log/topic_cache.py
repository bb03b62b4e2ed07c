"""The topics that one node has in memory: their ends, subscribers, and eviction.

A `CachedTopic` is made at the first publish or subscribe. It may be forgotten while it has no
subscriber and nothing of it waits for a commit, because the database then knows all that it knows.

Fields and invariants:

* `topic_id` is None until the topic has a row in the database.
* `tail` is the offset of the last message that is committed *and* was offered to the subscribers
  here.
* `assigned` is the offset last given to a message that waits for its commit; without such a message
  it equals `tail`. The offsets of a topic are consecutive: a group that is not committed gives its
  offsets back.
* `tail_bytes` and `assigned_bytes` count the topic's bytes since it was made, up to these two
  messages.
* `doubtful`: the commit of a group failed, and the group may have been written all the same. So
  `tail` is read again before further offsets are given out.
* `head` counts where other nodes write as well (PostgreSQL): the offset of the last message that is
  known to be committed. Messages between `tail` and `head` are still to be offered here
  (remote_commits.py). With a local database it is 0.
* `base`: a consumer without a position has not missed the messages up to this offset.
* `waiting` counts what needs this very object: messages and cursors that wait for a commit, and
  sessions that looked the topic up and have not yet closed their subscription.
* `watchers` counts the subscribers that only look on (delivery/topic_watcher.py).
* `sweep_bytes`: when `tail_bytes` reaches it, retention looks at the topic.
"""

from __future__ import annotations

from typing import Final, Protocol

from aether_trio.concurrency.kicks import Kickable

__all__ = ["SWEEP_REQUESTED", "CachedTopic", "Subscriber", "TopicCache"]

MAX_UNSUBSCRIBED_TOPICS: Final = 50_000
"""Topics in memory without a subscriber (about 300 bytes each); beyond it they are forgotten."""

SWEEP_REQUESTED: Final = 2**62
"""`sweep_bytes` of a topic that retention has been told to look at."""


class Subscriber(Protocol):
    """Is offered each committed message of a topic, in order."""

    reads: bool
    """Whether it is offered messages that other nodes commit; else it is told to `look`."""

    def offer(self, offset: int, frame: bytes, touched: set[Kickable]) -> None:
        """Queue a message and add its outbox to `touched`. Never blocks or raises."""

    def look(self) -> None:
        """Read the log, as the tail moved without an offer. Never blocks or raises."""

    def renew(self) -> None:
        """Write the position again, for retention to keep. Never blocks or raises."""


class CachedTopic:
    """One topic of the log in a node's memory; this file's top describes its fields."""

    __slots__ = (
        "assigned",
        "assigned_bytes",
        "base",
        "doubtful",
        "head",
        "name",
        "subscribers",
        "sweep_bytes",
        "tail",
        "tail_bytes",
        "topic_id",
        "waiting",
        "watchers",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.topic_id: int | None = None
        self.tail = self.assigned = self.head = self.base = 0
        self.tail_bytes = self.assigned_bytes = self.sweep_bytes = 0
        self.waiting = 0
        self.subscribers: dict[Subscriber, None] = {}
        self.watchers = 0
        self.doubtful = False

    def __repr__(self) -> str:
        return f"<CachedTopic {self.name} id={self.topic_id} tail={self.tail} subscribers={len(self.subscribers)}>"

    @property
    def is_read(self) -> bool:
        """Whether a subscriber here is offered the messages that other nodes commit."""
        return any(subscriber.reads for subscriber in self.subscribers)

    def look(self) -> None:
        """Have all subscribers read the topic's new messages from the log."""
        for subscriber in list(self.subscribers):
            subscriber.look()

    def offer(self, offset: int, frame: bytes, touched: set[Kickable], grown: dict[str, CachedTopic]) -> int:
        """Offer a committed message to the subscribers; return the number of offers."""
        if offset > self.tail:  # noqa: PLR1730  # max() is a call for each message
            self.tail = offset
        self.tail_bytes += len(frame)
        if self.tail_bytes >= self.sweep_bytes:
            self.sweep_bytes = SWEEP_REQUESTED
            grown[self.name] = self
        for subscriber in self.subscribers:
            subscriber.offer(offset, frame, touched)
        return len(self.subscribers)

    @property
    def end(self) -> int:
        """The offset of the last message that is known to be committed."""
        return max(self.tail, self.head)

    def deleted(self) -> None:
        """Note that the topic's row was deleted with its messages; count none as missed."""
        self.topic_id = None
        self.base = self.end

    @property
    def forgettable(self) -> bool:
        """Whether the database knows all that memory knows of this topic."""
        return not self.subscribers and not self.waiting


class TopicCache:
    """Holds the topics in one node's memory; forgets unused ones beyond a limit."""

    def __init__(self) -> None:
        self._topics: dict[str, CachedTopic] = {}
        self._limit = MAX_UNSUBSCRIBED_TOPICS

    def __len__(self) -> int:
        return len(self._topics)

    def ensure(self, name: str) -> CachedTopic:
        """Return the topic in memory; add an empty one if it is missing."""
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= self._limit:
                self._forget_unused()
            topic = self._topics[name] = CachedTopic(name)
        return topic

    def find(self, name: str) -> CachedTopic | None:
        """Return the topic if it is in memory."""
        return self._topics.get(name)

    def is_current(self, topic: CachedTopic) -> bool:
        """Whether `topic` is still the object in use for its name, and not forgotten."""
        return self._topics.get(topic.name) is topic

    def subscribed(self) -> list[CachedTopic]:
        """Return the topics that have a subscriber on this node."""
        return [topic for topic in self._topics.values() if topic.subscribers]

    @property
    def subscriptions(self) -> int:
        """The number of subscribers of all topics on this node."""
        return sum(len(topic.subscribers) for topic in self._topics.values())

    def _forget_unused(self) -> None:
        self._topics = {name: topic for name, topic in self._topics.items() if not topic.forgettable}
        self._limit = len(self._topics) + MAX_UNSUBSCRIBED_TOPICS
