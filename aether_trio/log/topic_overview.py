"""Reads what topics hold: messages, bytes and consumers, from indexes alone.

Offsets of a topic are consecutive and `topic_bytes` only grows, so the first and the last message
say how many messages and bytes there are. No query reads a table whole: a page of topics costs a
few look-ups for each, whatever the topics hold.

The position of a consumer is the written one, up to a quarter of a second old.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aether_trio.log.message_keys import OFFSET_BITS, offset_of
from aether_trio.storage.base import Fetch, Program, Row

MAX_COUNTED: Final = 1000
"""Consumers of a topic that an overview counts; with more it says one more."""

_OF_TOPIC: Final = f"m.message_key > (t.id << {OFFSET_BITS}) AND m.message_key < ((t.id + 1) << {OFFSET_BITS})"
_COUNTED: Final = f"(SELECT c.msg_offset FROM cursors c WHERE c.topic_id = t.id LIMIT {MAX_COUNTED + 1}) AS counted"  # noqa: S608
_OVERVIEW: Final = f"""
    SELECT p.name, p.id, p.floor_offset, p.consumers, p.lowest, p.first_key, p.last_key,
        (SELECT m.ts_ms FROM messages m WHERE m.message_key = p.first_key),
        (SELECT m.topic_bytes - LENGTH(m.data) FROM messages m WHERE m.message_key = p.first_key),
        (SELECT m.ts_ms FROM messages m WHERE m.message_key = p.last_key),
        (SELECT m.topic_bytes FROM messages m WHERE m.message_key = p.last_key)
    FROM (
        SELECT t.name, t.id, t.floor_offset,
            (SELECT COUNT(*) FROM {_COUNTED}) AS consumers,
            (SELECT MIN(counted.msg_offset) FROM {_COUNTED}) AS lowest,
            (SELECT m.message_key FROM messages m WHERE {_OF_TOPIC} ORDER BY m.message_key LIMIT 1) AS first_key,
            (SELECT m.message_key FROM messages m WHERE {_OF_TOPIC} ORDER BY m.message_key DESC LIMIT 1) AS last_key
        FROM topics t WHERE {{0}} ORDER BY t.name LIMIT $1
    ) AS p ORDER BY p.name"""  # noqa: S608  # constants


@dataclass(frozen=True, slots=True)
class TopicOverview:
    """What a topic holds; 0 stands for none. Times are Unix ms."""

    name: str
    topic_id: int
    messages: int
    retained_bytes: int
    first: int
    """Offset of the oldest message, or of the next one if there is none."""
    tail: int
    """Offset of the last message, also if it was deleted."""
    oldest_ms: int
    newest_ms: int
    consumers: int
    """At most MAX_COUNTED + 1."""
    most_behind: int
    """The largest lag of its consumers, of MAX_COUNTED + 1 at most."""

    def lag(self, position: int) -> int:
        """Return how many of the messages a consumer at `position` has not read."""
        return max(0, self.tail - max(position, self.first - 1))


@dataclass(frozen=True, slots=True)
class TopicConsumer:
    """A consumer of a topic: how far it has read, and when that was last written."""

    name: str
    position: int
    moved_ms: int


def topics_between(after: str, low: str, high: str, most: int) -> Program[list[TopicOverview]]:
    """Read the topics with low <= name <= high and name > after, in their order."""
    where = "t.name > $2 AND t.name >= $3 AND t.name <= $4"
    rows: list[Row] = yield Fetch(_OVERVIEW.format(where), (most, after, low, high))
    return [_overview(row) for row in rows]


def one_topic(name: str) -> Program[TopicOverview | None]:
    """Read one topic, or None if there is none of that name."""
    rows: list[Row] = yield Fetch(_OVERVIEW.format("t.name = $2"), (1, name))
    return _overview(rows[0]) if rows else None


def names_between(after: str, low: str, high: str, most: int) -> Program[list[str]]:
    """Read names of topics with low <= name <= high and name > after."""
    rows: list[Row] = yield Fetch(
        "SELECT name FROM topics WHERE name > $1 AND name >= $2 AND name <= $3 ORDER BY name LIMIT $4",
        (after, low, high, most),
    )
    return [name for (name,) in rows]


def consumers_of(topic_id: int, after: str, most: int) -> Program[list[TopicConsumer]]:
    """Read a page of a topic's consumers, in the order of their names."""
    rows: list[Row] = yield Fetch(
        "SELECT consumer, msg_offset, updated_ms FROM cursors WHERE topic_id = $1 AND consumer > $2 "
        "ORDER BY consumer LIMIT $3",
        (topic_id, after, most),
    )
    return [TopicConsumer(*row) for row in rows]


def _overview(row: Row) -> TopicOverview:
    name, topic_id, floor, consumers, lowest, first_key, last_key, oldest_ms, bytes_before, newest_ms, bytes_upto = row
    if first_key is None or last_key is None or bytes_upto is None or bytes_before is None:
        return TopicOverview(name, topic_id, 0, 0, floor + 1, floor, 0, 0, consumers, 0)
    first, last = offset_of(first_key), offset_of(last_key)
    tail = max(last, floor)
    lag = max(0, tail - max(lowest, first - 1)) if lowest is not None else 0
    return TopicOverview(
        name,
        topic_id,
        last - first + 1,
        bytes_upto - bytes_before,
        first,
        tail,
        oldest_ms or 0,
        newest_ms or 0,
        consumers,
        lag,
    )
