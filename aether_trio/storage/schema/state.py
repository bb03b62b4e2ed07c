"""Tables of KV entries, checkpoints, and when each identity was last seen.

A KV entry belongs to a space, one namespace of the protocol's scopes (services/kv/spaces.py). An
entry is a string (`value`) or a set (`members` counts its rows in kv_members). Names that clients
choose are byte strings: they may contain what a text column of an engine refuses, and their order
is that of their bytes. `expires_ms` is NULL for entries that never expire.

`kv_changes` has events of keys that wait to be moved to the tasks (services/kv/changes.py).

`kv_spaces` counts what a space has, expired entries that were not swept yet included: `items` are
values and members of sets, `units` are begun KiB, the sum of the `units` of its entries. Units are
that coarse so that most writes of an existing key change no count: a space is one row, for which
writers on all nodes of a cluster would wait. An empty space has no row.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    (
        """CREATE TABLE kv_entries (
            space {blob} NOT NULL,
            key {blob} NOT NULL,
            value {blob},
            members {bigint},
            units {bigint} NOT NULL DEFAULT 1,
            expires_ms {bigint},
            PRIMARY KEY (space, key),
            CHECK ((value IS NULL) <> (members IS NULL))
        )""",
        """CREATE TABLE kv_spaces (
            space {blob} PRIMARY KEY,
            items {bigint} NOT NULL,
            units {bigint} NOT NULL
        ) {clustered}""",
        "CREATE INDEX kv_expiry ON kv_entries (expires_ms) WHERE expires_ms IS NOT NULL",
        """CREATE TABLE kv_members (
            space {blob} NOT NULL,
            key {blob} NOT NULL,
            member {blob} NOT NULL,
            {member_key},
            FOREIGN KEY (space, key) REFERENCES kv_entries (space, key) ON DELETE CASCADE
        ) {clustered}""",
        """CREATE TABLE kv_changes (
            id {lasting_id},
            payload {blob} NOT NULL
        )""",
        """CREATE TABLE checkpoints (
            identity TEXT {byte_order} NOT NULL,
            key {blob} NOT NULL,
            data {blob} NOT NULL,
            saved_s {bigint} NOT NULL,
            expires_ms {bigint},
            PRIMARY KEY (identity, key)
        )""",
        "CREATE INDEX checkpoint_expiry ON checkpoints (expires_ms) WHERE expires_ms IS NOT NULL",
        """CREATE TABLE presence (
            identity TEXT {byte_order} PRIMARY KEY,
            last_seen_ms {bigint} NOT NULL,
            session_id TEXT NOT NULL,
            initial_connection_ms {bigint} NOT NULL,
            reconnections {bigint} NOT NULL,
            lock_epoch {bigint} NOT NULL
        ) {clustered}""",
        "CREATE INDEX presence_by_age ON presence (last_seen_ms)",
    ),
)
