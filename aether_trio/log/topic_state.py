"""What one node knows of one topic: where its log ends and who listens.

A `TopicState` is made when somebody first publishes to or subscribes to a topic and may be forgotten again while nobody
listens and nothing waits to be committed; the database then has all of it.

Invariants: `tail` is the offset of the last *committed and fanned-out* message; `assigned` is the offset last given to
a message that waits for its commit (equal to `tail` when none waits); the two `_bytes` count the
topic's bytes since it was made, up to the same two messages; offsets of a topic are consecutive, and a group
that could not be committed gives its offsets back. `doubtful` says that a
group may have been written although its commit failed, so `tail` has to be read again before offsets are given out.
`head` is for topics that others write to as well: the offset of the last message that is known to be
committed, which was offered if it is not behind `tail` (follower.py); elsewhere it is 0. `waiting` counts what needs this very object: messages and cursors
that wait for a commit, and sessions that have looked the topic up and not yet closed their subscription. `watchers` of the subscribers
only look on (tail.py): that they are there does not mean that anybody receives. Messages up to `base` are not missed by a consumer that has
no position. `sweep_bytes` is the value of `tail_bytes` from which on retention is to look at the topic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from aether_trio.delivery.outbox import Outbox


NOTED: Final = 2**62
"""`sweep_bytes` of a topic that retention has been told of."""


class Subscriber(Protocol):
    """Somebody who wants each committed message of a topic, in order."""

    reads: bool
    """Whether it wants every message that others commit. If not, it is told to look, and takes what it wants from the database itself."""

    def offer(self, offset: int, frame: bytes, touched: set[Outbox]) -> None:
        """Take the message or note that it must be read from the log later. Never blocks, never raises.

        Adds the outbox that now has something to write to `touched`, so that a burst costs one write.
        """
        ...

    def look(self) -> None:
        """The tail has moved without an offer: what is new is to be read from the log. Never blocks, never raises."""
        ...

    def renew(self) -> None:
        """Have retention see that the consumer's position is in use. Never blocks, never raises."""
        ...


class TopicState:
    """See the module docstring. `topic_id` is None until the topic has a row in the database."""

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
        return f"<TopicState {self.name} id={self.topic_id} tail={self.tail} subscribers={len(self.subscribers)}>"

    @property
    def is_read(self) -> bool:
        """Whether messages that others commit have to be read for somebody here."""
        return any(subscriber.reads for subscriber in self.subscribers)

    def look(self) -> None:
        """Have all subscribers look."""
        for subscriber in list(self.subscribers):
            subscriber.look()

    @property
    def end(self) -> int:
        """The offset of the last message that is known to be committed: whoever wants only what is new starts behind it."""
        return max(self.tail, self.head)

    def deleted(self) -> None:
        """The topic has no row any more: all messages that it had are gone, and nobody is to miss them."""
        self.topic_id = None
        self.base = self.end

    @property
    def forgettable(self) -> bool:
        """Whether the database knows all that this object knows."""
        return not self.subscribers and not self.waiting
