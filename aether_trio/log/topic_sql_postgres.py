"""The SQL of the topic log on PostgreSQL, where it differs from topic_sql.py.

Several nodes write there. Only the database knows the next offset of a topic: `topics.floor_offset`
is the last one given out. A group raises it for all its topics, locked in the order of their ids,
in the statement that writes its messages. The locks last until the commit, so a topic's offsets
have no gaps and are committed in their order: a node that sees an offset can read all messages
before it.

A statement is a round trip, so a group is one statement: messages, cursors and publishers' numbers
are arrays. It may be sent again when its answer is lost: a writer numbers its groups, and a group
whose number is in the log already does nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from aether_trio.log.message_keys import OFFSET_BITS, key_of, offset_of
from aether_trio.log.topic_sql import CursorRow, PublisherRow, TopicFacts, raise_floor
from aether_trio.storage.base import FENCE_HERE, Execute, Fetch, Program, Row, StorageUnavailable, Value

DELETED: Final = -1
"""Stands in the place of an offset for a topic that has no row."""

PAYLOADS: Final = -1
"""Stands in the place of a topic's id for the number of payloads that were pushed."""

CREATE_TRIES: Final = 5
"""How often a topic is made again that another node deletes between two statements of this one."""

_FACTS: Final = """
    SELECT t.id, t.floor_offset, t.floor_bytes, c.msg_offset, t.base_offset
    FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (name, consumer, number)
    LEFT JOIN topics t ON t.name = w.name
    LEFT JOIN cursors c ON c.topic_id = t.id AND c.consumer = w.consumer
    ORDER BY w.number
"""

# Ids are scarce (OFFSET_BITS), and ON CONFLICT uses one up even when there is no row to insert.
_CREATE: Final = """
    INSERT INTO topics (name, floor_offset, base_offset, checked_ms)
    SELECT w.name, f.floor_offset, f.floor_offset, $2::bigint
    FROM unnest($1::text[]) AS w (name), (SELECT COALESCE(MAX(floor_offset), 0) AS floor_offset FROM topic_floor) AS f
    WHERE NOT EXISTS (SELECT 1 FROM topics t WHERE t.name = w.name)
    ON CONFLICT (name) DO NOTHING
"""

# A row of `topics` may be deleted (retention.py) while a node still has its id: a statement that
# names a deleted topic writes nothing.
_WITH_APPENDED: Final = f"""
    WITH locked AS MATERIALIZED (
        SELECT t.id FROM topics t WHERE t.id = ANY($4::bigint[]) ORDER BY t.id FOR UPDATE
    ), gone AS MATERIALIZED (
        SELECT w.id FROM unnest($4::bigint[]) AS w (id) WHERE w.id NOT IN (SELECT id FROM locked)
        UNION
        -- OFFSET 0: each by its key.
        SELECT m.id FROM unnest($11::bigint[]) AS m (id) WHERE (SELECT t.id FROM topics t WHERE t.id = m.id OFFSET 0) IS NULL
    ), fresh AS (
        INSERT INTO log_writers AS w (id, group_number, updated_ms) OVERRIDING SYSTEM VALUE
        SELECT $1::bigint, $2::bigint, $3::bigint FROM (SELECT {FENCE_HERE}) AS fence
        WHERE NOT EXISTS (SELECT 1 FROM gone)
        ON CONFLICT (id) DO UPDATE SET group_number = excluded.group_number, updated_ms = excluded.updated_ms
            WHERE w.group_number < excluded.group_number
        RETURNING id
    ), wanted AS (
        SELECT w.topic_id, w.messages, w.bytes
        FROM unnest($4::bigint[], $5::bigint[], $6::bigint[]) AS w (topic_id, messages, bytes)
        WHERE EXISTS (SELECT 1 FROM fresh)
    ), heads AS (
        UPDATE topics t SET floor_offset = t.floor_offset + w.messages, floor_bytes = t.floor_bytes + w.bytes
        FROM locked l JOIN wanted w ON w.topic_id = l.id
        WHERE t.id = l.id
        RETURNING t.id, t.floor_offset - w.messages AS before, t.floor_bytes - w.bytes AS bytes_before
    ), written AS (
        INSERT INTO messages (message_key, ts_ms, topic_bytes, data)
        SELECT (h.id << {OFFSET_BITS}) | (h.before + m.number), $3, h.bytes_before + m.bytes, m.data
        FROM unnest($7::bigint[], $8::bigint[], $9::bigint[], $10::bytea[]) AS m (topic_id, number, bytes, data)
        JOIN heads h ON h.id = m.topic_id
    ), moved AS (
        INSERT INTO cursors AS c (topic_id, consumer, msg_offset, updated_ms)
        SELECT m.topic_id, m.consumer, m.msg_offset, $3
        FROM unnest($11::bigint[], $12::text[], $13::bigint[]) AS m (topic_id, consumer, msg_offset)
        WHERE EXISTS (SELECT 1 FROM fresh)
        ORDER BY m.topic_id, m.consumer
        ON CONFLICT (topic_id, consumer) DO UPDATE SET msg_offset = excluded.msg_offset, updated_ms = excluded.updated_ms
            WHERE excluded.msg_offset >= c.msg_offset
    ), numbered AS (
        INSERT INTO publishers (identity, publisher, numbers, updated_ms)
        SELECT m.identity, m.publisher, m.numbers, $3
        FROM unnest($14::text[], $15::bytea[], $16::bytea[]) AS m (identity, publisher, numbers)
        WHERE EXISTS (SELECT 1 FROM fresh)
        ORDER BY m.identity
        ON CONFLICT (identity) DO UPDATE SET publisher = excluded.publisher, numbers = excluded.numbers,
            updated_ms = excluded.updated_ms
    )
"""  # noqa: S608  # a constant
_APPEND: Final = f"""
    {_WITH_APPENDED}
    SELECT id, before FROM heads UNION ALL SELECT 0, 0 FROM fresh UNION ALL SELECT id, {DELETED} FROM gone
"""  # noqa: S608  # a constant
# `heads` comes behind the locks, so `aether_push` finds nodes whose interest is committed by then.
_APPEND_AND_PUSH: Final = f"""
    {_WITH_APPENDED}, pushed AS MATERIALIZED (
        SELECT aether_push($17, array_agg(m.topic), array_agg((h.id << {OFFSET_BITS}) | (h.before + m.number)), array_agg(m.part), array_agg(m.data)) AS counts
        FROM unnest($7::bigint[], $8::bigint[], $10::bytea[], $18::text[], $19::int[]) AS m (topic_id, number, data, topic, part)
        JOIN heads h ON h.id = m.topic_id
        HAVING count(*) > 0
    )
    SELECT id, before FROM heads UNION ALL SELECT 0, coalesce((SELECT counts[1] FROM pushed), 0) FROM fresh
    UNION ALL SELECT {PAYLOADS}, counts[2] FROM pushed UNION ALL SELECT id, {DELETED} FROM gone
"""  # noqa: S608  # a constant


def _append_one(*, published: bool, pushed: bool) -> str:
    """Return the same for one message, at two thirds of the CPU, as nothing is a set."""
    first = 10 if published else 7  # parameter of the push
    numbered = """
    ), numbered AS (
        INSERT INTO publishers (identity, publisher, numbers, updated_ms)
        SELECT $7::text, $8::bytea, $9::bytea, $3 FROM fresh
        ON CONFLICT (identity) DO UPDATE SET publisher = excluded.publisher, numbers = excluded.numbers,
            updated_ms = excluded.updated_ms"""
    push = f"""
    ), pushed AS MATERIALIZED (
        SELECT aether_push_one(${first}, ${first + 1}, (id << {OFFSET_BITS}) | (before + 1), $6) AS nodes FROM head"""  # noqa: S608  # numbers of parameters
    notified = f"SELECT 0, nodes FROM pushed UNION ALL SELECT {PAYLOADS}, nodes FROM pushed"  # noqa: S608  # a constant
    return f"""
    WITH locked AS MATERIALIZED (
        SELECT t.id FROM topics t WHERE t.id = $4 FOR UPDATE
    ), fresh AS (
        INSERT INTO log_writers AS w (id, group_number, updated_ms) OVERRIDING SYSTEM VALUE
        SELECT $1::bigint, $2::bigint, $3::bigint FROM (SELECT {FENCE_HERE}) AS fence
        WHERE EXISTS (SELECT 1 FROM locked)
        ON CONFLICT (id) DO UPDATE SET group_number = excluded.group_number, updated_ms = excluded.updated_ms
            WHERE w.group_number < excluded.group_number
        RETURNING id
    ), head AS (
        UPDATE topics t SET floor_offset = t.floor_offset + 1, floor_bytes = t.floor_bytes + $5
        WHERE t.id = $4 AND EXISTS (SELECT 1 FROM fresh)
        RETURNING t.id, t.floor_offset - 1 AS before, t.floor_bytes AS bytes
    ), written AS (
        INSERT INTO messages (message_key, ts_ms, topic_bytes, data)
        SELECT (id << {OFFSET_BITS}) | (before + 1), $3, bytes, $6 FROM head{numbered if published else ""}{push if pushed else ""}
    )
    SELECT id, before FROM head UNION ALL {notified if pushed else "SELECT 0, 0 FROM fresh"}
    UNION ALL SELECT $4, {DELETED} WHERE NOT EXISTS (SELECT 1 FROM locked)
    """  # noqa: S608  # constants


_APPEND_ONE: Final = {
    (published, pushed): _append_one(published=published, pushed=pushed)
    for published in (False, True)
    for pushed in (False, True)
}
"""By whether the message has a publisher's number, and whether it is pushed."""

# A separate statement after the locks: it sees what was committed while they were waited for.
_DELETE: Final = f"""
    DELETE FROM topics t WHERE t.id = ANY($1::bigint[]) AND t.emptied_ms > 0
    AND NOT EXISTS (
        SELECT 1 FROM messages m WHERE m.message_key > t.id << {OFFSET_BITS} AND m.message_key < (t.id + 1) << {OFFSET_BITS}
    )
    AND NOT EXISTS (SELECT 1 FROM cursors c WHERE c.topic_id = t.id)
    AND NOT EXISTS (SELECT 1 FROM work_leases h WHERE h.topic_id = t.id)
    RETURNING t.id, t.floor_offset
"""  # noqa: S608  # a constant

_CLOSE: Final = """
    UPDATE log_writers SET group_number = CASE WHEN group_number < $2 THEN $2 + 1 ELSE group_number END WHERE id = $1
    RETURNING group_number
"""

# Sizes are summed before a message is fetched: length() of a stored value does not read it.
_PAGE: Final = """
    SELECT message_key, ts_ms, data FROM (
        SELECT message_key, ts_ms, data, row_number() OVER w AS number, sum(length(data)) OVER w AS total
        FROM (
            SELECT message_key, ts_ms, data FROM messages WHERE message_key > $1 AND message_key <= $2
            ORDER BY message_key LIMIT $3
        ) AS page
        WINDOW w AS (ORDER BY message_key)
    ) AS summed
    WHERE number = 1 OR total <= $4
    ORDER BY message_key
"""


# `cut`: there was more than this read may bring.
_TAILS: Final = f"""
    SELECT w.topic_id, p.message_key, p.data, p.cut
    FROM unnest($1::bigint[], $2::bigint[]) AS w (topic_id, tail)
    CROSS JOIN LATERAL (
        SELECT s.message_key, s.data, s.size = $3 OR s.size > count(*) OVER () AS cut FROM (
            SELECT m.message_key, m.data, count(*) OVER () AS size, row_number() OVER k AS number,
                sum(length(m.data)) OVER k AS total
            FROM (
                SELECT message_key, data FROM messages
                WHERE message_key > (w.topic_id << {OFFSET_BITS} | w.tail) AND message_key < (w.topic_id + 1) << {OFFSET_BITS}
                ORDER BY message_key LIMIT $3
            ) AS m
            WINDOW k AS (ORDER BY m.message_key)
        ) AS s
        WHERE s.number = 1 OR s.total <= $4
    ) AS p
    UNION ALL
    SELECT w.topic_id, NULL, NULL, NULL FROM unnest($1::bigint[]) AS w (topic_id)
    WHERE (SELECT t.id FROM topics t WHERE t.id = w.topic_id OFFSET 0) IS NULL
    ORDER BY 1, 2
"""  # noqa: S608  # a constant

TailRow = tuple[int, int, bytes, bool]
"""(topic id, offset, frame, whether the topic has more messages than were read)"""


@dataclass(frozen=True, slots=True)
class CommitGroup:
    """The rows of one commit group; `messages` are (topic id, frame) in order."""

    writer: int
    number: int
    now_ms: int
    messages: Sequence[tuple[int, bytes]]
    cursors: Sequence[CursorRow]
    publishers: Sequence[PublisherRow]
    push: Push | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """The node that pushes a group; a topic and a payload's number for each message."""

    node_id: int
    topics: Sequence[str]
    parts: Sequence[int]


def new_writer(now_ms: int) -> Fetch:
    """Make a row whose id identifies this process's log writer until it ends."""
    return Fetch("INSERT INTO log_writers (group_number, updated_ms) VALUES (0, $1) RETURNING id", (now_ms,))


def close_group(writer: int, number: int) -> Fetch:
    """Use up a commit group's number, so that a late write of the group does nothing.

    The answer is one row: `number` if the group was written before, else the next number. The
    statement may be sent again, if the writer does not use the next number.
    """
    return Fetch(_CLOSE, (writer, number))


def append_group(group: CommitGroup) -> Fetch:
    """Write a commit group, unless it was written before.

    The answer is (topic id, the topic's last offset before the group) for each topic, and a row (0,
    n). Without the row of 0 nothing was written: rows (topic id, DELETED) name the topics that are
    to be made again; without any row, the group had been written before. With a push, n is the
    number of (message, node) that were pushed, and there is a row (PAYLOADS, payloads).
    """
    if len(group.messages) == 1 and not group.cursors:
        return _append_one_message(group)
    counts: dict[int, int] = {}
    sizes: dict[int, int] = {}
    topic_ids: list[Value] = []
    numbers: list[Value] = []
    bytes_so_far: list[Value] = []
    frames: list[Value] = []
    for topic_id, frame in group.messages:
        counts[topic_id] = counts.get(topic_id, 0) + 1
        sizes[topic_id] = sizes.get(topic_id, 0) + len(frame)
        topic_ids.append(topic_id)
        numbers.append(counts[topic_id])
        bytes_so_far.append(sizes[topic_id])
        frames.append(frame)
    push = group.push
    return Fetch(
        _APPEND if push is None else _APPEND_AND_PUSH,
        (
            group.writer,
            group.number,
            group.now_ms,
            list(counts),
            list(counts.values()),
            list(sizes.values()),
            topic_ids,
            numbers,
            bytes_so_far,
            frames,
            *_columns(group.cursors, 3),
            # A statement writes a row once: of two publishers of one identity the later one stays.
            *_columns(list({row[0]: row for row in group.publishers}.values()), 3),
            *(() if push is None else (push.node_id, push.topics, push.parts)),
        ),
    )


def _append_one_message(group: CommitGroup) -> Fetch:
    [(topic_id, frame)] = group.messages
    push = group.push
    args: list[Value] = [group.writer, group.number, group.now_ms, topic_id, len(frame), frame]
    if group.publishers:
        args += group.publishers[-1][:3]
    if push is not None:
        args += (push.node_id, push.topics[0])
    return Fetch(_APPEND_ONE[bool(group.publishers), push is not None], args)


def _columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    return [[row[column] for row in rows] for column in range(count)]


def create_topics(names: Sequence[str], now_ms: int) -> Program[dict[str, TopicFacts]]:
    """Make the missing rows of topics, whose names are sorted; return facts by name."""
    for _ in range(CREATE_TRIES):
        yield Execute(_CREATE, (names, now_ms))
        facts = yield from many_topic_facts([(name, None) for name in names])
        if all(fact.topic_id is not None for fact in facts):
            return dict(zip(names, facts, strict=True))
    raise StorageUnavailable("topics were deleted by another node as fast as this one made them; try again")


def delete_topics(topic_ids: Sequence[int]) -> Program[list[int]]:
    """Delete unused topics to which no node subscribes; return their ids."""
    yield Fetch("SELECT id FROM topics WHERE id = ANY($1::bigint[]) ORDER BY id FOR UPDATE", (topic_ids,))
    [[interest]] = yield Fetch("SELECT to_regclass('topic_interest') IS NOT NULL")
    if interest:  # else this gateway is the only node on its database
        rows: list[Row] = yield Fetch(
            "SELECT t.id FROM topics t WHERE t.id = ANY($1::bigint[]) AND NOT EXISTS ("
            'SELECT 1 FROM topic_interest i WHERE i.topic = t.name COLLATE "C")',
            (topic_ids,),
        )
        topic_ids = [row[0] for row in rows]
    gone: list[Row] = yield Fetch(_DELETE, (topic_ids,))
    ids = [row[0] for row in gone]
    if ids:
        yield Execute("DELETE FROM work_queues WHERE topic_id = ANY($1::bigint[])", (ids,))
        yield raise_floor(max(row[1] for row in gone))
    return ids


def many_topic_facts(wanted: Sequence[tuple[str, str | None]]) -> Program[list[TopicFacts]]:
    """Read ids, tails and cursors of several (topic, consumer) pairs."""
    rows: list[Row] = yield Fetch(_FACTS, _columns(wanted, 2))
    return [
        TopicFacts(topic_id, tail or 0, size or 0, cursor, base or 0) for topic_id, tail, size, cursor, base in rows
    ]


def read_page(topic_id: int, after: int, upto: int, rows: int, max_bytes: int) -> Program[list[Row]]:
    """Read a topic's messages (offset, ts_ms, data) with after < offset <= upto."""
    page: list[Row] = yield Fetch(_PAGE, (key_of(topic_id, after), key_of(topic_id, upto), rows, max_bytes))
    return [(offset_of(key), ts_ms, data) for key, ts_ms, data in page]


def read_some(topic_id: int, offsets: Sequence[int]) -> Program[list[Row]]:
    """Read a topic's messages (offset, data) at these offsets that still exist."""
    keys = [key_of(topic_id, offset) for offset in offsets]
    rows: list[Row] = yield Fetch(
        "SELECT message_key, data FROM messages WHERE message_key = ANY($1::bigint[])", (keys,)
    )
    found = {offset_of(key): data for key, data in rows}
    return [(offset, found[offset]) for offset in offsets if offset in found]


def read_tails(tails: Sequence[tuple[int, int]], rows: int, max_bytes: int) -> Program[list[TailRow]]:
    """Read the messages of these topics, (topic id, tail) each, behind their tails.

    At most `rows` and `max_bytes` of each topic, but one message at least. A topic that has been
    deleted has one row, with the offset DELETED.
    """
    found: list[Row] = yield Fetch(_TAILS, (*_columns(tails, 2), rows, max_bytes))
    return [
        (topic_id, DELETED, b"", False) if key is None else (topic_id, offset_of(key), frame, cut)
        for topic_id, key, frame, cut in found
    ]
