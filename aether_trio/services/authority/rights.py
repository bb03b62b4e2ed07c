"""Asks who may exchange grants for a subject, and who holds a capability.

The narrow form of the capability names the workspace and the subject; a name with "/" has no narrow
form, as it could be read as two.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final, Protocol

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.grants import (
    Audience,
    GrantError,
    GrantProblem,
    GrantScope,
    Lineage,
    PrincipalKey,
    lineage_makers,
)
from aether_trio.model.access.patterns import compile_pattern, escape
from aether_trio.model.identity import Identity, IdentityError
from aether_trio.services.access import DIRECT, AccessDecision, AccessQuestion, Actor, Authority, Capability
from aether_trio.session.session import Session

NO_WORKSPACE: Final = "_no_workspace"
_WILD: Final = frozenset("*?[\\/")


class Decider(Protocol):
    """What grants and requests ask of the Authorizer: decisions that never wait."""

    def decide(self, actor: Actor, question: AccessQuestion, authority: Authority = DIRECT) -> AccessDecision:
        """Decide on an access, and record nothing. Never waits."""

    def lock_among(self, principals: Iterable[tuple[str, str]]) -> str | None:
        """Return which of these principals is locked and why, as a phrase; None: none is."""


class Rights:
    """Answers by the rules in memory, without waiting and without audit rows."""

    def __init__(self, decider: Decider) -> None:
        self._decider = decider

    def holds(self, actor: Actor, capability: str, level: AccessLevel = AccessLevel.MANAGE) -> bool:
        """Return whether a participant holds a capability in its own name."""
        question = AccessQuestion("authority", "capability", capability, "", level)
        return bool(capability) and self._decider.decide(actor, question).allowed

    def lock_on(self, lineage: Lineage) -> str | None:
        """Return who of a grant's lineage is locked, and why; None: no one is."""
        made = {grant.issued_by for grant in lineage}.union(lineage_makers(lineage))
        return self._decider.lock_among({lineage[-1].subject, *made, *(grant.delegate for grant in lineage)})

    def may_exchange(self, actor: Actor, subject: PrincipalKey, workspaces: Sequence[str]) -> bool:
        """Return whether a participant may exchange grants for a subject.

        `workspaces` are those in which the subject is, or in which it is to be acted for. The
        narrow form has to be held for each of them.
        """
        narrow = [_narrow(workspace, subject) for workspace in workspaces or (NO_WORKSPACE,)]
        if all(name and self.holds(actor, name) for name in narrow):
            return True
        return self.holds(actor, Capability.EXCHANGE_AUTHORITY_GRANTS)

    def narrowed(self, actor: Actor, scope: GrantScope, workspace: str) -> GrantScope:
        """Return the scope of a grant that one makes for a subject in a workspace.

        The narrow form of the capability gives no authority in any workspace but those it names.
        """
        if not workspace or not scope.any_workspace or self.holds(actor, Capability.EXCHANGE_AUTHORITY_GRANTS):
            return scope
        return replace(scope, workspaces=(escape(workspace),))


def _narrow(workspace: str, subject: PrincipalKey) -> str:
    """Return the narrow form of the capability; "" if the names do not have one."""
    if not _WILD.isdisjoint(workspace) or "/" in subject.id:
        return ""
    return f"{Capability.EXCHANGE_AUTHORITY_GRANTS}/{workspace or NO_WORKSPACE}/{subject.id}"


def home_of(subject: PrincipalKey) -> str:
    """Return the workspace that is part of a participant's identity; "" for none."""
    try:
        return "" if subject.type_name == "user" else Identity.parse(subject.id, strict=False).workspace
    except IdentityError:
        return ""


def check_reach(session: Session, scope: GrantScope) -> None:
    """Check that a session's credential gives no less than a scope. Raises GrantError.

    A grant is used with other credentials than that of its maker.
    """
    if scope.level > session.cap:
        raise GrantError(GrantProblem.LEVEL, f"your credential gives {session.cap.name} at most")
    if not reaches(session, scope):
        raise GrantError(GrantProblem.WORKSPACE, "workspace_scope has to name workspaces that your credential reaches")


def reaches(session: Session, scope: GrantScope) -> bool:
    """Return whether a session's credential reaches each workspace of a scope."""
    if session.reaches_everything:
        return True
    literals = [compile_pattern(one).literal for one in scope.workspaces]
    return not scope.any_workspace and all(one is not None and session.allows_workspace(one) for one in literals)


def bounds_of(session: Session) -> tuple[str, ...]:
    """Return who bounds what a session gives in its own name: makers of its token."""
    return tuple(dict.fromkeys((*session.makers, *session.creators)))


def own_audience(session: Session, wanted: Audience, source: str) -> Audience:
    """Return the audience of a root grant. Raises GrantError."""
    kind, name = wanted
    own = {
        "session": [source or session.session_id, session.session_id],
        "task": [session.task_id],
        session.identity.type_name: [session.identity.canonical_id],
    }
    known = [one for one in own.get(kind or "session", ()) if one]
    if kind in ("", "session", "task", "agent", "service") and known and (not name or name in known):
        return Audience(kind or "session", name or known[0])
    raise GrantError(
        GrantProblem.AUDIENCE, "it is the caller's or the source session, the caller's task, or the caller itself"
    )
