"""Task tokens: a participant that presents one is let in as the worker of that task (reference: tasks.md 1.13).

A token is 32 random bytes behind a prefix, kept as its SHA-256: so long a secret needs no slow hash and no key of the server. It ends with
its task. One that has let nobody in ends after a day as well, unless it is the latest of a start: an agent comes back with its token however
old it is. One that was made by a session that a token had let in ends with that token's task as
well, unless that was completed. Its kind can be told from its prefix, so one of ours that is not known any more is
refused even where unknown credentials pass.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.model.tasks import Status as TaskStatus
from aether_trio.model.tasks import Task
from aether_trio.model.tasks.task import AGENT_STARTUP
from aether_trio.services.tasks.transaction import task_rows
from aether_trio.storage.base import Database, Execute, Fetch, Program, Row, StorageUnavailable, single

PREFIX: Final = "att_"
TOKEN_BYTES: Final = 32
TOKEN_MS: Final = 24 * 3600 * 1000
"""For a token that nobody has mark_used, and for one that is remembered as revoked."""
NAMES: Final = ("token", "task_token")
"""Of credentials."""
MAX_LINEAGE: Final = 8
"""Tokens that were made with one another's sessions, one after the other."""
_REVOKE: Final = """UPDATE task_tokens SET revoked_ms = $2, expires_ms = CASE expires_ms WHEN 0 THEN $3 ELSE expires_ms END
    WHERE"""


@dataclass(frozen=True, slots=True)
class AdmittedToken:
    """A token that was accepted, by its hash: for which task, and in which workspaces it lets its holder act.

    `lineage` are the tasks that it ends with: its own, and before that those of the tokens that let in its makers.
    """

    task_id: str
    token: bytes
    workspaces: frozenset[str]
    lineage: tuple[str, ...]

    def covers(self, identity: Identity) -> bool:
        """Whether a token for this participant would be good for no more than this one is."""
        return identity.workspace in self.workspaces


def new_token(random_bytes: Callable[[int], bytes]) -> str:
    """A fresh token, to be shown once."""
    return PREFIX + base64.urlsafe_b64encode(random_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


class IssuedToken(NamedTuple):
    """A token for a participant that is to be written. `lineage` is that of its maker."""

    digest: bytes
    owner: str
    lineage: tuple[str, ...] = ()
    lasting: bool = False
    """Whether it lasts as long as its task, mark_used or not."""
    epoch: int = 0
    """Of a start: the assignment that it is made for."""


def insert(minted: IssuedToken, task_id: str, now_ms: int) -> Program[bool]:
    """Write a token for a task; False when its maker may make none: what let it in has ended, or is too long a line."""
    if len(minted.lineage) >= MAX_LINEAGE:
        return False
    for ancestor in minted.lineage:
        task = yield from task_rows.load(ancestor)
        if task is None or task.is_final:
            return False
    yield Execute(
        "INSERT INTO task_tokens (hash, task_id, identity, created_ms, expires_ms, lineage, epoch) "
        "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (hash) DO NOTHING",
        (
            minted.digest,
            task_id,
            minted.owner,
            now_ms,
            0 if minted.lasting else now_ms + TOKEN_MS,
            " ".join(minted.lineage),
            minted.epoch,
        ),
    )
    for ancestor in minted.lineage:
        yield Execute(
            "INSERT INTO task_descents (task_id, hash) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            (ancestor, minted.digest),
        )
    return True


def supersede(task_id: str, now_ms: int) -> Program[None]:
    """A start is given another token: the earlier ones end after a day, unless an agent comes with one of them."""
    yield Execute(
        "UPDATE task_tokens SET expires_ms = $2 WHERE task_id = $1 AND expires_ms = 0 AND revoked_ms = 0",
        (task_id, now_ms + TOKEN_MS),
    )


def mark_used(digest: bytes) -> Program[None]:
    """A session that this token has let in has begun: its holder comes back with it as long as its task lives."""
    yield Execute(
        "UPDATE task_tokens SET expires_ms = 0 WHERE hash = $1 AND expires_ms > 0 AND revoked_ms = 0", (digest,)
    )


def epoch_of(digest: bytes) -> Program[int]:
    """The assignment of a start that this token was made for; 0 for a token of another task."""
    found: list[Row] = yield Fetch("SELECT epoch FROM task_tokens WHERE hash = $1", (digest,))
    return found[0][0] if found else 0


def is_revoked(digest: bytes) -> Program[bool]:
    """Whether what a token was for has ended."""
    found: list[Row] = yield Fetch("SELECT revoked_ms FROM task_tokens WHERE hash = $1", (digest,))
    return bool(found) and found[0][0] > 0


def revoke(task: Task, now_ms: int) -> Program[list[tuple[str, str]]]:
    """A task with tokens has ended: they are no good any more. (node, session id) of the sessions that end with it.

    What was completed leaves those alone that its worker's tokens have let in, but no participant makes itself a token that outlives its
    own; and who was started goes when its start is over.
    """
    until_ms = now_ms + TOKEN_MS
    yield Execute(f"{_REVOKE} task_id = $1 AND revoked_ms = 0", (task.task_id, now_ms, until_ms))
    descends = "hash IN (SELECT d.hash FROM task_descents d WHERE d.task_id = $1)"
    ended = "SELECT node, session_id FROM task_sessions WHERE task_id = $1"
    if task.status is not TaskStatus.COMPLETED:
        yield Execute(
            f"{_REVOKE} {descends} AND revoked_ms = 0",
            (task.task_id, now_ms, until_ms),
        )
        gone: list[Row] = yield Fetch(ended, (task.task_id,))
        return [(node, session_id) for node, session_id in gone]
    yield Execute(
        f"{_REVOKE} {descends} AND identity = $4 AND revoked_ms = 0",
        (task.task_id, now_ms, until_ms, task.assigned_to),
    )
    if task.task_type != AGENT_STARTUP:
        return []
    gone = yield Fetch(f"{ended} AND identity = $2", (task.task_id, task.assigned_to))
    return [(node, session_id) for node, session_id in gone]


def add_session(lineage: Sequence[str], session_id: str, identity: str, node: str) -> Program[None]:
    """A session that a token has let in has begun, or its node has another lease."""
    for task_id in lineage:
        yield Execute(
            "INSERT INTO task_sessions (task_id, session_id, identity, node) VALUES ($1, $2, $3, $4) "
            "ON CONFLICT (task_id, session_id) DO UPDATE SET node = excluded.node",
            (task_id, session_id, identity, node),
        )


def remove_session(session_id: str) -> Program[None]:
    """It has ended."""
    yield Execute("DELETE FROM task_sessions WHERE session_id = $1", (session_id,))


def sessions_to_end(node: str) -> Program[list[str]]:
    """The sessions of this node that have sessions_to_end what let them in."""
    found: list[Row] = yield Fetch(
        "SELECT DISTINCT s.session_id FROM task_sessions s JOIN tasks t ON t.task_id = s.task_id WHERE s.node = $1 "
        "AND t.next_retry_ms = 0 AND (t.status IN ('failed', 'cancelled', 'dlq', 'rejected') "
        "OR t.status = 'completed' AND t.task_type = 'agent_startup' AND t.assigned_to = s.identity)",
        (node,),
    )
    return [session_id for (session_id,) in found]


def hash_token(token: str) -> bytes:
    """How it is kept."""
    return hashlib.sha256(token.encode()).digest()


async def admit(
    database: Database, identity: Identity, credentials: Mapping[str, str], now_ms: int
) -> AdmittedToken | None:
    """Look at a token among the credentials; None if there is none of ours. Raises StatusError."""
    token = next((credentials[name] for name in NAMES if credentials.get(name)), "")
    if not token.startswith(PREFIX):
        return None
    digest = hash_token(token)
    query = Fetch(
        "SELECT k.identity, k.expires_ms, k.revoked_ms, k.task_id, k.lineage, t.workspace FROM task_tokens k "
        "JOIN tasks t ON t.task_id = k.task_id WHERE k.hash = $1",
        (digest,),
    )
    try:
        found: list[Row] = await database.read_small(lambda: single(query))
    except StorageUnavailable as error:
        raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
    if not found:
        raise StatusError(Status.UNAUTHENTICATED, "this task token is not known here")
    owner, expires_ms, revoked_ms, task_id, lineage, workspace = found[0]
    if revoked_ms or 0 < expires_ms <= now_ms:
        raise StatusError(
            Status.UNAUTHENTICATED,
            "this task token has expired" if not revoked_ms else "the task of this token, or of its maker's, has ended",
        )
    if owner != identity.text:
        raise StatusError(Status.PERMISSION_DENIED, f"this task token is for {owner}, not for {identity.text}")
    reach = frozenset({workspace, identity.workspace} - {""})
    return AdmittedToken(task_id, digest, reach, (*lineage.split(), task_id))
