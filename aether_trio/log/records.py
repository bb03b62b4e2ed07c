"""What is set for the topic log, who writes to it, and what it tells of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from aether_trio.delivery.outbox import Outbox
from aether_trio.log.publishers import Publisher
from aether_trio.log.topic_state import TopicState
from aether_trio.model.errors import AetherError, Code
from aether_trio.storage.base import CommitUnknown, StorageUnavailable

RETRY_PUBLISH_MS: Final = 1000
"""When a sender may try again after the log could not be written."""


def not_stored(error: StorageUnavailable) -> AetherError:
    """What is said of messages whose group was not committed, as far as that is known."""
    if isinstance(error, CommitUnknown):
        return AetherError(Code.OUTCOME_UNKNOWN, f"it is not known whether the message was stored: {error}")
    return AetherError(Code.PUBLISH_FAILED, f"the message was not stored: {error}", retry_after_ms=RETRY_PUBLISH_MS)


@dataclass(frozen=True, slots=True)
class LogLimits:
    """`pending_bytes`/`pending_messages` wait for a commit at most; a group takes at most
    `group_messages`, and about `group_bytes`."""

    pending_bytes: int = 16 * 1024 * 1024
    pending_messages: int = 20_000
    group_messages: int = 4_000
    group_bytes: int = 4 * 1024 * 1024
    cursor_flush_s: float = 0.25
    partition_ms: int = 3 * 3600 * 1000
    """Of a shared database only: how long a stretch of time lies in one table (partitions.py)."""


@dataclass(frozen=True, slots=True)
class LogStatistics:
    """Counters since start, and what waits now. `settled - refused` messages are durable."""

    appended: int
    settled: int
    refused: int
    groups: int
    pending_messages: int
    pending_bytes: int
    topics: int
    subscriptions: int
    storage_failing: bool
    followed_reads: int
    """Reads that brought what other nodes had committed, and the messages that they brought."""
    followed_rows: int


class Author(Protocol):
    """Who appends, and is told what becomes of it."""

    confirms: bool
    """Whether it wants `settled`, and may have a `publisher`; asked of every message, so a class attribute mostly."""
    publisher: Publisher | None
    """Whose numbers are committed with its messages."""

    def refused(self, number: int, error: AetherError) -> None:
        """The append with this sequence number could not be committed, or it is not known whether it was. One error for a group.

        One that `confirms` writes nothing before `settled`.
        """
        ...

    def settled(self, touched: set[Outbox]) -> None:
        """A group with appends of this author is settled; add the outboxes that now have something to say."""
        ...


Entry = tuple[TopicState, bytes, Author]
"""A message that waits for its commit."""

GroupReport = Callable[[float, int], None]
"""Told of each committed and offered group: seconds since its first message came, and how many messages it has."""
