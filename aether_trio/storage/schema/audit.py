"""Tables of the audit log, its Merkle trees and their signed heads.

`audit_log` has a row for each event (model/audit.py). `audit_id` is the number of the row's tree
and of its leaf there. `at_ms` is when it happened; `ts_ms` is when it was stored, which never
decreases within a tree and is not before `at_ms`. So the rows that are too old are a prefix of each
tree, and PostgreSQL, which partitions the table by `ts_ms`, drops whole tables of them.
`leaf_hash` is the hash of the row's leaf, so that a changed row is found by its number.

`audit_trees` has a row for each tree, which belongs to one signing key, and so to one node.
`origin` is its name in signed heads, `node` the node that began it. The transaction that appends
rows first raises `size`, which locks the tree; `frontier` are the hashes that the tree needs to
grow (model/access/merkle.py), `last_ms` the newest `ts_ms`. `batch` is the number of the last batch
of its AuditWriter, by which a batch is not written twice. Retention has deleted the leaves before
`floor_size`; `floor_frontier` stands for them, so that the rest stays provable.

`audit_heads` are signed heads: a signed note each, with the frontier at its size.

Filters of audit queries have an index each. In each of them rows are in order of time.
"""

from __future__ import annotations

from typing import Final

_FILTERED: Final = ("event_type", "operation", "actor_id", "resource_id", "workspace", "subject_id")

STATEMENTS: Final = (
    """CREATE TABLE audit_trees (
        tree {bigint} PRIMARY KEY,
        origin TEXT {byte_order} NOT NULL UNIQUE,
        node TEXT NOT NULL,
        public_key {blob} NOT NULL,
        began_ms {bigint} NOT NULL,
        size {bigint} NOT NULL DEFAULT 0,
        frontier {blob} NOT NULL,
        last_ms {bigint} NOT NULL DEFAULT 0,
        batch {bigint} NOT NULL DEFAULT 0,
        floor_size {bigint} NOT NULL DEFAULT 0,
        floor_frontier {blob} NOT NULL
    )""",
    """CREATE TABLE audit_log (
        audit_id {timed_key},
        at_ms {bigint} NOT NULL,
        ts_ms {bigint} NOT NULL,
        success INTEGER NOT NULL,
        event_type TEXT {byte_order} NOT NULL,
        operation TEXT {byte_order} NOT NULL,
        actor_type TEXT {byte_order} NOT NULL,
        actor_id TEXT {byte_order} NOT NULL,
        resource_type TEXT {byte_order} NOT NULL,
        resource_id TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        session_id TEXT {byte_order} NOT NULL,
        gateway_id TEXT {byte_order} NOT NULL,
        error_message TEXT NOT NULL,
        source TEXT NOT NULL,
        authority_mode TEXT NOT NULL,
        subject_type TEXT {byte_order} NOT NULL,
        subject_id TEXT {byte_order} NOT NULL,
        root_subject_type TEXT {byte_order} NOT NULL,
        root_subject_id TEXT {byte_order} NOT NULL,
        authority_grant_id TEXT {byte_order} NOT NULL,
        root_authority_grant_id TEXT NOT NULL,
        parent_authority_grant_id TEXT NOT NULL,
        metadata TEXT NOT NULL,
        leaf_hash {blob} NOT NULL
        {audit_key}
    ) {by_time}""",
    "CREATE INDEX audit_log_time ON audit_log (at_ms, audit_id)",
    *(f"CREATE INDEX audit_log_{column} ON audit_log ({column}, at_ms, audit_id)" for column in _FILTERED),
    "CREATE INDEX audit_log_failures ON audit_log (at_ms, audit_id) WHERE success = 0",
    "CREATE INDEX audit_log_grants ON audit_log (authority_grant_id, at_ms, audit_id) WHERE authority_grant_id <> ''",
    "CREATE INDEX audit_log_delegated ON audit_log (at_ms, audit_id) WHERE authority_mode <> 'direct'",
    """CREATE TABLE audit_heads (
        tree {bigint} NOT NULL,
        size {bigint} NOT NULL,
        at_ms {bigint} NOT NULL,
        frontier {blob} NOT NULL,
        note TEXT NOT NULL,
        PRIMARY KEY (tree, size, at_ms)
    ) {clustered}""",
)
