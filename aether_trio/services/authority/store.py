"""Programs that read and write grants and authority requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    Audience,
    AuthorityGrant,
    GrantScope,
    GrantTerms,
    Lineage,
    PrincipalKey,
    ResourcePatterns,
)
from aether_trio.model.access.requests import RequestRecord, RequestStatus, Route
from aether_trio.storage.base import Execute, Fetch, Program, Row, Value, placeholders

EXPIRE_PAGE: Final = 100
FORGET_PAGE: Final = 500
RENEW_PAGE: Final = 500
MAX_PENDING_OF: Final = 100
"""Requests of one participant that may wait for a decision at once."""
MAX_GRANTS_OF: Final = 10_000
"""Live grants that one participant may have issued."""

_GRANT_COLUMNS: Final = (
    "grant_id", "root_id", "parent_id", "depth", "subject_type", "subject_id", "delegate_type", "delegate_id",
    "issuer_type", "issuer_id", "level", "audience_type", "audience_id", "while_active", "hops", "created_ms",
    "expires_ms", "renewable_ms", "renewed_ms", "revoked_ms", "details",
)  # fmt: skip
_GRANT: Final = ", ".join(_GRANT_COLUMNS)
_GRANT_A: Final = ", ".join(f"a.{name}" for name in _GRANT_COLUMNS)
_REQUEST_COLUMNS: Final = (
    "request_id", "requester_type", "requester_id", "subject_type", "subject_id", "level", "duration_s",
    "audience_type", "audience_id", "route_type", "route_id", "capability", "task_id", "workspace", "created_ms",
    "expires_ms", "status", "resolved_ms", "granted_id", "resolver_type", "resolver_id", "details",
)  # fmt: skip
_REQUEST: Final = ", ".join(_REQUEST_COLUMNS)


# -- grants ----------------------------------------------------------------------------------------


def _scope_json(scope: GrantScope) -> dict[str, Any]:
    return {
        "workspaces": scope.workspaces,
        "resources": [[kind, list(patterns)] for kind, patterns in scope.resources],
        "operations": scope.operations,
    }


def _scope_of(level: int, found: dict[str, Any]) -> GrantScope:
    return GrantScope(
        AccessLevel(level),
        tuple(found["workspaces"]),
        tuple(ResourcePatterns(kind, tuple(patterns)) for kind, patterns in found["resources"]),
        tuple(found["operations"]),
    )


def _grant(row: Row) -> AuthorityGrant:
    details = msgspec.json.decode(row[20])
    terms = GrantTerms(
        _scope_of(row[10], details), Audience(row[11], row[12]), row[16], row[17], row[14], bool(row[13]),
        details["reason"], details["metadata"], tuple(details.get("makers", ())),
    )  # fmt: skip
    keys = (PrincipalKey(row[4], row[5]), PrincipalKey(row[6], row[7]), PrincipalKey(row[8], row[9]))
    return AuthorityGrant(row[0], row[1], row[2], row[3], *keys, terms, row[15], row[18], row[19])


def insert_grant(grant: AuthorityGrant, lineage_above: Lineage = (), task_id: str = "") -> Program[None]:
    """Write a new grant, once; `task_id`: the task whose own grant it is."""
    terms = grant.terms
    details = {**_scope_json(terms.scope), "reason": terms.reason, "metadata": dict(terms.metadata)}
    if terms.makers:
        details["makers"] = terms.makers
    yield Execute(
        f"INSERT INTO authority_grants ({_GRANT}, task_id) VALUES ({placeholders(len(_GRANT_COLUMNS) + 1)}) "  # noqa: S608
        "ON CONFLICT (grant_id) DO NOTHING",
        (
            grant.grant_id, grant.root_id, grant.parent_id, grant.depth, *grant.subject, *grant.delegate,
            *grant.issued_by, int(terms.scope.level), *terms.audience, int(terms.while_active), terms.hops,
            grant.created_ms, terms.expires_ms, terms.renewable_ms, grant.renewed_ms, grant.revoked_ms,
            msgspec.json.encode(details), task_id,
        ),
    )  # fmt: skip
    for place, one in enumerate((*lineage_above, grant), 1):
        yield Execute(
            "INSERT INTO authority_lineage (grant_id, place, ancestor_id) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
            (grant.grant_id, place, one.grant_id),
        )


def load_lineage(grant_id: str) -> Program[Lineage | None]:
    """Read a grant and those that it was derived from; None if one of them is gone."""
    rows = yield Fetch(
        f"SELECT {_GRANT_A} FROM authority_lineage l JOIN authority_grants a ON a.grant_id = l.ancestor_id "  # noqa: S608
        "WHERE l.grant_id = $1 ORDER BY l.place",
        (grant_id,),
    )
    lineage = tuple(map(_grant, rows))
    return lineage if lineage and lineage[-1].depth == len(lineage) else None


def revoke(grant_id: str, now_ms: int) -> Program[bool]:
    """Revoke a grant, and so all below it; return False if it is revoked already."""
    count: int = yield Execute(
        "UPDATE authority_grants SET revoked_ms = $2 WHERE grant_id = $1 AND revoked_ms = 0", (grant_id, now_ms)
    )
    return bool(count)


def save_renewed(grant: AuthorityGrant) -> Program[None]:
    """Write the new end of a renewed grant."""
    yield Execute(
        "UPDATE authority_grants SET expires_ms = $2, renewed_ms = $3 WHERE grant_id = $1",
        (grant.grant_id, grant.terms.expires_ms, grant.renewed_ms),
    )


def tree_below(grant_id: str) -> Program[list[tuple[str, str, PrincipalKey, PrincipalKey]]]:
    """Read (grant id, root id, delegate, subject) of a grant, and of all below it."""
    rows = yield Fetch(
        "SELECT a.grant_id, a.root_id, a.delegate_type, a.delegate_id, a.subject_type, a.subject_id "
        "FROM authority_lineage l "
        "JOIN authority_grants a ON a.grant_id = l.grant_id WHERE l.ancestor_id = $1 ORDER BY a.depth",
        (grant_id,),
    )
    return [(row[0], row[1], PrincipalKey(row[2], row[3]), PrincipalKey(row[4], row[5])) for row in rows]


def count_issued(issuer: PrincipalKey, now_ms: int) -> Program[int]:
    """Count the live grants that a participant has issued, as far as MAX_GRANTS_OF."""
    rows = yield Fetch(
        "SELECT count(*) FROM (SELECT 1 FROM authority_grants WHERE issuer_id = $1 AND issuer_type = $2 "
        "AND revoked_ms = 0 AND expires_ms > $3 LIMIT $4) AS live",
        (issuer.id, issuer.type_name, now_ms, MAX_GRANTS_OF),
    )
    return int(rows[0][0])


_DEAD: Final = """EXISTS (SELECT 1 FROM authority_lineage l JOIN authority_grants p ON p.grant_id = l.ancestor_id
    WHERE l.grant_id = g.grant_id AND p.revoked_ms > 0)"""


def list_grants(
    column: str, key: PrincipalKey, audience: Audience, limit: int, offset: int, *, revoked: bool
) -> Program[tuple[list[Lineage], int]]:
    """Read a page of the grants of which a principal is "delegate" or "subject".

    The latest come first. Returns how many there are in all, too. `revoked`: also those that are.
    """
    where = [f"g.{column}_id = $1", f"g.{column}_type = $2"]
    args: list[Value] = [key.id, key.type_name]
    for name, value in (("audience_type", audience.type_name), ("audience_id", audience.id)):
        if value:
            args.append(value)
            where.append(f"g.{name} = ${len(args)}")
    if not revoked:
        where.append(f"NOT {_DEAD}")
    condition = " AND ".join(where)
    total = yield Fetch(f"SELECT count(*) FROM authority_grants g WHERE {condition}", args)  # noqa: S608
    rows = yield Fetch(
        f"SELECT g.grant_id FROM authority_grants g WHERE {condition} "  # noqa: S608
        f"ORDER BY g.created_ms DESC, g.grant_id DESC LIMIT ${len(args) + 1} OFFSET ${len(args) + 2}",
        (*args, limit, offset),
    )
    found = []
    for (grant_id,) in rows:
        lineage = yield from load_lineage(grant_id)
        if lineage is not None:
            found.append(lineage)
    return found, total[0][0]


def find_derived(parent_id: str, delegate: PrincipalKey, audience: Audience, now_ms: int) -> Program[list[Lineage]]:
    """Read the live grants that were derived from a parent for a delegate."""
    rows = yield Fetch(
        "SELECT g.grant_id FROM authority_lineage l JOIN authority_grants g ON g.grant_id = l.grant_id "
        "WHERE l.ancestor_id = $1 AND g.parent_id = $1 AND g.delegate_type = $2 AND g.delegate_id = $3 "
        "AND g.audience_type = $4 AND g.audience_id = $5 AND g.revoked_ms = 0 AND g.expires_ms > $6 "
        "ORDER BY g.created_ms DESC, g.grant_id LIMIT 10",
        (parent_id, *delegate, *audience, now_ms),
    )
    found = []
    for (grant_id,) in rows:
        lineage = yield from load_lineage(grant_id)
        if lineage is not None:
            found.append(lineage)
    return found


def own_grant(task_id: str) -> Program[Lineage | None]:
    """Read the grant that a task was created with; None without one."""
    rows = yield Fetch("SELECT grant_id FROM authority_grants WHERE task_id = $1 LIMIT 1", (task_id,))
    return (yield from load_lineage(rows[0][0])) if rows else None


Place: TypeAlias = tuple[int, int, str]
"""Of a grant among those that are to be renewed: its depth, its end, its id."""
FIRST: Final[Place] = (0, 0, "")


def ending_for_tasks(
    now_ms: int, until_ms: int, after: Place
) -> Program[tuple[list[tuple[str, str, bool]], Place | None]]:
    """Read a page of the renewable grants of tasks that end within a time.

    Each is (grant id, task id, whether it was made with the task): grants made with a task, those
    directly below, and those whose audience is a task. Those above others come first. Returns the
    place after which the next page is too, None if there is none.
    """
    rows = yield Fetch(
        "SELECT g.grant_id, CASE WHEN g.task_id <> '' THEN g.task_id WHEN g.audience_type = 'task' "
        "THEN g.audience_id ELSE p.task_id END, g.task_id, g.depth, g.expires_ms FROM authority_grants g "
        "LEFT JOIN authority_grants p ON p.grant_id = g.parent_id "
        "WHERE g.expires_ms > $1 AND g.expires_ms <= $2 AND g.renewable_ms > g.expires_ms AND g.revoked_ms = 0 "
        "AND (g.task_id <> '' OR g.audience_type = 'task' OR p.task_id <> '') "
        "AND (g.depth, g.expires_ms, g.grant_id) > ($4, $5, $6) ORDER BY g.depth, g.expires_ms, g.grant_id LIMIT $3",
        (now_ms, until_ms, RENEW_PAGE, *after),
    )
    last = (rows[-1][3], rows[-1][4], rows[-1][0]) if len(rows) == RENEW_PAGE else None
    return [(grant_id, task_id, bool(own)) for grant_id, task_id, own, _, _ in rows], last


def grants_ending_with(task_id: str) -> Program[list[str]]:
    """Read the ids of unrevoked grants that end with a task."""
    rows = yield Fetch(
        "SELECT grant_id FROM authority_grants WHERE task_id = $1 AND revoked_ms = 0 UNION "
        "SELECT grant_id FROM authority_grants WHERE audience_id = $1 AND audience_type = 'task' "
        "AND while_active = 1 AND revoked_ms = 0",
        (task_id,),
    )
    return [grant_id for (grant_id,) in rows]


def forget_grants(before_ms: int) -> Program[int]:
    """Delete a page of grants that ended before a moment; return how many.

    What is below a grant ended no later, so no lineage loses one that counts.
    """
    rows = yield Fetch(
        "SELECT grant_id FROM authority_grants WHERE expires_ms < $1 AND renewable_ms < $1 "
        "ORDER BY expires_ms, depth DESC LIMIT $2",
        (before_ms, FORGET_PAGE),
    )
    for (grant_id,) in rows:
        yield Execute("DELETE FROM authority_lineage WHERE grant_id = $1", (grant_id,))
        yield Execute("DELETE FROM authority_grants WHERE grant_id = $1", (grant_id,))
    return len(rows)


# -- what ends with a grant ------------------------------------------------------------------------


def note_ending(grant_id: str, now_ms: int) -> Program[None]:
    """Note that the tasks that rest on a revoked grant are to be ended."""
    yield Execute(
        "INSERT INTO authority_endings (grant_id, since_ms) VALUES ($1, $2) ON CONFLICT DO NOTHING", (grant_id, now_ms)
    )


def endings(after: str) -> Program[list[str]]:
    """Read a page of the revoked grants of which tasks are still to be ended."""
    rows = yield Fetch(
        "SELECT grant_id FROM authority_endings WHERE grant_id > $1 ORDER BY grant_id LIMIT $2", (after, FORGET_PAGE)
    )
    return [grant_id for (grant_id,) in rows]


def forget_endings(before_ms: int) -> Program[None]:
    """Forget the revoked grants whose tasks have ended, noted before a moment."""
    yield Execute("DELETE FROM authority_endings WHERE since_ms < $1", (before_ms,))


def tasks_resting_on(grant_id: str, limit: int, after: str) -> Program[list[str]]:
    """Read a page of the live tasks whose own grants are a grant, or below it."""
    rows = yield Fetch(
        "SELECT g.task_id FROM authority_lineage l JOIN authority_grants g ON g.grant_id = l.grant_id "
        "WHERE l.ancestor_id = $1 AND g.task_id > $2 ORDER BY g.task_id LIMIT $3",
        (grant_id, after, limit),
    )
    return [task_id for (task_id,) in rows]


# -- requests --------------------------------------------------------------------------------------


def _key(type_name: str, name: str) -> PrincipalKey | None:
    return PrincipalKey(type_name, name) if type_name else None


def _request(row: Row) -> RequestRecord:
    details = msgspec.json.decode(row[21])
    return RequestRecord(
        row[0],
        PrincipalKey(row[1], row[2]),
        _key(row[3], row[4]),
        _scope_of(row[5], details),
        row[6],
        Audience(row[7], row[8]),
        Route(_key(row[9], row[10]), row[11]),
        row[14],
        row[15],
        details["reason"],
        row[12],
        details["metadata"],
        RequestStatus(row[16]),
        row[17],
        row[18],
        _key(row[19], row[20]),
        details["resolution"],
    )


def _details(record: RequestRecord) -> bytes:
    return msgspec.json.encode(
        {
            **_scope_json(record.wish),
            "reason": record.reason,
            "metadata": dict(record.metadata),
            "resolution": record.resolution_reason,
        }
    )


_NO_ONE: Final = ("", "")


def insert_request(record: RequestRecord) -> Program[None]:
    """Write a new request."""
    yield Execute(
        f"INSERT INTO authority_requests ({_REQUEST}) VALUES ({placeholders(len(_REQUEST_COLUMNS))})",  # noqa: S608
        (
            record.request_id, *record.requester, *(record.subject or _NO_ONE), int(record.wish.level),
            record.duration_s, *record.audience, *(record.route.principal or _NO_ONE), record.route.capability,
            record.task_id, record.wish.workspaces[0] if record.wish.workspaces else "", record.created_ms,
            record.expires_ms, record.status.value, record.resolved_ms, record.grant_id,
            *(record.resolved_by or _NO_ONE), _details(record),
        ),
    )  # fmt: skip


def load_request(request_id: str) -> Program[RequestRecord | None]:
    """Read a request."""
    rows = yield Fetch(f"SELECT {_REQUEST} FROM authority_requests WHERE request_id = $1", (request_id,))  # noqa: S608
    return _request(rows[0]) if rows else None


def lock_request(request_id: str) -> Program[RequestRecord | None]:
    """Read a request that the transaction is about to change; others wait for it."""
    count: int = yield Execute(
        "UPDATE authority_requests SET waiting = waiting + 0 WHERE request_id = $1", (request_id,)
    )
    return (yield from load_request(request_id)) if count else None


def save_request(record: RequestRecord) -> Program[None]:
    """Write a request's decision."""
    yield Execute(
        "UPDATE authority_requests SET status = $2, resolved_ms = $3, granted_id = $4, resolver_type = $5, "
        "resolver_id = $6, details = $7 WHERE request_id = $1",
        (
            record.request_id, record.status.value, record.resolved_ms, record.grant_id,
            *(record.resolved_by or _NO_ONE), _details(record),
        ),
    )  # fmt: skip


def count_pending(requester: PrincipalKey) -> Program[int]:
    """Count the requests of a participant that wait for a decision."""
    rows = yield Fetch(
        "SELECT count(*) FROM authority_requests WHERE requester_id = $1 AND requester_type = $2 AND status = 'pending'",
        tuple(reversed(requester)),
    )
    return int(rows[0][0])


def list_requests(
    caller: PrincipalKey, capabilities: Sequence[str], status: RequestStatus, workspace: str, limit: int
) -> Program[list[RequestRecord]]:
    """Read the latest requests about a principal, and of those that it is asked.

    `limit` is of each of the two, so that those which others may decide hide none about itself.
    """
    own = "(subject_id = $2 AND subject_type = $3)"
    asked = ["(route_id = $2 AND route_type = $3)"]
    args: list[Value] = [status.value, caller.id, caller.type_name]
    if capabilities:
        asked.append(f"capability IN ({placeholders(len(capabilities), len(args) + 2)})")
    found: list[RequestRecord] = []
    for who, more in ((own, ()), (f"NOT {own} AND ({' OR '.join(asked)})", capabilities)):
        values: list[Value] = [*args, limit, *more]
        where = f"status = $1 AND {who}"
        if workspace:
            values.append(workspace)
            where += f" AND workspace = ${len(values)}"
        rows = yield Fetch(
            f"SELECT {_REQUEST} FROM authority_requests WHERE {where} "  # noqa: S608
            "ORDER BY created_ms DESC, request_id LIMIT $4",
            tuple(values),
        )
        found += map(_request, rows)
    return sorted(found, key=lambda one: (-one.created_ms, one.request_id))


def overdue(now_ms: int) -> Program[list[str]]:
    """Read the ids of a page of requests that no one has decided in time."""
    rows = yield Fetch(
        "SELECT request_id FROM authority_requests WHERE status = 'pending' AND expires_ms <= $1 "
        "ORDER BY expires_ms LIMIT $2",
        (now_ms, EXPIRE_PAGE),
    )
    return [request_id for (request_id,) in rows]


def next_expiry() -> Program[int]:
    """Read when the next pending request expires (Unix ms); 0 for never."""
    rows = yield Fetch("SELECT MIN(expires_ms) FROM authority_requests WHERE status = 'pending'")
    return rows[0][0] or 0


def forget_requests(before_ms: int) -> Program[int]:
    """Delete a page of requests that were made before a moment; return how many."""
    count: int = yield Execute(
        "DELETE FROM authority_requests WHERE request_id IN (SELECT request_id FROM authority_requests "
        "WHERE created_ms < $1 AND status <> 'pending' ORDER BY created_ms LIMIT $2)",
        (before_ms, FORGET_PAGE),
    )
    return count


# -- tasks that wait for a request -----------------------------------------------------------------


def begin_wait(request_id: str, task_id: str) -> Program[RequestRecord | None]:
    """Note that a task waits for a request; return the request, None if there is none.

    The row of the request is written, so of a wait and a decision one sees the other.
    """
    count: int = yield Execute(
        "UPDATE authority_requests SET waiting = waiting + 1 WHERE request_id = $1", (request_id,)
    )
    if not count:
        return None
    yield Execute(
        "INSERT INTO authority_waits (request_id, task_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        (request_id, task_id),
    )
    return (yield from load_request(request_id))


def end_wait(task_id: str) -> Program[None]:
    """Forget that a task waits for a request."""
    yield Execute("DELETE FROM authority_waits WHERE task_id = $1", (task_id,))


def end_waits(request_id: str) -> Program[list[str]]:
    """Read, and forget, which tasks wait for a request."""
    rows = yield Fetch("DELETE FROM authority_waits WHERE request_id = $1 RETURNING task_id", (request_id,))
    return sorted(task_id for (task_id,) in rows)
