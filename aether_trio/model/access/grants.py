"""Decides what authority grants permit: who acts for whom, and how far.

A grant lets its delegate act for its subject. It is a root grant, or derived from a parent, and
its lineage are the grants from the root to itself. Its scope limits workspaces, resources,
operations (patterns of patterns.py; none: anything) and the level of access.

Invariants: of any grant in a lineage, the scope contains that of the grants below it, and it ends
no earlier than they do. A grant is valid if nothing of its lineage is revoked or has expired. So a
revocation of one grant ends all that were derived from it, also those that are derived meanwhile.

Times are Unix ms; 0 is never. Differences from the reference: scopes are compared as patterns and
not as texts, a scope's text is a pattern only (the reference also takes it literally), a lineage
has MAX_DEPTH grants at most, and a grant that lasts no longer than its audience passes that on.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.patterns import (
    MAX_COMPARED,
    Pattern,
    PatternError,
    Steps,
    compile_pattern,
    contains,
)
from aether_trio.model.identity import Identity
from aether_trio.model.text import shown

MAX_DEPTH: Final = 8
"""Grants of a lineage, from the root to the last."""
MAX_PATTERNS: Final = 64
"""Patterns of a scope in all, and resource types."""
MAX_PATTERN_BYTES: Final = 256
MAX_COMPARISONS: Final = 32
"""Pairs of wildcard patterns that one comparison of scopes looks into; more count as wider."""
MAX_HOPS: Final = MAX_DEPTH - 1
ADMINISTRATIVE: Final = frozenset({"admin", "capability"})
"""Types of resources that belong to all workspaces, unless an operation names one."""
SUBJECT_WORKSPACES: Final = "_subject_workspaces"
"""In a scope: all workspaces that the subject may use."""
MAX_TIME_MS: Final = 2**52
"""The latest moment of a grant, far beyond any calendar, that a double holds exactly."""


class GrantProblem(enum.StrEnum):
    """Why a grant is refused, may not be made or does not permit an operation."""

    NOT_FOUND = "authority grant not found"
    EXPIRED = "authority grant has expired"
    REVOKED = "authority grant was revoked"
    CANNOT_RENEW = "authority grant cannot be renewed"
    CANNOT_DELEGATE = "authority grant cannot be delegated further"
    BROADER = "child grant would broaden the scope of its parent"
    INVALID = "invalid authority grant"
    DELEGATE = "authority grant has another delegate"
    SUBJECT = "authority grant has another subject"
    AUDIENCE = "authority grant is not for this audience"
    LEVEL = "authority grant does not permit this access level"
    OPERATION = "authority grant does not permit this operation"
    WORKSPACE = "authority grant does not permit this workspace"
    RESOURCE = "authority grant does not permit this resource"


class GrantError(ValueError):
    """A grant that may not be made, used or renewed; `problem` says why in general."""

    def __init__(self, problem: GrantProblem, detail: str = "") -> None:
        super().__init__(f"{problem}: {detail}" if detail else problem.value)
        self.problem = problem


class PrincipalKey(NamedTuple):
    """A principal of grants and rules: its type's name, and its canonical id."""

    type_name: str
    id: str

    @classmethod
    def of(cls, identity: Identity) -> PrincipalKey:
        """Return the principal of an identity; all windows of a user are one."""
        return cls(identity.type_name, identity.canonical_id)

    def __str__(self) -> str:
        return f"{self.type_name}:{self.id}"


class ResourcePatterns(NamedTuple):
    """Resources of one type by patterns of their ids; none: all of the type."""

    resource_type: str
    patterns: tuple[str, ...] = ()


class Audience(NamedTuple):
    """For whom a grant is made: a session, a task, an agent or a service, by id."""

    type_name: str
    id: str


AUDIENCE_TYPES: Final = frozenset({"session", "task", "agent", "service"})


@lru_cache(maxsize=16_384)
def _compiled(text: str) -> Pattern:
    return compile_pattern(text)


def _fits(patterns: Sequence[str], text: str) -> bool:
    return not patterns or any(_compiled(one).matches(text) for one in patterns)


class _Comparison:
    """Compares the patterns of two scopes, of which each pair may cost 20 ms at worst."""

    def __init__(self) -> None:
        self._left = MAX_COMPARISONS
        self._steps = Steps(MAX_COMPARED)

    def contains(self, outer: str, inner: str) -> bool:
        """Return whether `outer` matches all that `inner` does; no if that costs too much."""
        if outer == inner:
            return True
        wide, narrow = _compiled(outer), _compiled(inner)
        if narrow.literal is not None:
            return wide.matches(narrow.literal)
        if wide.literal is not None or self._left == 0:
            return False
        self._left -= 1
        return contains(wide, narrow, self._steps)

    def covers(self, outer: Sequence[str], inner: Sequence[str]) -> bool:
        """Return whether each inner pattern is contained in one of the outer ones."""
        if not outer:
            return True
        known = frozenset(outer)
        return bool(inner) and all(one in known or any(self.contains(wide, one) for wide in outer) for one in inner)

    def narrowed(self, wanted: Sequence[str], given: Sequence[str]) -> tuple[str, ...] | None:
        """Narrow patterns by others; none are anything. None: nothing is left.

        Of two patterns the narrower one stays. Those of which neither contains the other are
        dropped, so that the result is in both.
        """
        if not given or not wanted:
            return tuple(dict.fromkeys(given or wanted))
        left: dict[str, None] = {}
        for one in wanted:
            for other in given:
                if self.contains(other, one):
                    left[one] = None
                elif self.contains(one, other):
                    left[other] = None
        return tuple(left) or None


@dataclass(frozen=True, slots=True)
class GrantScope:
    """The limits of a grant: no workspaces, resources or operations means any."""

    level: AccessLevel
    workspaces: tuple[str, ...] = ()
    resources: tuple[ResourcePatterns, ...] = ()
    operations: tuple[str, ...] = ()

    @property
    def any_workspace(self) -> bool:
        """Whether the grant is for all workspaces that the subject may use."""
        return not self.workspaces or SUBJECT_WORKSPACES in self.workspaces

    def check(self) -> GrantScope:
        """Return the scope if it is well-formed. Raises GrantError."""
        if self.level is AccessLevel.NONE:
            raise GrantError(GrantProblem.INVALID, "max_access_level must be 10, 20, 30, 40 or 50")
        types = [one.resource_type for one in self.resources]
        if len(set(types)) < len(types) or "" in types:
            raise GrantError(GrantProblem.INVALID, "resource_scope names each resource type once")
        texts = [*self.workspaces, *self.operations, *(text for one in self.resources for text in one.patterns)]
        if len(texts) > MAX_PATTERNS or len(types) > MAX_PATTERNS:
            raise GrantError(GrantProblem.INVALID, f"a scope has at most {MAX_PATTERNS} patterns")
        for text in (*types, *texts):
            if not text or len(text.encode("utf-8", "surrogatepass")) > MAX_PATTERN_BYTES:
                raise GrantError(GrantProblem.INVALID, f"a pattern has 1 to {MAX_PATTERN_BYTES} bytes")
        for text in texts:
            try:
                _compiled(text)
            except PatternError as error:
                raise GrantError(GrantProblem.INVALID, f"scope {shown(text)}: {error}") from None
        return self

    def contains(self, inner: GrantScope) -> bool:
        """Return whether all that `inner` permits is permitted here too."""
        return not self.broadened_by(inner)

    def broadened_by(self, inner: GrantScope) -> str:
        """Return in what `inner` permits more than this scope; "" if in nothing."""
        if inner.level > self.level:
            return f"max_access_level {int(inner.level)} is above {int(self.level)}"
        comparison = _Comparison()
        if not self.any_workspace and (inner.any_workspace or not comparison.covers(self.workspaces, inner.workspaces)):
            return "workspace_scope"
        if not comparison.covers(self.operations, inner.operations):
            return "operation_scope"
        if self.resources:
            own = dict(self.resources)
            if not inner.resources:
                return "resource_scope"
            for resource_type, patterns in inner.resources:
                if resource_type not in own or not comparison.covers(own[resource_type], patterns):
                    return f"resource_scope of {shown(resource_type)}"
        return ""

    def problem(
        self, level: AccessLevel, operation: str, workspace: str, resource_type: str, resource_id: str
    ) -> GrantProblem | None:
        """Return which limit an operation breaks, None if it breaks none.

        An operation without a workspace is in none, so the workspaces do not limit it; one that
        administers without a workspace is in all.
        """
        if level > self.level:
            return GrantProblem.LEVEL
        if not _fits(self.operations, operation):
            return GrantProblem.OPERATION
        if not self.any_workspace:
            inside = _fits(self.workspaces, workspace) if workspace else resource_type not in ADMINISTRATIVE
            if not inside:
                return GrantProblem.WORKSPACE
        if self.resources:
            own = dict(self.resources)
            if resource_type not in own or not _fits(own[resource_type], resource_id):
                return GrantProblem.RESOURCE
        return None

    def narrowed(self, given: GrantScope) -> GrantScope:
        """Return what is in both scopes. Raises GrantError when nothing is left.

        `given` has level NONE to leave the level as it is.
        """
        comparison = _Comparison()
        workspaces = self._narrowed_workspaces(given, comparison)
        operations = comparison.narrowed(self.operations, given.operations)
        resources = self._narrowed_resources(given, comparison)
        if workspaces is None or operations is None or resources is None:
            parts = {"workspace_scope": workspaces, "operation_scope": operations, "resource_scope": resources}
            nothing = next(name for name, left in parts.items() if left is None)
            raise GrantError(GrantProblem.INVALID, f"nothing of the requested {nothing} is left")
        level = min(self.level, given.level) if given.level else self.level
        return GrantScope(level, workspaces, resources, operations)

    def _narrowed_workspaces(self, given: GrantScope, comparison: _Comparison) -> tuple[str, ...] | None:
        if self.any_workspace or given.any_workspace:
            return given.workspaces if self.any_workspace and given.workspaces else self.workspaces
        return comparison.narrowed(self.workspaces, given.workspaces)

    def _narrowed_resources(self, given: GrantScope, comparison: _Comparison) -> tuple[ResourcePatterns, ...] | None:
        if not given.resources or not self.resources:
            return given.resources or self.resources
        wanted, left = dict(self.resources), []
        for resource_type, patterns in given.resources:
            if resource_type in wanted:
                both = comparison.narrowed(wanted[resource_type], patterns)
                if both is not None:
                    left.append(ResourcePatterns(resource_type, both))
        return tuple(left) or None


@dataclass(frozen=True, slots=True)
class GrantTerms:
    """What a new grant permits, and how long; 0 for a time that is the parent's."""

    scope: GrantScope
    audience: Audience
    expires_ms: int
    renewable_ms: int
    hops: int = 0
    """How often it may be passed on, one below the other."""
    while_active: bool = False
    """Whether it lasts no longer than its audience."""
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    makers: tuple[str, ...] = ()
    """The principals "type:id" that bounded who made it, as makers of a token: they bound it."""


@dataclass(frozen=True, slots=True)
class AuthorityGrant:
    """One grant as stored: `delegate` may act for `subject` within `terms`."""

    grant_id: str
    root_id: str
    parent_id: str
    """"" for a root grant."""
    depth: int
    """Its place in its lineage, from 1."""
    subject: PrincipalKey
    delegate: PrincipalKey
    issued_by: PrincipalKey
    terms: GrantTerms
    created_ms: int
    renewed_ms: int = 0
    revoked_ms: int = 0

    @property
    def may_delegate(self) -> bool:
        return self.terms.hops > 0


Lineage: TypeAlias = tuple[AuthorityGrant, ...]
"""A grant and those that it was derived from, the root first and the grant itself last."""


class GrantUse(NamedTuple):
    """Who uses a grant, and for whom."""

    actor: PrincipalKey
    session_id: str
    task_id: str
    """Of the actor's session, "" without a task."""
    subject: PrincipalKey


def state_problem(lineage: Lineage, now_ms: int) -> GrantProblem | None:
    """Return why a grant is not valid at a moment; None if it is."""
    for grant in lineage:
        if grant.revoked_ms:
            return GrantProblem.REVOKED
        if grant.terms.expires_ms <= now_ms:
            return GrantProblem.EXPIRED
    return None


def ends_ms(lineage: Lineage) -> int:
    """Return when a grant ends unless it is renewed or revoked."""
    return min(grant.terms.expires_ms for grant in lineage)


def lineage_makers(lineage: Lineage) -> list[PrincipalKey]:
    """Return who bounded those who made a grant and the grants above it."""
    makers = dict.fromkeys(maker for grant in lineage for maker in grant.terms.makers)
    return [PrincipalKey(*maker.split(":", 1)) for maker in makers]


def needed_sessions(lineage: Lineage) -> list[str]:
    """Return the sessions with which a grant, or one above it, ends."""
    audiences = [grant.terms.audience for grant in lineage if grant.terms.while_active]
    return [audience.id for audience in audiences if audience.type_name == "session"]


def use_problem(
    lineage: Lineage, use: GrantUse, now_ms: int, session_alive: Callable[[str], bool]
) -> GrantProblem | None:
    """Return why a participant may not use a grant now; None if it may."""
    problem = state_problem(lineage, now_ms)
    if problem is not None:
        return problem
    grant = lineage[-1]
    if grant.delegate != use.actor:
        return GrantProblem.DELEGATE
    if grant.subject != use.subject:
        return GrantProblem.SUBJECT
    if not all(map(session_alive, needed_sessions(lineage))):
        return GrantProblem.AUDIENCE
    return None if _is_audience(grant, use) else GrantProblem.AUDIENCE


def _is_audience(grant: AuthorityGrant, use: GrantUse) -> bool:
    kind, name = grant.terms.audience
    if kind == "session":
        return grant.terms.while_active or name == use.session_id
    return (kind == "task" and name == use.task_id) or (kind, name) == use.actor


def check_audience(audience: Audience) -> None:
    """Check that an audience has a known type, and an id. Raises GrantError."""
    if audience.type_name not in AUDIENCE_TYPES or not audience.id:
        known = ", ".join(sorted(AUDIENCE_TYPES))
        raise GrantError(GrantProblem.INVALID, f"an audience has an id and one of the types {known}")


def check_terms(terms: GrantTerms, now_ms: int) -> GrantTerms:
    """Return the terms of a new grant if they are well-formed. Raises GrantError."""
    terms.scope.check()
    check_audience(terms.audience)
    if not 0 < terms.expires_ms <= terms.renewable_ms <= MAX_TIME_MS:
        raise GrantError(GrantProblem.INVALID, "expires_at and renewable_until are required, in this order")
    if terms.expires_ms <= now_ms:
        raise GrantError(GrantProblem.EXPIRED, "expires_at is in the past")
    if not 0 <= terms.hops <= MAX_HOPS:
        raise GrantError(GrantProblem.INVALID, f"remaining_hops is from 0 to {MAX_HOPS}")
    return terms


def new_root(
    grant_id: str,
    *,
    subject: PrincipalKey,
    delegate: PrincipalKey,
    issued_by: PrincipalKey,
    terms: GrantTerms,
    now_ms: int,
) -> AuthorityGrant:
    """Make a root grant. Raises GrantError."""
    check_terms(terms, now_ms)
    return AuthorityGrant(grant_id, grant_id, "", 1, subject, delegate, issued_by, terms, now_ms)


def derive(
    parent: Lineage,
    grant_id: str,
    *,
    delegate: PrincipalKey,
    issued_by: PrincipalKey,
    terms: GrantTerms,
    now_ms: int,
) -> AuthorityGrant:
    """Make a grant below another one, which it narrows. Raises GrantError."""
    above = parent[-1]
    if not above.may_delegate:
        raise GrantError(GrantProblem.CANNOT_DELEGATE)
    if terms.hops >= above.terms.hops:
        raise GrantError(GrantProblem.CANNOT_DELEGATE, f"remaining_hops is at most {above.terms.hops - 1}")
    return reroot(parent, grant_id, delegate=delegate, issued_by=issued_by, terms=terms, now_ms=now_ms)


def reroot(
    parent: Lineage,
    grant_id: str,
    *,
    delegate: PrincipalKey,
    issued_by: PrincipalKey,
    terms: GrantTerms,
    now_ms: int,
) -> AuthorityGrant:
    """Make a grant below another one, though its hops are used up. Raises GrantError.

    It takes a capability, authority_intermediary. All other limits hold, and MAX_DEPTH too.
    """
    problem = state_problem(parent, now_ms)
    if problem is not None:
        raise GrantError(problem)
    above = parent[-1]
    if above.depth >= MAX_DEPTH:
        raise GrantError(GrantProblem.CANNOT_DELEGATE, f"a lineage has at most {MAX_DEPTH} grants")
    terms = replace(
        terms,
        expires_ms=terms.expires_ms or above.terms.expires_ms,
        renewable_ms=terms.renewable_ms or above.terms.renewable_ms,
        while_active=terms.while_active or above.terms.while_active,
    )
    if terms.expires_ms > above.terms.expires_ms or terms.renewable_ms > above.terms.renewable_ms:
        raise GrantError(GrantProblem.BROADER, "it would last longer")
    check_terms(terms, now_ms)
    if more := above.terms.scope.broadened_by(terms.scope):
        raise GrantError(GrantProblem.BROADER, more)
    return AuthorityGrant(
        grant_id, above.root_id, above.grant_id, above.depth + 1, above.subject, delegate, issued_by, terms, now_ms
    )


def renewed(lineage: Lineage, now_ms: int, *, expires_ms: int = 0, extend_ms: int = 0) -> AuthorityGrant:
    """Return a grant that lasts longer, within all above it. Raises GrantError.

    `extend_ms` counts from the present end, and is cut at the latest one.
    """
    problem = state_problem(lineage, now_ms)
    if problem is not None:
        raise GrantError(problem)
    grant = lineage[-1]
    latest_ms = min([grant.terms.renewable_ms, *(one.terms.expires_ms for one in lineage[:-1])])
    if extend_ms > 0:
        new_ms = max(grant.terms.expires_ms, min(grant.terms.expires_ms + extend_ms, latest_ms))
    elif extend_ms < 0 or expires_ms <= 0:
        raise GrantError(GrantProblem.CANNOT_RENEW, "expires_at or a positive extend_seconds is required")
    elif not grant.terms.expires_ms <= expires_ms <= latest_ms:
        span = f"{grant.terms.expires_ms // 1000} and {latest_ms // 1000}"
        raise GrantError(GrantProblem.CANNOT_RENEW, f"expires_at is not between {span}")
    else:
        new_ms = expires_ms
    return replace(grant, terms=replace(grant.terms, expires_ms=new_ms), renewed_ms=now_ms)
