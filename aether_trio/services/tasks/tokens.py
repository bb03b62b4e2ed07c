"""Task tokens: a participant that presents one is let in as the worker of that task (reference: tasks.md 1.13).

A token is 32 random bytes behind a prefix, kept as its SHA-256: so long a secret needs no slow hash and no key of the server. It can
be used until the task has ended or a day is over. Its kind can be told from its prefix, so one of ours that is not known any more is
refused even where unknown credentials pass.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity
from aether_trio.storage.base import Database, Fetch, Row, StorageUnavailable, single

PREFIX: Final = "att_"
TOKEN_BYTES: Final = 32
NAMES: Final = ("token", "task_token")
"""Of credentials."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """A token that was accepted, by its hash: for which task, and in which workspaces it lets somebody act."""

    task_id: str
    token: bytes
    workspaces: frozenset[str]

    def covers(self, identity: Identity) -> bool:
        """Whether a token for this participant would be good for no more than this one is."""
        return identity.workspace in self.workspaces


def new_token(random_bytes: Callable[[int], bytes]) -> str:
    """A fresh token, to be shown once."""
    return PREFIX + base64.urlsafe_b64encode(random_bytes(TOKEN_BYTES)).rstrip(b"=").decode()


def hash_token(token: str) -> bytes:
    """How it is kept."""
    return hashlib.sha256(token.encode()).digest()


async def admit(database: Database, identity: Identity, credentials: Mapping[str, str], now_ms: int) -> Admitted | None:
    """Look at a token among the credentials; None if there is none of ours. Raises StatusError."""
    token = next((credentials[name] for name in NAMES if credentials.get(name)), "")
    if not token.startswith(PREFIX):
        return None
    digest = hash_token(token)
    query = Fetch(
        "SELECT k.identity, k.expires_ms, k.revoked_ms, k.task_id, t.workspace FROM task_tokens k "
        "JOIN tasks t ON t.task_id = k.task_id WHERE k.hash = $1",
        (digest,),
    )
    try:
        found: list[Row] = await database.read_small(lambda: single(query))
    except StorageUnavailable as error:
        raise StatusError(Status.UNAVAILABLE, f"the gateway's storage does not answer: {error}") from None
    if not found:
        raise StatusError(Status.UNAUTHENTICATED, "this task token is not known here")
    owner, expires_ms, revoked_ms, task_id, workspace = found[0]
    if revoked_ms or expires_ms <= now_ms:
        raise StatusError(
            Status.UNAUTHENTICATED,
            "this task token has expired" if not revoked_ms else "the task of this token has ended",
        )
    if owner != identity.text:
        raise StatusError(Status.PERMISSION_DENIED, f"this task token is for {owner}, not for {identity.text}")
    return Admitted(task_id, digest, frozenset({workspace, identity.workspace} - {""}))
