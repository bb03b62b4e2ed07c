"""Tables of access rules, groups, roles, locks, and of their changes.

They lie in the database of the tasks, so a decision, its audit row and the wake of a task that
waits for it are one transaction.

`access_version` has one row, or none before the first change. Every change locks it first and
counts `version` up, so the changes of all nodes come one after another, and a row of
`access_changes` has what each one did: `items` is a JSON array of [kind, key, value], value null
for what was deleted. A node that knows version N reads the rows after N; one that is older than
`oldest` reads the tables anew. `seeded` names the rules with which the database began, "" before
that.

`api_tokens` has no secret: `token_hash` is the HMAC of a token's text under the key `key_id`, which
is not in the database, and `seal` is the HMAC of the row's columns up to `expires_ms`, so a row
that was written without the key lets in no client. `workspace_patterns` and `scopes` are JSON.

`quotas` has the limits of single workspaces that override the settings, by the limit's name; the
value is the text of a number. `rate_leases` has for each workspace with a message rate how it is
leased to the nodes (model/rate_lease.py), as JSON; `ends_ms` is when the last lease ends.

`access_seen` has the version that each node has applied. It is not logged: after a crash of the
server the nodes write it again.
"""

from __future__ import annotations

from typing import Final

from aether_trio.storage.schema import ForPostgres

STATEMENTS: Final = (
    """CREATE TABLE access_version (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        version {bigint} NOT NULL,
        oldest {bigint} NOT NULL,
        locked {bigint} NOT NULL,
        seeded TEXT NOT NULL
    )""",
    """CREATE TABLE access_changes (
        version {bigint} PRIMARY KEY,
        at_ms {bigint} NOT NULL,
        items {blob} NOT NULL
    )""",
    """CREATE TABLE access_rules (
        rule_id TEXT {byte_order} PRIMARY KEY,
        principal_type TEXT {byte_order} NOT NULL,
        principal_id TEXT {byte_order} NOT NULL,
        resource_type TEXT {byte_order} NOT NULL,
        resource_id TEXT {byte_order} NOT NULL,
        level INTEGER NOT NULL,
        granted_by TEXT {byte_order} NOT NULL,
        granted_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        reason TEXT NOT NULL
    )""",
    "CREATE UNIQUE INDEX access_rules_of ON access_rules (principal_type, principal_id, resource_type, resource_id)",
    "CREATE INDEX access_rules_expiry ON access_rules (expires_ms) WHERE expires_ms > 0",
    """CREATE TABLE access_fallbacks (
        category TEXT {byte_order} PRIMARY KEY,
        level INTEGER NOT NULL,
        updated_by TEXT {byte_order} NOT NULL,
        updated_ms {bigint} NOT NULL
    )""",
    """CREATE TABLE access_groups (
        kind TEXT {byte_order} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        group_id TEXT {byte_order} NOT NULL,
        description TEXT NOT NULL,
        created_by TEXT {byte_order} NOT NULL,
        created_ms {bigint} NOT NULL,
        metadata {blob} NOT NULL,
        PRIMARY KEY (kind, name)
    )""",
    """CREATE TABLE access_members (
        kind TEXT {byte_order} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        member_type TEXT {byte_order} NOT NULL,
        member_id TEXT {byte_order} NOT NULL,
        granted_by TEXT {byte_order} NOT NULL,
        granted_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        PRIMARY KEY (kind, name, member_type, member_id)
    )""",
    "CREATE INDEX access_members_of ON access_members (member_type, member_id)",
    "CREATE INDEX access_members_expiry ON access_members (expires_ms) WHERE expires_ms > 0",
    """CREATE TABLE access_locks (
        lock_id TEXT {byte_order} PRIMARY KEY,
        pattern TEXT {byte_order} NOT NULL,
        reason TEXT NOT NULL,
        locked_by TEXT {byte_order} NOT NULL,
        locked_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL
    )""",
    """CREATE TABLE api_tokens (
        token_id TEXT {byte_order} PRIMARY KEY,
        token_hash {blob} NOT NULL,
        key_id TEXT NOT NULL,
        name TEXT NOT NULL,
        principal_type TEXT NOT NULL,
        principal_id TEXT NOT NULL,
        workspace_patterns TEXT NOT NULL,
        scopes TEXT NOT NULL,
        maker TEXT NOT NULL,
        created_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        seal {blob} NOT NULL,
        updated_ms {bigint} NOT NULL,
        last_used_ms {bigint} NOT NULL,
        revoked_ms {bigint} NOT NULL
    )""",
    "CREATE UNIQUE INDEX api_tokens_by_hash ON api_tokens (token_hash)",
    "CREATE INDEX api_tokens_by_age ON api_tokens (created_ms, token_id)",
    """CREATE TABLE workspaces (
        workspace_id TEXT {byte_order} PRIMARY KEY,
        display_name TEXT NOT NULL,
        description TEXT NOT NULL,
        tenant_id TEXT NOT NULL,
        metadata {blob} NOT NULL,
        created_ms {bigint} NOT NULL,
        updated_ms {bigint} NOT NULL,
        created_by TEXT {byte_order} NOT NULL
    )""",
    """CREATE TABLE quotas (
        workspace TEXT {byte_order} NOT NULL,
        name TEXT {byte_order} NOT NULL,
        value TEXT NOT NULL,
        PRIMARY KEY (workspace, name)
    )""",
    """CREATE TABLE rate_leases (
        workspace TEXT {byte_order} PRIMARY KEY,
        leases {blob} NOT NULL,
        renewals {bigint} NOT NULL,
        ends_ms {bigint} NOT NULL
    )""",
    ForPostgres(
        """CREATE UNLOGGED TABLE access_seen (
            node INT NOT NULL,
            epoch {bigint} NOT NULL,
            version {bigint} NOT NULL,
            PRIMARY KEY (node, epoch)
        )"""
    ),
)
