"""Tables of the topic log: messages, and how far each consumer has read.

A message's key is its topic's id and its offset in one integer (log/message_keys.py, `key_of`). In
SQLite that is the rowid, so messages lie in offset order by topic in a table tree; as `WITHOUT
ROWID (topic_id, msg_offset)` they took 3.5 times the space and twice the CPU.

Retention needs no index on messages. Within a topic offset, time and `topic_bytes` (bytes appended
to the topic since it was made, this message included) only grow. So the messages that are too old
or too many are a prefix of the primary key. `topics.floor_offset` and `floor_bytes` remember the
last message that retention deleted, so that an emptied topic goes on counting where it was; no
counter row is written per message.

`topics.checked_ms` says when retention looked at the topic, or when the next look is worth while
(log/retention.py). `emptied_ms` is the first look that found neither a message nor a position, 0 if
the last look found one; such a row is deleted after a while. Offsets stay unique all the same: the
deletion raises `topic_floor.floor_offset` to the end of the topic, and a new topic begins behind
it, at its `base_offset`. A consumer without a position also begins there; a position that is
forgotten raises it.

In PostgreSQL several nodes append. There `floor_offset` and `floor_bytes` are the last message
appended, whether or not it was deleted, because that row gives out the offsets. `messages` is
partitioned by time (storage/partitions.py). `log_writers` has the number of each process's last
group, for the case that it is not known whether the group was committed.

`log_identity` has 16 random bytes that tell this log from every other one: a gateway that stores
nothing counts offsets from 1 again after a restart. `publishers.numbers` are the sequence numbers
of an identity's latest publisher that are in the log, as ranges in MessagePack
(log/deduplication.py). Which node has which message of a work queue is in work_queues.py.
"""

from __future__ import annotations

from typing import Final

from aether_trio.storage.schema import work_queues

MIGRATIONS: Final = (
    (
        """CREATE TABLE topics (
            id {row_id},
            name TEXT {byte_order} NOT NULL UNIQUE,
            floor_offset {bigint} NOT NULL DEFAULT 0,
            floor_bytes {bigint} NOT NULL DEFAULT 0,
            base_offset {bigint} NOT NULL DEFAULT 0,
            checked_ms {bigint} NOT NULL DEFAULT 0,
            emptied_ms {bigint} NOT NULL DEFAULT 0
        )""",
        "CREATE INDEX topics_checked ON topics (checked_ms)",
        "CREATE TABLE topic_floor (id INTEGER PRIMARY KEY CHECK (id = 1), floor_offset {bigint} NOT NULL)",
        """CREATE TABLE messages (
            message_key {timed_key},
            ts_ms {bigint} NOT NULL,
            topic_bytes {bigint} NOT NULL,
            data {blob} NOT NULL
            {messages_key}
        ) {by_time}""",
        """CREATE TABLE cursors (
            topic_id {bigint} NOT NULL,
            consumer TEXT NOT NULL,
            msg_offset {bigint} NOT NULL,
            updated_ms {bigint} NOT NULL,
            PRIMARY KEY (topic_id, consumer)
        ) {clustered}""",
        """CREATE TABLE publishers (
            identity TEXT {byte_order} PRIMARY KEY,
            publisher {blob} NOT NULL,
            numbers {blob} NOT NULL,
            updated_ms {bigint} NOT NULL
        ) {clustered}""",
        "{log_writers}",
        *work_queues.STATEMENTS,
        "CREATE TABLE log_identity (id INTEGER PRIMARY KEY CHECK (id = 1), identity {blob} NOT NULL)",
    ),
)
