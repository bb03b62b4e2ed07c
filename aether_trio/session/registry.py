"""Who holds which identity on this node.

A hold is the session object itself: it is taken and given back without a checkpoint, so two sessions never hold one
identity, and it lasts exactly as long as the session's block (session/session.py). There is no expiry and nothing to
refresh.

Invariants: `holder(identity)` is live; giving back compares first, so the end of a displaced session never frees the
identity of its successor.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aether_trio.model.errors import Status, StatusError
from aether_trio.model.identity import Identity, Kind
from aether_trio.model.ownership import SessionHistory
from aether_trio.session.roster import Roster

if TYPE_CHECKING:
    from aether_trio.session.session import Session

REMEMBERED_ENDS = 50_000
"""Ended sessions whose history a resume may continue (about 400 bytes each)."""


@dataclass(frozen=True, slots=True)
class RegistryStatistics:
    """Live sessions by kind, and counters since start."""

    live: dict[str, int]
    claims: int
    takeovers: int
    refused: int


class Registry:
    """See the module docstring."""

    def __init__(self, connections_per_workspace: int = 0) -> None:
        self._by_identity: dict[str, Session] = {}
        self._by_id: dict[str, Session] = {}
        self._services: dict[str, list[Session]] = {}
        self._turns: dict[str, int] = {}
        self._workspaces: dict[str, int] = {}
        self._ended: OrderedDict[str, SessionHistory] = OrderedDict()
        self._roster = Roster()
        self._per_workspace = connections_per_workspace
        self._live = dict.fromkeys((kind.value for kind in Kind), 0)
        self._claims = self._takeovers = self._refused = 0

    def claim(self, session: Session, resume_session_id: str) -> tuple[Session | None, SessionHistory | None]:
        """Make `session` the holder of its identity: (displaced holder, history to continue).

        Raises StatusError ALREADY_EXISTS when another session holds it and the caller does not name that session, and
        RESOURCE_EXHAUSTED when its workspace has all the connections it may have. A stale or unknown
        `resume_session_id` on a free identity is a plain connect.
        """
        name = session.identity.text
        holder = self._by_identity.get(name)
        history: SessionHistory | None = None
        if holder is not None:
            if not resume_session_id or holder.session_id != resume_session_id:
                self._refused += 1
                raise StatusError(
                    Status.ALREADY_EXISTS,
                    f"DuplicateIdentityError: {name} is connected already; close that connection, or name its session "
                    "in resume_session_id to take over",
                )
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
        """Give the identity back, if this session still holds it; says whether it did."""
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
        if self._per_workspace and self._workspaces.get(identity.workspace, 0) >= self._per_workspace:
            self._refused += 1
            raise StatusError(
                Status.RESOURCE_EXHAUSTED,
                f"workspace {identity.workspace} has {self._per_workspace} connections, which is its limit "
                "(limits.connections_per_workspace)",
            )

    def _count(self, identity: Identity, step: int) -> None:
        self._live[identity.kind.value] += step
        if identity.workspace:
            count = self._workspaces.get(identity.workspace, 0) + step
            if count:
                self._workspaces[identity.workspace] = count
            else:
                del self._workspaces[identity.workspace]

    def remembers(self, identity: str) -> bool:
        """Whether this identity is held now, or has been since the gateway started and not been forgotten."""
        return identity in self._by_identity or identity in self._ended

    def holder(self, identity: str) -> Session | None:
        """The live session that holds this identity string."""
        return self._by_identity.get(identity)

    def session(self, session_id: str) -> Session | None:
        """The live session with this id."""
        return self._by_id.get(session_id)

    def moved(self, session: Session) -> None:
        """A user's session is switched to the workspace that it now has, if it still holds its identity."""
        if self._by_identity.get(session.identity.text) is session:
            self._roster.move(session.identity.text, session.workspace)

    def page(self, kinds: Collection[Kind], workspace: str, offset: int, limit: int) -> tuple[list[Session], int]:
        """Live sessions of these kinds (all, if empty) in this workspace ("" for any) in the order of their identities, `offset` of
        them skipped; and how many match in all. Costs what it gives, not what is connected."""
        found, total = self._roster.page(kinds, workspace, offset, limit)
        return [self._by_identity[text] for text in found], total

    def windows(self, user_id: str) -> list[Session]:
        """The live sessions of this user."""
        return [self._by_identity[text] for text in self._roster.windows(user_id)]

    def pick_service(self, implementation: str) -> Session | None:
        """A live instance of a service, each in its turn."""
        instances = self._services.get(implementation)
        if not instances:
            return None
        turn = self._turns.get(implementation, 0) % len(instances)
        self._turns[implementation] = turn + 1
        return instances[turn]

    def instances(self, implementation: str) -> list[str]:
        """The topics of a service's live instances."""
        return [session.identity.topic for session in self._services.get(implementation, ())]

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_identity.values()))

    def __len__(self) -> int:
        return len(self._by_identity)

    def statistics(self) -> RegistryStatistics:
        """What is live, and counters since start."""
        return RegistryStatistics(dict(self._live), self._claims, self._takeovers, self._refused)
