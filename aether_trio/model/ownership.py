"""Records of which session owns an identity: its lock, its history, its end.

Used by session/ (one node) and cluster/ (all nodes) alike. An identity is the text of `Identity`.
Times are Unix milliseconds; those of other nodes' sessions are read from the clock of the database
server.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from aether_trio.model.errors import Code, Status, StatusError
from aether_trio.model.identity import Identity, Kind


@dataclass(frozen=True, slots=True)
class IdentityLock:
    """A session's ownership of an identity; the lock of the highest `epoch` counts."""

    identity: str
    session_id: str
    epoch: int


class SessionHistory(NamedTuple):
    """The chain of sessions that a resume continues, up to the session `session_id`."""

    session_id: str
    initial_connection_ms: int
    reconnections: int


@dataclass(frozen=True, slots=True)
class LockRequest:
    """A session's request for the lock of its identity.

    `workspace` is that of the identity, "" for none. `resume_session_id` names the session to take
    over or to continue. `takes_any`: messages for any instance of its service may go to it.
    """

    identity: str
    session_id: str
    kind: str
    connected_ms: int
    workspace: str = ""
    implementation: str = ""
    resume_session_id: str = ""
    takes_any: bool = True
    peer: str = ""
    client_sdk: str = ""
    client_version: str = ""


@dataclass(frozen=True, slots=True)
class GrantedLock:
    """A granted identity lock, and the history that its session continues, if any.

    `displaced` is (node id, session id) of the last owner on another node that had to be asked or
    was found dead.
    """

    lock: IdentityLock
    history: SessionHistory | None
    displaced: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A live session as listings show it.

    `workspace` is the workspace that the participant is in. `node_id` is 0 for a session of this
    node. `last_activity_ms` of another node's session is when its row was written: when it
    connected, or when a user's window last switched its workspace.
    """

    session_id: str
    identity: Identity
    workspace: str
    connected_ms: int
    peer: str
    last_activity_ms: int
    node_id: int = 0


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions a list has: no `kinds` is all kinds, no `workspace` is any."""

    kinds: frozenset[Kind] = frozenset()
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class SessionList:
    """A page of the list of sessions by identity; `total` is the whole list's length."""

    sessions: Sequence[SessionRecord]
    total: int


@dataclass(frozen=True, slots=True)
class LastSeen:
    """Whether a participant is connected, and its last activity; `last_ms` 0: unknown."""

    connected: bool
    last_ms: int


@dataclass(frozen=True, slots=True)
class WorkspaceUse:
    """How many participants are connected in a workspace, by kind."""

    agents: int = 0
    tasks: int = 0
    users: int = 0

    @property
    def total(self) -> int:
        return self.agents + self.tasks + self.users


class DisconnectOutcome(enum.Enum):
    """Whether a session that was asked to end has ended."""

    DONE = "done"  # the session has ended
    UNKNOWN = "unknown"  # no session with this id is connected
    UNCONFIRMED = "unconfirmed"
    """The session's node has not confirmed in time; it ends the session if it reads the request
    within a minute."""


@dataclass(frozen=True, slots=True)
class DisconnectResult:
    """The outcome of ending a session, and its identity; "" for an unknown session."""

    outcome: DisconnectOutcome
    identity: str = ""


def duplicate_identity(identity: str) -> StatusError:
    """Return the refusal of a client whose identity another session owns."""
    return StatusError(
        Status.ALREADY_EXISTS,
        f"DuplicateIdentityError: {identity} is connected already; close that connection, or name its session "
        "in resume_session_id to take over",
    )


def workspace_full(workspace: str, limit: int) -> StatusError:
    """Return the refusal of a client whose workspace has all its connections."""
    return StatusError(
        Status.RESOURCE_EXHAUSTED,
        f"{Code.QUOTA}: workspace {workspace} has {limit} connections, which is its limit "
        "(the quota connections_per_workspace, or limits.connections_per_workspace)",
    )
