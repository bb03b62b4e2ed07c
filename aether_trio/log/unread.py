"""Finds how many messages each consumer has not read, for metrics; page by page.

A consumer is a row of `cursors`, or the owner of a topic that nothing has read yet. A page is one
short query, so that a log of a million topics delays neither a commit nor another read. On SQLite
messages that retention deleted do not count. On PostgreSQL they do until the position is forgotten:
the topic's row does not say what is deleted.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from aether_trio.log.message_keys import OFFSET_BITS, key_of, offset_of
from aether_trio.storage.base import Database, Fetch, Program, Row

PAGE: Final = 1000
TOP: Final = 20
OWNED: Final = frozenset({"ag", "tu", "tb", "us", "sv", "br", "event", "metric"})
"""Kinds of topics with one consumer, for which messages wait before it has ever been there."""
_PASSING: Final = "ta::"
"""Topics of one connection, whose consumer never comes back."""

_FIRST_KEY: Final = f"(t.id << {OFFSET_BITS})"
_NEXT_KEY: Final = f"((t.id + 1) << {OFFSET_BITS})"
_WITHIN: Final = f"m.message_key > {_FIRST_KEY} AND m.message_key < {_NEXT_KEY}"
_LAST: Final = f"COALESCE((SELECT MAX(m.message_key) FROM messages m WHERE {_WITHIN}) - {_FIRST_KEY}, 0)"  # noqa: S608
_PAGE: Final = (
    "SELECT id, name, consumer, position, tail - position FROM ("
    "SELECT t.id AS id, t.name AS name, c.consumer AS consumer, {position} AS position, {tail} AS tail "
    "FROM topics t LEFT JOIN cursors c ON c.topic_id = t.id WHERE t.id > $1 AND t.id <= $2) AS found "
    "WHERE tail > position"
)
_POSITION: Final = "COALESCE(c.msg_offset, t.base_offset)"
# The floor of a topic is the last message that retention deleted; on PostgreSQL, the last message.
_SQLITE: Final = _PAGE.format(
    position=f"CASE WHEN t.floor_offset > {_POSITION} THEN t.floor_offset ELSE {_POSITION} END", tail=_LAST
)
_POSTGRES: Final = _PAGE.format(position=_POSITION, tail="t.floor_offset")


@dataclass(frozen=True, slots=True)
class Lag:
    """Unread messages of one consumer.

    `oldest_ms` is when the oldest one that is kept was sent. `consumer` is "" for the owner of a
    topic that it has never read.
    """

    topic: str
    consumer: str
    messages: int
    oldest_ms: int | None = None


@dataclass(slots=True)
class Unread:
    """Unread messages by kind of topic, and the consumers that have the most."""

    by_kind: Counter[str] = field(default_factory=Counter)
    most: list[tuple[int, str, str, int, int]] = field(default_factory=list)
    """(messages, topic, consumer, topic id, position)"""

    def add(self, rows: list[Row]) -> None:
        """Count the rows of a page."""
        for topic_id, name, consumer, position, messages in rows:
            kind = name.partition("::")[0]
            if name.startswith(_PASSING) or (consumer is None and kind not in OWNED):
                continue
            self.by_kind[kind] += messages
            self.most.append((messages, name, consumer or "", topic_id, position))
        self.most = heapq.nlargest(TOP, self.most)


def page(after: int, *, shared: bool) -> Program[tuple[list[Row], int]]:
    """Read the consumers with unread messages of a page of topics.

    The next page begins behind the returned id; 0: there is none.
    """
    ids: list[Row] = yield Fetch("SELECT id FROM topics WHERE id > $1 ORDER BY id LIMIT $2", (after, PAGE))
    if not ids:
        return [], 0
    last = ids[-1][0]
    rows: list[Row] = yield Fetch(_POSTGRES if shared else _SQLITE, (after, last))
    return rows, last if len(ids) == PAGE else 0


async def oldest(database: Database, most: list[tuple[int, str, str, int, int]]) -> list[Lag]:
    """Read when the oldest unread messages were sent. Raises StorageUnavailable."""

    def program() -> Program[list[Lag]]:
        lags: list[Lag] = []
        for messages, topic, consumer, topic_id, position in most:
            first: list[Row] = yield Fetch(
                "SELECT message_key, ts_ms FROM messages WHERE message_key > $1 AND message_key < $2 "
                "ORDER BY message_key LIMIT 1",
                (key_of(topic_id, position), key_of(topic_id + 1, 0)),
            )
            if first:
                [(key, at_ms)] = first
                lags.append(Lag(topic, consumer, messages - (offset_of(key) - position - 1), at_ms))
        return lags

    return await database.read(program)
