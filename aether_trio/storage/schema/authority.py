"""Tables of authority grants and of requests for them.

`authority_grants` has a row for each grant. `details` is JSON: the patterns of the scope, reason
and metadata. `task_id` names the task whose own grant it is, with which it ends. `while_active` is
1 when a grant lasts no longer than its audience. `authority_lineage` has a row for each grant and
each grant of its lineage, itself included; `place` is the ancestor's from 1, the root's. So a
revocation is one row, and what is below it is found by `ancestor_id`. `authority_endings` are
grants that were revoked lately, whose tasks are ended.

`authority_requests` has the requests with their decisions. `capability`, `route_type` and
`route_id` say who was asked, and `workspace` is the first that was requested. `waiting` counts the
tasks that began to wait for it, so that a wait and a decision at the same moment meet at the row.
`authority_waits` are the tasks that wait for it. Names are checked to have no zero byte.
"""

from __future__ import annotations

from typing import Final

STATEMENTS: Final = (
    """CREATE TABLE authority_grants (
        grant_id TEXT {byte_order} PRIMARY KEY,
        root_id TEXT {byte_order} NOT NULL,
        parent_id TEXT {byte_order} NOT NULL,
        depth INTEGER NOT NULL,
        subject_type TEXT NOT NULL,
        subject_id TEXT {byte_order} NOT NULL,
        delegate_type TEXT NOT NULL,
        delegate_id TEXT {byte_order} NOT NULL,
        issuer_type TEXT NOT NULL,
        issuer_id TEXT {byte_order} NOT NULL,
        level INTEGER NOT NULL,
        audience_type TEXT NOT NULL,
        audience_id TEXT {byte_order} NOT NULL,
        while_active INTEGER NOT NULL,
        hops INTEGER NOT NULL,
        created_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        renewable_ms {bigint} NOT NULL,
        renewed_ms {bigint} NOT NULL DEFAULT 0,
        revoked_ms {bigint} NOT NULL DEFAULT 0,
        details {blob} NOT NULL,
        task_id TEXT {byte_order} NOT NULL DEFAULT ''
    )""",
    "CREATE INDEX authority_grants_of ON authority_grants (delegate_id, created_ms DESC, grant_id DESC)",
    "CREATE INDEX authority_grants_on ON authority_grants (subject_id, created_ms DESC, grant_id DESC)",
    "CREATE INDEX authority_grants_by_end ON authority_grants (expires_ms)",
    """CREATE INDEX authority_grants_of_audience ON authority_grants (audience_id)
        WHERE while_active = 1 AND revoked_ms = 0""",
    "CREATE INDEX authority_grants_of_task ON authority_grants (task_id) WHERE task_id <> ''",
    "CREATE INDEX authority_grants_by_issuer ON authority_grants (issuer_id, expires_ms)",
    """CREATE TABLE authority_lineage (
        grant_id TEXT {byte_order} NOT NULL,
        place INTEGER NOT NULL,
        ancestor_id TEXT {byte_order} NOT NULL,
        PRIMARY KEY (grant_id, place)
    ) {clustered}""",
    "CREATE INDEX authority_lineage_below ON authority_lineage (ancestor_id, grant_id)",
    """CREATE TABLE authority_endings (
        grant_id TEXT {byte_order} PRIMARY KEY,
        since_ms {bigint} NOT NULL
    ) {clustered}""",
    """CREATE TABLE authority_requests (
        request_id TEXT {byte_order} PRIMARY KEY,
        requester_type TEXT NOT NULL,
        requester_id TEXT {byte_order} NOT NULL,
        subject_type TEXT NOT NULL,
        subject_id TEXT {byte_order} NOT NULL,
        level INTEGER NOT NULL,
        duration_s {bigint} NOT NULL,
        audience_type TEXT NOT NULL,
        audience_id TEXT {byte_order} NOT NULL,
        route_type TEXT NOT NULL,
        route_id TEXT {byte_order} NOT NULL,
        capability TEXT {byte_order} NOT NULL,
        task_id TEXT {byte_order} NOT NULL,
        workspace TEXT {byte_order} NOT NULL,
        created_ms {bigint} NOT NULL,
        expires_ms {bigint} NOT NULL,
        status TEXT NOT NULL,
        resolved_ms {bigint} NOT NULL DEFAULT 0,
        granted_id TEXT {byte_order} NOT NULL DEFAULT '',
        resolver_type TEXT NOT NULL DEFAULT '',
        resolver_id TEXT {byte_order} NOT NULL DEFAULT '',
        waiting {bigint} NOT NULL DEFAULT 0,
        details {blob} NOT NULL
    )""",
    "CREATE INDEX authority_requests_pending ON authority_requests (expires_ms) WHERE status = 'pending'",
    "CREATE INDEX authority_requests_by_age ON authority_requests (created_ms)",
    "CREATE INDEX authority_requests_by_requester ON authority_requests (requester_id, status)",
    "CREATE INDEX authority_requests_on ON authority_requests (subject_id, status)",
    "CREATE INDEX authority_requests_to ON authority_requests (route_id, status) WHERE route_id <> ''",
    "CREATE INDEX authority_requests_for ON authority_requests (capability, status) WHERE capability <> ''",
    """CREATE TABLE authority_waits (
        request_id TEXT {byte_order} NOT NULL,
        task_id TEXT {byte_order} NOT NULL,
        PRIMARY KEY (request_id, task_id)
    ) {clustered}""",
    "CREATE INDEX authority_waits_of ON authority_waits (task_id)",
)
