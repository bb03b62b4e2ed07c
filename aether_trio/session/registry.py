"""Knows which live session owns which identity on this node.

Owning an identity is being in this registry. An identity is taken and given back without a
checkpoint, so two sessions never own one identity, and it is owned for exactly as long as the
session's block lasts (session/session.py). There is no expiry and nothing to refresh.

Invariants: `holder(identity)` is live; giving back compares first, so the end of a displaced
session never frees the identity of its successor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ownership import (
    LastSeen,
    SessionHistory,
    SessionRecord,
    WorkspaceUse,
    duplicate_identity,
    workspace_full,
)
from aether_trio.session.roster import Roster
from aether_trio.session.session import Session

REMEMBERED_ENDS = 50_000  # how many ended sessions a resume may continue (about 400 bytes each)


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """Live sessions of a node by kind, and counters of claims since start."""

    live: dict[str, int]
    claims: int
    takeovers: int
    refused: int


class SessionRegistry:
    """Holds a node's live sessions by identity, and ended ones that may be resumed."""

    def __init__(self, connections_of: Callable[[str], int] = lambda workspace: 0) -> None:
        """`connections_of(workspace)` is how many connections it may have; 0: any number."""
        self._by_identity: dict[str, Session] = {}
        self._by_id: dict[str, Session] = {}
        self._services: dict[str, list[Session]] = {}
        self._turns: dict[str, int] = {}
        self._workspaces: dict[str, int] = {}
        self._ended: OrderedDict[str, SessionHistory] = OrderedDict()
        self._roster = Roster()
        self._connections_of = connections_of
        self._live = dict.fromkeys((kind.value for kind in Kind), 0)
        self._claims = self._takeovers = self._refused = 0

    def claim(self, session: Session, resume_session_id: str) -> tuple[Session | None, SessionHistory | None]:
        """Make `session` the owner of its identity, or raise StatusError.

        Returns (displaced session, history to continue). ALREADY_EXISTS: another session owns the
        identity and `resume_session_id` does not name that session. RESOURCE_EXHAUSTED: the
        workspace has all the connections it may have. An unknown `resume_session_id` on a free
        identity is ignored.
        """
        name = session.identity.text
        holder = self._by_identity.get(name)
        history: SessionHistory | None = None
        if holder is not None:
            if not resume_session_id or holder.session_id != resume_session_id:
                self._refused += 1
                raise duplicate_identity(name)
            history = holder.history
        else:
            self._check_quota(session.identity)
            ended = self._ended.pop(name, None)
            if ended is not None and resume_session_id and ended.session_id == resume_session_id:
                history = ended
        if holder is not None:
            self._takeovers += 1
            self.release(holder)
        self._claims += 1
        self._by_identity[name] = session
        self._by_id[session.session_id] = session
        self._roster.add(session.identity)
        self._count(session.identity, +1)
        if session.identity.kind is Kind.SERVICE and session.takes_any:
            self._services.setdefault(session.identity.implementation, []).append(session)
        return holder, history

    def release(self, session: Session) -> bool:
        """Free the identity of a session, if the session still owns it; else return False."""
        name = session.identity.text
        if self._by_identity.get(name) is not session:
            return False
        del self._by_identity[name]
        del self._by_id[session.session_id]
        self._roster.remove(session.identity)
        self._count(session.identity, -1)
        if session.identity.kind is Kind.SERVICE and session.takes_any:
            instances = self._services[session.identity.implementation]
            instances.remove(session)
            if not instances:
                del self._services[session.identity.implementation]
                self._turns.pop(session.identity.implementation, None)
        self._ended[name] = session.history
        if len(self._ended) > REMEMBERED_ENDS:
            self._ended.popitem(last=False)
        return True

    def _check_quota(self, identity: Identity) -> None:
        if not identity.workspace:
            return
        most = self._connections_of(identity.workspace)
        if most and self._workspaces.get(identity.workspace, 0) >= most:
            self._refused += 1
            raise workspace_full(identity.workspace, most)

    def _count(self, identity: Identity, step: int) -> None:
        self._live[identity.kind.value] += step
        if identity.workspace:
            count = self._workspaces.get(identity.workspace, 0) + step
            if count:
                self._workspaces[identity.workspace] = count
            else:
                del self._workspaces[identity.workspace]

    def remembers(self, identity: str) -> bool:
        """Whether this node has a live session of the identity, or remembers an ended one."""
        return identity in self._by_identity or identity in self._ended

    def holder(self, identity: str) -> Session | None:
        """Return the live session that owns an identity; None without one."""
        return self._by_identity.get(identity)

    def session_id_of(self, identity: str) -> str | None:
        """Return the id of the live session that owns an identity; None without one."""
        session = self._by_identity.get(identity)
        return None if session is None else session.session_id

    def session(self, session_id: str) -> Session | None:
        """Return the live session with this id; None without one."""
        return self._by_id.get(session_id)

    def record(self, session_id: str) -> SessionRecord | None:
        """Return the SessionRecord of the live session with this id; None without one."""
        session = self._by_id.get(session_id)
        return session.record if session is not None else None

    def disconnect(self, session_id: str, reason: str) -> str | None:
        """End a live session as an operator does; return its identity, None if not live."""
        session = self._by_id.get(session_id)
        if session is None:
            return None
        session.disconnect(reason)
        return session.identity.text

    def last_seen(self, identity: str) -> LastSeen:
        """Return whether an identity is connected here, and its last activity."""
        session = self._by_identity.get(identity)
        return LastSeen(False, 0) if session is None else LastSeen(True, session.last_activity_ms)

    def user_last_seen(self, user_id: str) -> LastSeen:
        """Return whether a user has a connected window here, and the last activity in any."""
        windows = [self._by_identity[text].last_activity_ms for text in self._roster.windows(user_id)]
        return LastSeen(bool(windows), max(windows, default=0))

    def windows(self, user_id: str) -> list[Session]:
        """Return the live sessions of a user's windows on this node."""
        return [self._by_identity[text] for text in self._roster.windows(user_id)]

    def moved(self, session: SessionRecord) -> None:
        """List a user's session under the workspace that the user has switched to."""
        if session.session_id in self._by_id:
            self._roster.move(session.identity.text, session.workspace)

    def page(self, kinds: Collection[Kind], workspace: str, offset: int, limit: int) -> tuple[list[Session], int]:
        """Return (a page of matching live sessions, how many match), in identity order."""
        found, total = self._roster.page(kinds, workspace, offset, limit)
        return [self._by_identity[text] for text in found], total

    def use(self, workspace: str = "") -> dict[str, WorkspaceUse]:
        """Count the participants in each workspace that has one, or in a workspace."""
        return self._roster.use(workspace)

    def pick_service(self, implementation: str) -> Session | None:
        """Return the next live instance of a service, in turn; None without one."""
        instances = self._services.get(implementation)
        if not instances:
            return None
        turn = self._turns.get(implementation, 0) % len(instances)
        self._turns[implementation] = turn + 1
        return instances[turn]

    def instances(self, implementation: str) -> list[str]:
        """Return the topics of a service's live instances on this node."""
        return [session.identity.topic for session in self._services.get(implementation, ())]

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_identity.values()))

    def __len__(self) -> int:
        return len(self._by_identity)

    def statistics(self) -> RegistryStatistics:
        """Count the live sessions by kind, and the claims since start."""
        return RegistryStatistics(dict(self._live), self._claims, self._takeovers, self._refused)
