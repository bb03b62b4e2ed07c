"""The topic log: what was sent, and how far each consumer has read.

Retention needs no index of its own. Within a topic both offset and time only grow, so what is too old is a prefix of
the primary key: a sweep seeks to each topic's first row and walks forward only as far as it deletes. `topics.bytes` is
kept up to date by the append that writes the topic's row anyway, so retention by size starts from a number, not a scan.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    (
        """CREATE TABLE topics (
            id {row_id},
            name TEXT NOT NULL UNIQUE,
            next_offset {bigint} NOT NULL,
            bytes {bigint} NOT NULL DEFAULT 0
        )""",
        """CREATE TABLE messages (
            topic_id {bigint} NOT NULL,
            msg_offset {bigint} NOT NULL,
            ts_ms {bigint} NOT NULL,
            data {blob} NOT NULL,
            PRIMARY KEY (topic_id, msg_offset)
        ) {clustered}""",
        """CREATE TABLE cursors (
            topic_id {bigint} NOT NULL,
            consumer TEXT NOT NULL,
            msg_offset {bigint} NOT NULL,
            updated_ms {bigint} NOT NULL,
            PRIMARY KEY (topic_id, consumer)
        ) {clustered}""",
    ),
)
