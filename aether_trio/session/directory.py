"""Who is connected, as services ask for it: on one node what its registry knows, in a cluster that of all nodes.

    LocalDirectory     the registry
    ClusterDirectory   the table of holds; what this node itself holds is told from its registry, which knows more

In a cluster a session of another node is listed from its row. Its `last_activity_ms` is when the row was last written: when it
connected, or a user's window last switched its workspace. A node that has died is noticed as described in cluster/locks/directory.py.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from aether_trio.cluster.locks.rows import EndOfSession, LastHeld, LockRow
from aether_trio.model.errors import Status
from aether_trio.model.identity import Identity, Kind
from aether_trio.session.registry import Registry
from aether_trio.session.session import Session
from aether_trio.wire.pb import aether_pb2 as pb


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which sessions to list: of these kinds (all, if empty), and in this workspace ("" for any)."""

    kinds: frozenset[Kind] = frozenset()
    workspace: str = ""


@dataclass(frozen=True, slots=True)
class Connection:
    """A live session. `workspace` is the one that the participant is in; times are Unix milliseconds."""

    session_id: str
    identity: Identity
    workspace: str
    connected_ms: int
    peer: str
    last_activity_ms: int


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the sessions that match, in the order of their identity strings, and how many match in all."""

    connections: Sequence[Connection]
    total: int


class Outcome(enum.Enum):
    """What became of a wish to disconnect."""

    DONE = "done"
    UNKNOWN = "unknown"
    """No such session is connected."""
    UNCONFIRMED = "unconfirmed"
    """Its node has not confirmed it in time; it ends the session as soon as it hears of it, if it does within a minute."""


@dataclass(frozen=True, slots=True)
class Disconnected:
    """`identity` is that of the session, "" for an unknown one."""

    outcome: Outcome
    identity: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """Whether somebody is connected now, and when it was last active as far as sessions tell, in Unix milliseconds; 0: they do not."""

    connected: bool
    last_ms: int


class SessionDirectory(Protocol):
    """See the module docstring. What waits raises StorageUnavailable."""

    async def page(self, wanted: Wanted, offset: int, limit: int) -> Page:
        """Live sessions, `offset` of them skipped."""
        ...

    async def find(self, session_id: str) -> Connection | None:
        """The live session with this id."""
        ...

    async def disconnect(self, session_id: str, reason: str) -> Disconnected:
        """End a session with CANCELLED and FORCE_DISCONNECT."""
        ...

    async def seen(self, identity: str) -> Seen:
        """The holder of this identity."""
        ...

    async def user_seen(self, user_id: str) -> Seen:
        """Any window of this user."""
        ...

    def moved(self, session: Session) -> None:
        """This session is in another workspace. Never blocks."""
        ...

    def pick_service(self, implementation: str) -> str | None:
        """The topic of a live instance of a service, each in its turn. Never blocks."""
        ...


class LocalDirectory:
    """One node: the registry knows everybody."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def page(self, wanted: Wanted, offset: int, limit: int) -> Page:
        """See SessionDirectory."""
        found, total = self._registry.page(wanted.kinds, wanted.workspace, offset, limit)
        return Page([_connection(session) for session in found], total)

    async def find(self, session_id: str) -> Connection | None:
        """See SessionDirectory."""
        session = self._registry.session(session_id)
        return _connection(session) if session is not None else None

    async def disconnect(self, session_id: str, reason: str) -> Disconnected:
        """See SessionDirectory."""
        session = self._registry.session(session_id)
        if session is None:
            return Disconnected(Outcome.UNKNOWN)
        _force_disconnect(session, reason)
        return Disconnected(Outcome.DONE, session.identity.text)

    async def seen(self, identity: str) -> Seen:
        """See SessionDirectory."""
        holder = self._registry.holder(identity)
        return Seen(False, 0) if holder is None else Seen(True, holder.last_activity_ms)

    async def user_seen(self, user_id: str) -> Seen:
        """See SessionDirectory."""
        windows = [session.last_activity_ms for session in self._registry.windows(user_id)]
        return Seen(bool(windows), max(windows, default=0))

    def moved(self, session: Session) -> None:
        """See SessionDirectory."""
        self._registry.moved(session)

    def pick_service(self, implementation: str) -> str | None:
        """See SessionDirectory."""
        session = self._registry.pick_service(implementation)
        return session.identity.topic if session is not None else None


class Rows(Protocol):
    """The part of the cluster's Directory that is needed here (cluster/locks/directory.py). What waits raises StorageUnavailable."""

    async def page(
        self, kinds: Sequence[str], place: str, offset: int, limit: int, leaving: Sequence[str]
    ) -> tuple[list[LockRow], int]:
        """Live holds, and how many match; without those of this node whose identity is in `leaving`."""
        ...

    async def find(self, session_id: str) -> LockRow | None:
        """The live hold of this session."""
        ...

    async def end(self, row: LockRow, reason: str) -> EndOfSession:
        """Have the node that holds it end a session."""
        ...

    async def last_held(self, identity: str, leaving: Sequence[str]) -> LastHeld:
        """Whether an identity is held, and since or until when."""
        ...

    async def user_last_held(self, user_id: str, leaving: Sequence[str]) -> LastHeld:
        """`last_held` of all windows of a user."""
        ...

    def moved(self, identity: str, session_id: str, place: str) -> None:
        """The participant is in another workspace."""
        ...

    def pick_service(self, implementation: str, own: Sequence[str]) -> str | None:
        """The identity of an instance, each in its turn; `own` are this node's."""
        ...


class ClusterDirectory:
    """A node of a cluster. It is made from the registry and the open directory of the cluster:

        async with open_directory(server, cluster, partial(end_session, registry)) as rows:
            directory = ClusterDirectory(registry, rows, locks.leaving)

    `leaving()` gives the identities whose session has ended here while its row is still being settled (session/identity_locks.py): nobody
    who asks this node finds them any more.
    """

    def __init__(self, registry: Registry, rows: Rows, leaving: Callable[[], Sequence[str]]) -> None:
        self._registry = registry
        self._rows = rows
        self._leaving = leaving

    async def page(self, wanted: Wanted, offset: int, limit: int) -> Page:
        """See SessionDirectory."""
        kinds = [kind.value for kind in wanted.kinds]
        rows, total = await self._rows.page(kinds, wanted.workspace, offset, limit, self._leaving())
        return Page([self._describe(row) for row in rows], total)

    async def find(self, session_id: str) -> Connection | None:
        """See SessionDirectory."""
        session = self._registry.session(session_id)
        if session is not None:
            return _connection(session)
        row = await self._rows.find(session_id)
        return self._describe(row) if row is not None and row.identity not in self._leaving() else None

    async def disconnect(self, session_id: str, reason: str) -> Disconnected:
        """See SessionDirectory. Waits for the node that holds the session."""
        session = self._registry.session(session_id)
        if session is not None:
            _force_disconnect(session, reason)
            return Disconnected(Outcome.DONE, session.identity.text)
        row = await self._rows.find(session_id)
        if row is None or row.identity in self._leaving():
            return Disconnected(Outcome.UNKNOWN)
        end = await self._rows.end(row, reason)
        return Disconnected(Outcome.UNCONFIRMED if end is EndOfSession.UNCONFIRMED else Outcome.DONE, row.identity)

    async def seen(self, identity: str) -> Seen:
        """See SessionDirectory."""
        holder = self._registry.holder(identity)
        if holder is not None:
            return Seen(True, holder.last_activity_ms)
        held = await self._rows.last_held(identity, self._leaving())
        return Seen(held.now, held.last_ms)

    async def user_seen(self, user_id: str) -> Seen:
        """See SessionDirectory."""
        held = await self._rows.user_last_held(user_id, self._leaving())
        here = [session.last_activity_ms for session in self._registry.windows(user_id)]
        return Seen(held.now or bool(here), max([held.last_ms, *here]))

    def moved(self, session: Session) -> None:
        """See SessionDirectory."""
        self._rows.moved(session.identity.text, session.session_id, session.workspace)

    def pick_service(self, implementation: str) -> str | None:
        """See SessionDirectory. A service's topic is its identity."""
        return self._rows.pick_service(implementation, self._registry.instances(implementation))

    def _describe(self, row: LockRow) -> Connection:
        session = self._registry.session(row.session_id)
        if session is not None:
            return _connection(session)
        # Not strict: another node may be configured otherwise.
        identity = Identity.parse(row.identity, strict=False)
        return Connection(row.session_id, identity, row.place, row.connected_ms, row.peer, row.written_ms)


def end_session(registry: Registry, session_id: str, reason: str) -> bool:
    """Another node wants this session ended (cluster/locks/disconnects.py); whether it was one of this node's."""
    session = registry.session(session_id)
    if session is not None:
        _force_disconnect(session, reason)
    return session is not None


def _force_disconnect(session: Session, reason: str) -> None:
    """As an operator does it: the client is told not to come back."""
    session.end(Status.CANCELLED, reason or "disconnected by an operator", pb.Signal.FORCE_DISCONNECT)


def _connection(session: Session) -> Connection:
    return Connection(
        session.session_id,
        session.identity,
        session.workspace,
        session.connected_ms,
        session.link.peer.address,
        session.last_activity_ms,
    )
