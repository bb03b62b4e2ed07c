"""Task tokens: credentials that let in a participant as its task's worker.

A token is 32 random bytes after a prefix, stored as its SHA-256: so long a secret needs no slow
hash (tasks.md 1.13). It ends with its task, and after a day if it has let in no session, unless it
is the latest of a start. A token that was made by a session which a token had let in ends with that
token's task as well, unless that task was completed. Its sessions have no higher level than the
credential of its task's creator gave, and no more administrative rights than the creator has. One
that was made by a session which an API token had let in, or by descent from one, is good only as
long as that is not revoked: `origin` is the id of the API token, "" for none. The prefix tells task
tokens from other credentials, so an unknown one is refused even where unknown credentials pass.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import StoredStatus, TaskRow
from aether_trio.model.tasks.task import AGENT_STARTUP, AgentProcess
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row, StorageUnavailable, single

PREFIX: Final = "att_"
TOKEN_BYTES: Final = 32
TOKEN_MS: Final = 24 * 3600 * 1000
"""How long an unused token is good, and a revoked one is remembered."""
NAMES: Final = ("token", "task_token")
"""Names of credentials that may be task tokens."""
MAX_LINEAGE: Final = 8
"""Maximum number of tokens that were made one with the session of the other."""
_REVOKE: Final = """UPDATE task_tokens SET revoked_ms = $2, expires_ms = CASE expires_ms WHEN 0 THEN $3 ELSE expires_ms END
    WHERE"""


@dataclass(frozen=True, slots=True)
class AdmittedToken:
    """An admitted task token; `lineage`: its task and those of its makers' tokens."""

    task_id: str
    token: bytes
    workspaces: frozenset[str]
    lineage: tuple[str, ...]
    cap: AccessLevel
    makers: tuple[str, ...]
    creators: tuple[str, ...]
    origin: str = ""
    origin_key: str = ""

    def covers(self, identity: Identity) -> bool:
        """Return whether the token's workspaces include that of a participant."""
        return identity.workspace in self.workspaces


def new_token(random_bytes: Callable[[int], bytes]) -> str:
    """Make a fresh task token, to be shown once."""
    return PREFIX + base64.urlsafe_b64encode(random_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


class IssuedToken(NamedTuple):
    """A task token to be written for `owner`; `lineage`: the tasks of makers' tokens."""

    digest: bytes
    owner: str
    lineage: tuple[str, ...] = ()
    lasting: bool = False
    """Whether it lasts as long as its task, even unused."""
    epoch: int = 0
    """The assignment of the start for which it is made."""
    cap: AccessLevel = AccessLevel.SUPERADMIN
    """The highest level that its sessions have: that of its creator's credential."""
    makers: tuple[str, ...] = ()
    """The principals ("type:id") that have made the API token of its creator."""
    creators: tuple[str, ...] = ()
    """The principals that have created its task, and those of its creator's token."""
    origin: str = ""


def insert(minted: IssuedToken, task_id: str, now_ms: int) -> Program[bool]:
    """Write a task token; return False if its maker may make none any more."""
    if len(minted.lineage) >= MAX_LINEAGE:
        return False
    for ancestor in minted.lineage:
        task = yield from task_rows.load(ancestor)
        if task is None or task.is_final:
            return False
    expires_ms = 0 if minted.lasting else now_ms + TOKEN_MS
    yield Execute(
        "INSERT INTO task_tokens (hash, task_id, identity, created_ms, expires_ms, lineage, epoch, cap, makers, origin) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (hash) DO NOTHING",
        (
            minted.digest,
            task_id,
            minted.owner,
            now_ms,
            expires_ms,
            " ".join(minted.lineage),
            minted.epoch,
            int(minted.cap),
            json.dumps([minted.makers, minted.creators]) if minted.makers or minted.creators else "",
            minted.origin,
        ),
    )
    for ancestor in minted.lineage:
        yield Execute(
            "INSERT INTO task_descents (task_id, hash) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            (ancestor, minted.digest),
        )
    return True


def supersede(task_id: str, now_ms: int) -> Program[None]:
    """Let the older tokens of an agent's start expire after a day, if none is used."""
    yield Execute(
        "UPDATE task_tokens SET expires_ms = $2 WHERE task_id = $1 AND expires_ms = 0 AND revoked_ms = 0",
        (task_id, now_ms + TOKEN_MS),
    )


def mark_used(digest: bytes) -> Program[None]:
    """Keep a task token as long as its task, as it has let in a session."""
    yield Execute(
        "UPDATE task_tokens SET expires_ms = 0 WHERE hash = $1 AND expires_ms > 0 AND revoked_ms = 0", (digest,)
    )


def epoch_of(digest: bytes) -> Program[int]:
    """Return the assignment of the agent start for which a token was made; else 0."""
    found: list[Row] = yield Fetch("SELECT epoch FROM task_tokens WHERE hash = $1", (digest,))
    return found[0][0] if found else 0


def is_revoked(digest: bytes) -> Program[bool]:
    """Return whether a task token is revoked, as its task has ended."""
    found: list[Row] = yield Fetch("SELECT revoked_ms FROM task_tokens WHERE hash = $1", (digest,))
    return bool(found) and found[0][0] > 0


def revoke(task: TaskRow, now_ms: int) -> Program[list[tuple[str, str]]]:
    """Revoke the tokens of a task that has ended; return which sessions end with it.

    They are (node, session id) each. A completed task does not end the sessions that its worker's
    tokens have let in, but tokens that a worker has made for itself are revoked. A started agent
    ends with its start.
    """
    until_ms = now_ms + TOKEN_MS
    yield Execute(f"{_REVOKE} task_id = $1 AND revoked_ms = 0", (task.task_id, now_ms, until_ms))
    descends = "hash IN (SELECT d.hash FROM task_descents d WHERE d.task_id = $1)"
    ended = "SELECT node, session_id FROM task_sessions WHERE task_id = $1"
    if task.status is not StoredStatus.COMPLETED:
        yield Execute(f"{_REVOKE} {descends} AND revoked_ms = 0", (task.task_id, now_ms, until_ms))
        gone: list[Row] = yield Fetch(ended, (task.task_id,))
        return [(node, session_id) for node, session_id in gone]
    yield Execute(
        f"{_REVOKE} {descends} AND identity = $4 AND revoked_ms = 0", (task.task_id, now_ms, until_ms, task.assigned_to)
    )
    if task.task_type != AGENT_STARTUP:
        return []
    gone = yield Fetch(f"{ended} AND identity = $2", (task.task_id, task.assigned_to))
    return [(node, session_id) for node, session_id in gone]


def add_session(lineage: Sequence[str], session_id: str, identity: str, node: str) -> Program[None]:
    """Write that a task token has let in a session, or that its node has a new lease."""
    for task_id in lineage:
        yield Execute(
            "INSERT INTO task_sessions (task_id, session_id, identity, node) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (task_id, session_id) DO UPDATE SET node = excluded.node",
            (task_id, session_id, identity, node),
        )


def remove_session(session_id: str) -> Program[None]:
    """Delete the rows of a session that a task token had let in."""
    yield Execute("DELETE FROM task_sessions WHERE session_id = $1", (session_id,))


def sessions_to_end(node: str) -> Program[list[str]]:
    """Find the sessions of a node that end because their task token was revoked."""
    found: list[Row] = yield Fetch(
        "SELECT DISTINCT s.session_id FROM task_sessions s JOIN tasks t ON t.task_id = s.task_id WHERE s.node = $1 "
        "AND t.next_retry_ms = 0 AND (t.status IN ('failed', 'cancelled', 'dlq', 'rejected') "
        "OR t.status = 'completed' AND t.task_type = 'agent_startup' AND t.assigned_to = s.identity)",
        (node,),
    )
    return [session_id for (session_id,) in found]


def sessions_of_ended_processes(node: str) -> Program[list[str]]:
    """Find the sessions of a node whose agents' processes are known to have ended."""
    found: list[Row] = yield Fetch(
        "SELECT DISTINCT s.session_id FROM task_sessions s JOIN tasks t ON t.task_id = s.task_id "
        "WHERE s.node = $1 AND t.process >= $2 AND t.task_type = 'agent_startup' AND t.target = s.identity",
        (node, int(AgentProcess.DONE)),
    )
    return [session_id for (session_id,) in found]


def hash_token(token: str) -> bytes:
    """Return the hash under which a task token is stored."""
    return hashlib.sha256(token.encode()).digest()


async def admit(
    database: Database, identity: Identity, credentials: Mapping[str, str], now_ms: int
) -> AdmittedToken | None:
    """Check a task token among the credentials; None without one. Raises StatusError."""
    token = next((credentials[name] for name in NAMES if credentials.get(name)), "")
    if not token.startswith(PREFIX):
        return None
    digest = hash_token(token)
    query = Fetch(
        "SELECT k.identity, k.expires_ms, k.revoked_ms, k.task_id, k.lineage, k.cap, k.makers, k.origin, t.workspace, "
        "a.revoked_ms, a.key_id FROM task_tokens k JOIN tasks t ON t.task_id = k.task_id "
        "LEFT JOIN api_tokens a ON a.token_id = k.origin WHERE k.hash = $1",
        (digest,),
    )
    try:
        found: list[Row] = await database.read_small(lambda: single(query))
    except StorageUnavailable as error:
        raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
    if not found:
        raise StatusError(Status.UNAUTHENTICATED, "this task token is unknown to this gateway")
    owner, expires_ms, revoked_ms, task_id, lineage, cap, made_by, origin, workspace, *of_origin = found[0]
    origin_revoked_ms, origin_key = of_origin
    if revoked_ms or 0 < expires_ms <= now_ms:
        raise StatusError(
            Status.UNAUTHENTICATED,
            "this task token has expired" if not revoked_ms else "the task of this token, or of its maker's, has ended",
        )
    if origin and origin_revoked_ms != 0:  # None: it is deleted
        raise StatusError(Status.UNAUTHENTICATED, "the API token with which this task token was made has ended")
    if owner != identity.text:
        raise StatusError(Status.PERMISSION_DENIED, f"this task token is for {owner}, not for {identity.text}")
    reach = frozenset({workspace, identity.workspace} - {""})
    makers, creators = json.loads(made_by) if made_by else ((), ())
    return AdmittedToken(
        task_id,
        digest,
        reach,
        (*lineage.split(), task_id),
        AccessLevel(cap),
        tuple(makers),
        tuple(creators),
        origin,
        origin_key or "",
    )
