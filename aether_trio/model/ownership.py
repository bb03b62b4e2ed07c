"""Which session owns an identity: the lock, what its next session continues, and how it ends.

One record for each fact, used by session/ (one node) and cluster/ (all nodes) alike. An identity
is the text of `Identity`. Times are Unix milliseconds; those of other nodes' sessions are read
from the clock of the database server.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from aether_trio.model.identity import Identity, Kind


@dataclass(frozen=True, slots=True)
class IdentityLock:
    """One session's ownership of an identity.

    `epoch` counts the locks of this identity in the cluster: the lock with the highest epoch is
    in force.
    """

    identity: str
    session_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class SessionHistory:
    """The chain of sessions that a resumed session continues: its last session, begin and length."""

    session_id: str
    initial_connection_ms: int
    reconnections: int


@dataclass(frozen=True, slots=True)
class LockRequest:
    """What a session says of itself when it requests the lock of `identity`.

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
    """A granted lock, and what its session continues; None when the session continues nothing.

    `displaced` is (node id, session id) of the last owner on another node that had to be asked or
    was found dead.
    """

    lock: IdentityLock
    history: SessionHistory | None
    displaced: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """What listings say of a live session.

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
    """Which sessions to list: of these kinds (all, if empty), in this workspace ("" for any)."""

    kinds: frozenset[Kind] = frozenset()
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of a list in the order of their identities, and the length of the list."""

    sessions: Sequence[SessionRecord]
    total: int


@dataclass(frozen=True, slots=True)
class LastSeen:
    """Whether a participant is connected, and its last activity that sessions tell; 0: none."""

    connected: bool
    last_ms: int


class DisconnectOutcome(enum.Enum):
    """What became of the request to end a session."""

    DONE = "done"
    """The session has ended."""
    UNKNOWN = "unknown"
    """No session with this id is connected."""
    UNCONFIRMED = "unconfirmed"
    """The session's node has not confirmed in time; it ends the session if it reads the request within a minute."""


@dataclass(frozen=True, slots=True)
class DisconnectResult:
    """The outcome, and the identity of the session; "" for an unknown session."""

    outcome: DisconnectOutcome
    identity: str = ""
