"""Which session owns an identity: its lock, its history and its end.

One record for each fact, used by session/ (one node) and cluster/ (all nodes) alike. An identity is
the text of `Identity`. Times are Unix milliseconds; those of other nodes' sessions are read from
the clock of the database server.
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
    """The chain of sessions that a resumed session continues.

    The chain has begun at `initial_connection_ms`; `session_id` is its last session.
    """

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
    """A granted lock, and the history that its session continues, if any.

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
    """Which sessions to list.

    `kinds` empty is all kinds; `workspace` "" is any workspace.
    """

    kinds: frozenset[Kind] = frozenset()
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class SessionList:
    """A page of a list of sessions in the order of their identities.

    `total` is the length of the whole list.
    """

    sessions: Sequence[SessionRecord]
    total: int


@dataclass(frozen=True, slots=True)
class LastSeen:
    """Whether a participant is connected, and when it was active last.

    `last_ms` is 0 when no session tells.
    """

    connected: bool
    last_ms: int


class DisconnectOutcome(enum.Enum):
    """What became of the request to end a session."""

    DONE = "done"
    """The session has ended."""
    UNKNOWN = "unknown"
    """No session with this id is connected."""
    UNCONFIRMED = "unconfirmed"
    """The session's node has not confirmed in time; it ends the session if it reads the request
    within a minute."""


@dataclass(frozen=True, slots=True)
class DisconnectResult:
    """The outcome, and the identity of the session; "" for an unknown session."""

    outcome: DisconnectOutcome
    identity: str = ""
