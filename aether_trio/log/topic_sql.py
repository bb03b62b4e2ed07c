"""The SQL of the topic log: SQLite's, and what PostgreSQL shares of it.

The functions of the protocol `TopicSql` are SQLite's here, where one node writes the file;
PostgreSQL, where several nodes write, has its own in topic_sql_postgres.py.

Offsets start at 1; a cursor of 0 has seen no message. A topic's tail is the larger of its last
message and its `floor_offset`, which retention raises when it deletes. So a topic whose messages
have all expired never gives out an offset twice. As one node writes the file, it counts tails in
memory, and writes no counter row per message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Protocol

from aether_trio.log.message_keys import key_of, offset_of
from aether_trio.storage.base import Execute, ExecuteMany, Fetch, Program, Row, Value
from aether_trio.storage.partitions import PartitionedTable

ROWS_PER_INSERT = 128
"""Rows in one INSERT: one release of Python's lock for many rows of 4 parameters."""

_COLUMNS = 4

MESSAGES: Final = PartitionedTable("messages")
"""PostgreSQL only: tables by time."""

CursorRow = tuple[int, str, int, int]
"""(topic id, consumer, offset, now_ms)"""
PublisherRow = tuple[str, bytes, bytes, int]
"""(identity, publisher, its sequence numbers, now_ms)"""


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """A topic's id, end and one consumer's cursor, as the database has them.

    `topic_id` is None for a topic without a row. A consumer without a cursor starts behind `base`:
    no message at or before it counts as missed.
    """

    topic_id: int | None
    tail: int
    total_bytes: int
    cursor: int | None
    base: int = 0


class TopicSql(Protocol):
    """The SQL programs of the log of which SQLite and PostgreSQL each have a version."""

    def create_topics(self, names: Sequence[str], now_ms: int) -> Program[dict[str, TopicFacts]]: ...

    def delete_topics(self, topic_ids: Sequence[int]) -> Program[list[int]]: ...

    def many_topic_facts(self, wanted: Sequence[tuple[str, str | None]]) -> Program[list[TopicFacts]]: ...

    def read_page(self, topic_id: int, after: int, upto: int, rows: int, max_bytes: int) -> Program[list[Row]]: ...

    def read_some(self, topic_id: int, offsets: Sequence[int]) -> Program[list[Row]]: ...


@lru_cache(maxsize=ROWS_PER_INSERT + 1)
def _insert_sql(rows: int) -> str:
    groups = ", ".join(
        "(" + ", ".join(f"${row * _COLUMNS + column + 1}" for column in range(_COLUMNS)) + ")" for row in range(rows)
    )
    return f"INSERT INTO messages (message_key, ts_ms, topic_bytes, data) VALUES {groups}"  # noqa: S608  # only $n


def create_topics(names: Sequence[str], now_ms: int) -> Program[dict[str, TopicFacts]]:
    """Make missing rows of topics, behind all deleted topics' offsets; return facts."""
    found: dict[str, TopicFacts] = {}
    for name in names:
        yield Execute(
            "INSERT INTO topics (name, floor_offset, base_offset, checked_ms) "
            "SELECT $1, f.floor_offset, f.floor_offset, $2 FROM "
            "(SELECT COALESCE(MAX(floor_offset), 0) AS floor_offset FROM topic_floor) AS f WHERE true "
            "ON CONFLICT (name) DO NOTHING",
            (name, now_ms),
        )
        found[name] = yield from topic_facts(name, None)
    return found


def delete_topics(topic_ids: Sequence[int]) -> Program[list[int]]:
    """Delete those topics that still have no message and position; return their ids."""
    gone: list[int] = []
    floor = 0
    for topic_id in topic_ids:
        rows: list[Row] = yield Fetch(
            "DELETE FROM topics WHERE id = $1 AND emptied_ms > 0 "
            "AND NOT EXISTS (SELECT 1 FROM messages WHERE message_key > $2 AND message_key < $3) "
            "AND NOT EXISTS (SELECT 1 FROM cursors WHERE topic_id = $1) RETURNING floor_offset",
            (topic_id, key_of(topic_id, 0), key_of(topic_id + 1, 0)),
        )
        for (end,) in rows:
            gone.append(topic_id)
            floor = max(floor, end)
    if gone:
        yield raise_floor(floor)
    return gone


def raise_floor(offset: int) -> Execute:
    """Have new topics' offsets begin behind this offset, or behind a later one."""
    return Execute(
        "INSERT INTO topic_floor (id, floor_offset) VALUES (1, $1) ON CONFLICT (id) DO UPDATE "
        "SET floor_offset = excluded.floor_offset WHERE topic_floor.floor_offset < excluded.floor_offset",
        (offset,),
    )


def topic_names(after: str, count: int) -> Program[list[str]]:
    """Read a page of topics' names in their order."""
    rows: list[Row] = yield Fetch("SELECT name FROM topics WHERE name > $1 ORDER BY name LIMIT $2", (after, count))
    return [name for (name,) in rows]


def publisher_names(after: str, count: int) -> Program[list[str]]:
    """Read a page of the identities that have a publisher, in their order."""
    wanted = "SELECT identity FROM publishers WHERE identity > $1 ORDER BY identity LIMIT $2"
    rows: list[Row] = yield Fetch(wanted, (after, count))
    return [identity for (identity,) in rows]


def topic_facts(name: str, consumer: str | None) -> Program[TopicFacts]:
    """Read a topic's id and tail, and the cursor of `consumer`, if one is named."""
    rows: list[Row] = yield Fetch(
        "SELECT id, floor_offset, floor_bytes, base_offset FROM topics WHERE name = $1", (name,)
    )
    if not rows:
        return TopicFacts(None, 0, 0, None)
    topic_id, tail, total_bytes, base = rows[0]
    last = yield from last_message(topic_id)
    if last is not None and last[0] > tail:
        tail, total_bytes = last
    cursor = None
    if consumer is not None:
        rows = yield Fetch("SELECT msg_offset FROM cursors WHERE topic_id = $1 AND consumer = $2", (topic_id, consumer))
        cursor = rows[0][0] if rows else None
    return TopicFacts(topic_id, tail, total_bytes, cursor, base)


def last_message(topic_id: int) -> Program[tuple[int, int] | None]:
    """Read (offset, topic_bytes) of a topic's newest message that is still there."""
    rows: list[Row] = yield Fetch(
        "SELECT message_key, topic_bytes FROM messages WHERE message_key > $1 AND message_key < $2 "
        "ORDER BY message_key DESC LIMIT 1",
        (key_of(topic_id, 0), key_of(topic_id + 1, 0)),
    )
    return (offset_of(rows[0][0]), rows[0][1]) if rows else None


def many_topic_facts(wanted: Sequence[tuple[str, str | None]]) -> Program[list[TopicFacts]]:
    """Read ids, tails and cursors of several (topic, consumer) pairs."""
    facts = []
    for name, consumer in wanted:
        facts.append((yield from topic_facts(name, consumer)))
    return facts


def append_messages(
    flat: Sequence[Value], cursors: Sequence[CursorRow], numbers: Sequence[PublisherRow] = ()
) -> Program[None]:
    """Write a commit group; `flat` has key, ts_ms, topic_bytes, data of each message."""
    step = ROWS_PER_INSERT * _COLUMNS
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        yield Execute(_insert_sql(len(part) // _COLUMNS), part)
    if cursors:
        yield from save_cursors(cursors)
    if numbers:
        yield ExecuteMany(
            "INSERT INTO publishers (identity, publisher, numbers, updated_ms) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (identity) DO UPDATE SET publisher = excluded.publisher, numbers = excluded.numbers, "
            "updated_ms = excluded.updated_ms",
            numbers,
        )


def save_cursors(cursors: Sequence[CursorRow]) -> Program[None]:
    """Write cursors (topic_id, consumer, offset, now_ms); none moves back."""
    yield ExecuteMany(
        "INSERT INTO cursors (topic_id, consumer, msg_offset, updated_ms) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (topic_id, consumer) DO UPDATE SET msg_offset = excluded.msg_offset, "
        "updated_ms = excluded.updated_ms WHERE excluded.msg_offset >= cursors.msg_offset",
        cursors,
    )


def publisher_numbers(identity: str) -> Program[list[Row]]:
    """Read (publisher, numbers, updated_ms) of an identity's latest publisher."""
    rows: list[Row] = yield Fetch(
        "SELECT publisher, numbers, updated_ms FROM publishers WHERE identity = $1", (identity,)
    )
    return rows


def sweep_publishers(used: Sequence[tuple[str, bytes, int]], before_ms: int) -> Program[int]:
    """Renew `used` publishers; delete those older than `before_ms`; return how many."""
    if used:
        yield ExecuteMany("UPDATE publishers SET updated_ms = $3 WHERE identity = $1 AND publisher = $2", used)
    deleted: int = yield Execute("DELETE FROM publishers WHERE updated_ms < $1", (before_ms,))
    return deleted


def probe_write() -> Program[None]:
    """Write a row without a change, which fails when a commit group would fail."""
    yield Execute("UPDATE schema_version SET version = version")


def read_page(topic_id: int, after: int, upto: int, rows: int, max_bytes: int) -> Program[list[Row]]:
    """Read a topic's messages (offset, ts_ms, data) with after < offset <= upto.

    At most `rows` of them, and no more than `max_bytes` unless a single message is larger. Sizes
    are read first, so that no message is read that the page has no room for.
    """
    sizes: list[Row] = yield Fetch(
        "SELECT message_key, LENGTH(data) FROM messages WHERE message_key > $1 AND message_key <= $2 "
        "ORDER BY message_key LIMIT $3",
        (key_of(topic_id, after), key_of(topic_id, upto), rows),
    )
    if not sizes:
        return []
    last, total = sizes[0]
    for key, size in sizes[1:]:
        total += size
        if total > max_bytes:
            break
        last = key
    page: list[Row] = yield Fetch(
        "SELECT message_key, ts_ms, data FROM messages WHERE message_key > $1 AND message_key <= $2 "
        "ORDER BY message_key",
        (key_of(topic_id, after), last),
    )
    return [(offset_of(key), ts_ms, data) for key, ts_ms, data in page]


def read_topics(
    sql: TopicSql, wanted: Sequence[tuple[str, int]], rows: int, max_bytes: int
) -> Program[list[tuple[list[Row], bool]]]:
    """Read a page (offset, ts_ms, data) of each topic, and whether there is more."""
    facts = yield from sql.many_topic_facts([(name, None) for name, _ in wanted])
    found: list[tuple[list[Row], bool]] = []
    for (_, after), fact in zip(wanted, facts, strict=True):
        page: list[Row] = []
        more = fact.topic_id is not None and fact.tail > after
        if fact.topic_id is not None and more and max_bytes > 0:
            page = yield from sql.read_page(fact.topic_id, after, fact.tail, rows, max_bytes)
            more = bool(page) and page[-1][0] < fact.tail
            max_bytes -= sum(len(data) for _, _, data in page)
        found.append((page, more))
    return found


def message_times(topic_id: int, first: int, last: int) -> Program[dict[int, int]]:
    """Read the times (Unix ms) of a topic's messages with first <= offset <= last."""
    rows: list[Row] = yield Fetch(
        "SELECT message_key, ts_ms FROM messages WHERE message_key >= $1 AND message_key <= $2",
        (key_of(topic_id, first), key_of(topic_id, last)),
    )
    return {offset_of(key): ts_ms for key, ts_ms in rows}


def read_some(topic_id: int, offsets: Sequence[int]) -> Program[list[Row]]:
    """Read a topic's messages (offset, data) at these offsets that still exist."""
    found: list[Row] = []
    for offset in offsets:
        rows: list[Row] = yield Fetch("SELECT data FROM messages WHERE message_key = $1", (key_of(topic_id, offset),))
        found += [(offset, row[0]) for row in rows]
    return found
