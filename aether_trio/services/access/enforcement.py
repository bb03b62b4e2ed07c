"""Applies changed access data to the sessions that are connected to this node.

After each change, and when something has expired, in one step: all decisions that sessions keep are
forgotten. A session whose principal is locked ends with UNAUTHENTICATED, one that has lost READ of
its workspace with PERMISSION_DENIED; a user's window leaves the workspace instead. The sessions are
looked at in slices. Until its turn a session handles no input that it could not handle after it,
because its decisions are made anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.errors import Code, RequestError, Status, StatusError
from aether_trio.model.identity import Kind
from aether_trio.services.access.authorizer import AccessQuestion
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from aether_trio.session.registry import SessionRegistry
from aether_trio.session.session import Session

SLICE: Final = 256
"""Sessions that are looked at in one step."""
ASKED_AT_CONNECT: Final = frozenset({Kind.AGENT, Kind.UNIQUE_TASK, Kind.TASK})
"""Kinds that are in a workspace from the start, and must be allowed to read it."""
ENDED_BY: Final = {Status.UNAUTHENTICATED: "lock", Status.PERMISSION_DENIED: "right"}
"""By the status of its end: what has ended a session, a lock or the loss of a right."""


class Enforcement:
    """Ends and moves sessions of this node as access data change."""

    def __init__(self, registry: SessionRegistry, authorizer: RuleAuthorizer, moved: Callable[[Session], None]) -> None:
        self._registry = registry
        self._authorizer = authorizer
        self._moved = moved
        self._leaving: list[Session] = []
        self.ended: Counter[str] = Counter()
        """How many sessions were ended since the start, by cause (ENDED_BY)."""
        self._applied = 0

    def applied(self) -> None:
        """Forget what sessions have decided, after a change. Never waits."""
        self._applied += 1
        for session in self._registry:
            session.sender.forget_decisions()

    async def settle(self) -> None:
        """Look at all sessions after a change, in slices."""
        for count, session in enumerate(list(self._registry), 1):
            self.look(session)
            if count % SLICE == 0:
                await trio.lowlevel.checkpoint()
        await self._let_leave()

    def look(self, session: Session) -> None:
        """End or move a session that has lost what it needs."""
        if session.detached:
            return
        refusal = self.refusal(session)
        if refusal is not None:
            status, reason = refusal
            self.ended[ENDED_BY[status]] += session.ending is None
            session.end(status, reason)
            return
        workspace = session.workspace
        if session.identity.kind is Kind.USER and workspace and not self.may_read(session, workspace):
            self._leaving.append(session)

    def refusal(self, session: Session) -> tuple[Status, str] | None:
        """Return why a session may not be connected, or None."""
        identity, denial = session.identity, ""
        if identity.kind in ASKED_AT_CONNECT:
            access = AccessQuestion("connect", "workspace", identity.workspace, identity.workspace, AccessLevel.READ)
            decision = self._authorizer.decide(session, access)
            if decision.allowed:  # which a lock rules out
                session.authorized = self._applied, decision.until_ms
                return None
            denial = decision.reason
        lock = self._authorizer.lock_of(session)
        if lock is not None:
            return Status.UNAUTHENTICATED, f"{identity.canonical_id} is locked: {lock.reason or lock.pattern}"
        return (Status.PERMISSION_DENIED, denial) if denial else None

    def may_read(self, session: Session, workspace: str) -> bool:
        """Return whether a session may read a workspace now. Reports no decision."""
        return self._authorizer.session_may_read(session, workspace)

    def authorize(self, session: Session) -> None:
        """Check that a new session may be connected. Raises StatusError."""
        applied, until_ms = session.authorized
        if applied == self._applied and (not until_ms or until_ms > self._authorizer.now_ms()):
            return  # nothing has changed since it was asked before
        refusal = self.refusal(session)
        if refusal is not None:
            raise StatusError(*refusal)

    async def renewed(self, session: Session) -> None:
        """Apply another credential to a session, which may reach less than before."""
        self._authorizer.forget_kv_decisions()
        self.look(session)
        await self._let_leave()

    async def _let_leave(self) -> None:
        """Let windows of users leave workspaces that they may not read any more."""
        while self._leaving:
            session = self._leaving.pop()
            workspace = session.workspace
            if session.detached or not workspace or self.may_read(session, workspace):
                continue
            assert session.subscriptions is not None
            await session.subscriptions.switch("")
            session.sender.moved_to("")
            self._moved(session)
            session.put_error(
                RequestError(
                    Code.PERMISSION_DENIED, f"you may not read workspace {workspace} any more; your window has left it"
                )
            )
