"""Keeps the grants in memory that participants use, with their lineages.

    find(actor, context) ──▶ a grant that the actor may use now, or GrantMissing
    load(grant_id) ──▶ reads the grant and its lineage; find again

A revocation or a renewal is applied here before its answer (services/access/changes.py), so `find`
never waits and never gives what was revoked. A session on another node is looked up by `load`, and
is taken to live for RECHECK_S.

Invariant: what `load` puts into memory is no older than the last change that was applied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    AuthorityGrant,
    GrantProblem,
    GrantUse,
    Lineage,
    PrincipalKey,
    ends_ms,
    lineage_makers,
    needed_sessions,
    use_problem,
)
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access import Actor, GrantMissing
from aether_trio.services.access.authorizer import ActiveGrant
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.authority import store
from aether_trio.services.authority.fields import principal_of, short_text
from aether_trio.session.directory import SessionDirectory
from aether_trio.session.registry import SessionRegistry
from aether_trio.storage.base import Database
from aether_trio.wire.pb import aether_pb2 as pb

GRANT: Final = "grant"
"""The kind of changes of grants: {"revoked": ms} or {"expires": ms} by grant id."""
CAPACITY: Final = 50_000
"""Grants in memory; the one that was used least recently is forgotten first."""
RECHECK_S: Final = 2.0
"""How long a session of another node is taken to be alive after a look."""
RECHECK_MS: Final = int(RECHECK_S * 1000)
MAX_SESSIONS: Final = 10_000


@dataclass(frozen=True, slots=True)
class UsableGrant:
    """A grant that its holder may use now: services.access.ActiveGrant."""

    lineage: Lineage
    expires_ms: int
    """When it ends, or when to look again whether the session that it needs is alive."""

    applied: int = -1
    """After how many changes of grants it was found; -1: it is to be found for each use."""

    @property
    def grant_id(self) -> str:
        return self.lineage[-1].grant_id

    @property
    def root_grant_id(self) -> str:
        return self.lineage[0].grant_id

    @property
    def subject(self) -> tuple[str, str]:
        return self.lineage[-1].subject

    @property
    def root_subject(self) -> tuple[str, str]:
        return self.lineage[0].subject

    @property
    def passed_by(self) -> Sequence[tuple[str, str]]:
        passed = {grant.issued_by for grant in self.lineage}.union(grant.delegate for grant in self.lineage[:-1])
        return (*passed, *lineage_makers(self.lineage))

    @property
    def makers(self) -> Sequence[str]:
        return [f"{kind}:{name}" for kind, name in lineage_makers(self.lineage)]

    @property
    def max_level(self) -> AccessLevel:
        return self.lineage[-1].terms.scope.level

    def refusal(self, operation: str, workspace: str, resource_type: str, resource_id: str) -> str | None:
        """Return which limit of the grant an operation breaks; None if it breaks none."""
        scope = self.lineage[-1].terms.scope
        problem = scope.problem(AccessLevel.NONE, operation, workspace, resource_type, resource_id)
        return None if problem is None else problem.value


class KnownGrants:
    """The grants that this node's participants use: services.access.GrantSource."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        registry: SessionRegistry,
        directory: SessionDirectory,
        *,
        strict: bool = True,
        capacity: int = CAPACITY,
    ) -> None:
        self._database = database
        self._clock = clock
        self._registry = registry
        self._directory = directory
        self._strict = strict
        self._capacity = capacity
        self._grants: OrderedDict[str, AuthorityGrant] = OrderedDict()
        self._usable: dict[tuple[str, str, str, str, str, str], UsableGrant] = {}
        """What `find` has found by actor, grant and subject, until something changes."""
        self._sessions: OrderedDict[str, float] = OrderedDict()
        """Sessions of other nodes that were alive, and until when that counts (trio's clock).

        0: the session has ended, which never changes.
        """
        self._applied = 0
        """How often changes of grants were applied."""

    def follow(self, changes: AccessChanges) -> None:
        """Apply the changes of all nodes from now on."""
        changes.when_applied(GRANT, self._apply)

    def __len__(self) -> int:
        return len(self._grants)

    # -- for the authorizer ------------------------------------------------------------------------

    def find(self, actor: Actor, context: pb.AuthorizationContext) -> UsableGrant:
        """Return the grant that an actor names, if the actor may use it now. Never waits.

        Raises GrantMissing if it is not in memory, RequestError if the actor may not use it.
        """
        named = context.subject
        who = actor.identity.text
        key = (who, actor.session_id, actor.task_id, context.grant_id, named.principal_type, named.principal_id)
        known = self._usable.get(key)
        if known is not None and self._clock.now_ms() < known.expires_ms:
            return known
        grant = self._find(actor, context)
        if grant.applied >= 0:
            if len(self._usable) >= self._capacity:
                self._usable.clear()
            self._usable[key] = grant
        return grant

    def holds(self, grant: ActiveGrant) -> bool:
        """Return whether an actor may still use a grant that `find` has found for it."""
        return (
            isinstance(grant, UsableGrant)
            and grant.applied == self._applied
            and self._clock.now_ms() < grant.expires_ms
        )

    def _find(self, actor: Actor, context: pb.AuthorizationContext) -> UsableGrant:
        try:
            grant_id = short_text(context.grant_id, "authorization.grant_id")
            subject = principal_of(context.subject, "authorization.subject", strict=self._strict)
        except RequestError as error:
            raise RequestError(Code.PERMISSION_DENIED, f"invalid authority context: {error.message}") from None
        lineage = self.lineage(grant_id)
        if lineage is None:
            raise GrantMissing(grant_id)
        use = GrantUse(PrincipalKey.of(actor.identity), actor.session_id, actor.task_id, subject)
        problem = self.problem(lineage, use)
        if problem is not None:
            raise RequestError(Code.PERMISSION_DENIED, problem.value)
        end_ms = ends_ms(lineage)
        if needed_sessions(lineage):
            return UsableGrant(lineage, min(end_ms, self._clock.now_ms() + RECHECK_MS))
        return UsableGrant(lineage, end_ms, self._applied)

    async def load(self, grant_id: str) -> None:
        """Read a grant and its lineage into memory. May raise StorageUnavailable.

        RequestError: there is no such grant.
        """
        if await self.loaded(grant_id) is None:
            raise RequestError(Code.PERMISSION_DENIED, GrantProblem.NOT_FOUND.value)

    # -- for the services --------------------------------------------------------------------------

    def lineage(self, grant_id: str) -> Lineage | None:
        """Return a grant with its lineage from memory; None if not all of it is there."""
        found: list[AuthorityGrant] = []
        while grant_id:
            grant = self._grants.get(grant_id)
            if grant is None:
                return None
            self._grants.move_to_end(grant_id)
            found.append(grant)
            grant_id = grant.parent_id
        lineage = tuple(reversed(found))
        return lineage if lineage and self._knows_sessions(lineage) else None

    async def loaded(self, grant_id: str) -> Lineage | None:
        """Return a grant with its lineage, read if need be.

        Raises StorageUnavailable.
        """
        known = self.lineage(grant_id)
        while known is None:
            applied = self._applied
            lineage = await self._database.read_small(partial(store.load_lineage, grant_id))
            if lineage is None:
                return None
            await self._look_at_sessions(lineage)
            if self._applied == applied:
                self._keep(lineage)
                return lineage
            known = None  # a change was applied that the read may not have seen
        return known

    def problem(self, lineage: Lineage, use: GrantUse) -> GrantProblem | None:
        """Return why a participant may not use a grant now; None if it may."""
        return use_problem(lineage, use, self._clock.now_ms(), self._session_alive)

    def audience_alive(self, lineage: Lineage) -> bool:
        """Return whether the sessions that a grant needs, if it does, are alive."""
        return all(map(self._session_alive, needed_sessions(lineage)))

    def _keep(self, lineage: Lineage) -> None:
        for grant in lineage:
            self._grants[grant.grant_id] = grant
            self._grants.move_to_end(grant.grant_id)
        while len(self._grants) > max(self._capacity, len(lineage)):
            self._grants.popitem(last=False)

    def _apply(self, items: Sequence[tuple[str, Any]], everything: bool) -> None:
        """Apply changes of grants, before their answer."""
        self._applied += 1
        self._usable.clear()
        if everything:
            self._grants.clear()
            return
        for grant_id, change in items:
            grant = self._grants.get(grant_id)
            if grant is None:
                continue
            if change is None:
                del self._grants[grant_id]
            elif "revoked" in change:
                self._grants[grant_id] = replace(grant, revoked_ms=change["revoked"])
            elif "expires" in change:
                terms = replace(grant.terms, expires_ms=change["expires"])
                self._grants[grant_id] = replace(grant, terms=terms)

    # -- sessions that a grant needs ---------------------------------------------------------------

    def _knows_sessions(self, lineage: Lineage) -> bool:
        """Return whether it is known which of the sessions that a grant needs are alive."""
        names = needed_sessions(lineage)
        return all(self._registry.session(name) is not None or self._until(name) is not None for name in names)

    def _until(self, session_id: str) -> float | None:
        """Return until when a session of another node counts as alive; None: look again."""
        until = self._sessions.get(session_id)
        return until if until == 0.0 or (until is not None and until > trio.current_time()) else None

    def _session_alive(self, session_id: str) -> bool:
        return self._registry.session(session_id) is not None or bool(self._until(session_id))

    async def _look_at_sessions(self, lineage: Lineage) -> None:
        for name in needed_sessions(lineage):
            if self._registry.session(name) is not None:
                continue
            found = await self._directory.find(name)
            self._sessions[name] = 0.0 if found is None else trio.current_time() + RECHECK_S
            self._sessions.move_to_end(name)
        while len(self._sessions) > MAX_SESSIONS:
            self._sessions.popitem(last=False)
