"""Gateway state: KV, checkpoints and when each identity was last seen.

`kv_entries` and `kv_members` are keyed by (space, key). A space is one namespace of the protocol's scopes, written so that two
different namespaces can never be the same text (services/kv/spaces.py). `expires_ms` is NULL for what never expires;
the partial indexes hold only rows that do.
"""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final = (
    (
        """CREATE TABLE kv_entries (
            space TEXT {byte_order} NOT NULL,
            key TEXT {byte_order} NOT NULL,
            value {blob},
            expires_ms {bigint},
            PRIMARY KEY (space, key)
        )""",
        "CREATE INDEX kv_expiry ON kv_entries (expires_ms) WHERE expires_ms IS NOT NULL",
        """CREATE TABLE kv_members (
            space TEXT {byte_order} NOT NULL,
            key TEXT {byte_order} NOT NULL,
            member {blob} NOT NULL,
            PRIMARY KEY (space, key, member),
            FOREIGN KEY (space, key) REFERENCES kv_entries (space, key) ON DELETE CASCADE
        ) {clustered}""",
        """CREATE TABLE checkpoints (
            identity TEXT {byte_order} NOT NULL,
            key TEXT {byte_order} NOT NULL,
            data {blob} NOT NULL,
            saved_s {bigint} NOT NULL,
            expires_ms {bigint},
            PRIMARY KEY (identity, key)
        )""",
        "CREATE INDEX checkpoint_expiry ON checkpoints (expires_ms) WHERE expires_ms IS NOT NULL",
        """CREATE TABLE presence (
            identity TEXT PRIMARY KEY,
            last_seen_ms {bigint} NOT NULL,
            session_id TEXT NOT NULL,
            initial_connection_ms {bigint} NOT NULL,
            reconnections {bigint} NOT NULL
        ) {clustered}""",
    ),
)
