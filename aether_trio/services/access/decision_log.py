"""Records access decisions in the audit: the first at once, repeats by a count.

A decision is the same as an earlier one if actor, session, operation, resource, workspace, grant
and outcome are. Repeats within a minute become one row with their count, so a client that does a
thing a thousand times a second costs a row a minute.

Invariant: at most MAX_OPEN kinds of decisions are counted at a time; beyond, all counts are written
early.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import trio

from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import AuditEvent, EventType
from aether_trio.model.clock import Clock
from aether_trio.model.errors import Code, RequestError
from aether_trio.services.access.authorizer import AccessDecision, AccessQuestion, Actor, Authority, DecisionCount

FOLD_S: Final = 60.0
MAX_OPEN: Final = 65_536
MAX_KINDS: Final = 200
"""Kinds of decisions of one session that have separate rows each minute; the others share one
row with their number for each outcome."""


OTHERS: Final = "*"


class _Kind(NamedTuple):
    """What repeats have in common."""

    actor_type: str
    actor_id: str
    session_id: str
    operation: str
    resource_type: str
    resource_id: str
    workspace: str
    grant_id: str
    allowed: bool
    level: AccessLevel
    rule_id: str
    required: AccessLevel
    groups: tuple[str, ...]


@dataclass(slots=True)
class _Repeats:
    """A decision's last row, and how often it was made again since."""

    event: AuditEvent
    count: DecisionCount


class DecisionLog:
    """A DecisionSink that writes rows with `put`, which says False if it takes none."""

    def __init__(
        self,
        put: Callable[[AuditEvent], bool | None],
        clock: Clock,
        new_id: Callable[[], str],
        owner_of: Callable[[str], tuple[str, str] | None] = lambda resource_type: None,
    ) -> None:
        self._put = put
        self._clock = clock
        self._new_id = new_id
        self._owner_of = owner_of
        """Returns who has registered a resource type, and its prefix there."""
        self._open: dict[_Kind, _Repeats] = {}
        self._kinds: Counter[str] = Counter()

    def decided(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, *, times: int = 1
    ) -> DecisionCount:
        kind = _kind(actor, access, decision, authority)
        known = self._open.get(kind)
        if known is not None:
            known.count.times += times
            return known.count
        if len(self._open) >= MAX_OPEN:
            self.fold()
        kinds = self._kinds.get(actor.session_id, 0)
        if kinds >= MAX_KINDS:
            kind = _others(kind)
            if (known := self._open.get(kind)) is not None:
                known.count.times += times
                return known.count
        self._kinds[actor.session_id] = kinds + 1
        event = self._event(kind, decision, authority)
        if kind.grant_id == OTHERS:
            event = _of_several(event)
        count = DecisionCount(times - 1)
        self._open[kind] = _Repeats(event, count)
        self._put(event)
        return count

    def receipt(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, correlation: str
    ) -> str:
        decision_id = self._new_id()
        event = self._event(_kind(actor, access, decision, authority), decision, authority)
        metadata = {**event.metadata, "decision_id": decision_id, "correlation_id": correlation}
        if self._put(replace(event, metadata=metadata)) is False:
            raise RequestError(Code.CIRCUIT_OPEN, "the audit log takes no row of this decision now; try again")
        return decision_id

    def _event(self, kind: _Kind, decision: AccessDecision, authority: Authority) -> AuditEvent:
        event = decision_event(kind, decision, authority, self._clock.now_ms())
        owner = self._owner_of(kind.resource_type)
        if owner is None:
            return event
        return replace(event, metadata={**event.metadata, "owning_agent": owner[0], "owning_agent_prefix": owner[1]})

    def fold(self) -> None:
        """Write a row for each decision that was repeated; forget the others."""
        now_ms = self._clock.now_ms()
        kept: dict[_Kind, _Repeats] = {}
        for kind, repeats in self._open.items():
            count = repeats.count
            if count.times:
                self._put(_again(repeats.event, now_ms, count.times))
                count.times = 0
                kept[kind] = repeats
            else:
                count.is_open = False
        self._open = kept
        self._kinds = Counter(kind.session_id for kind in kept)

    async def run(self) -> None:
        """Fold each minute until cancelled; then once more."""
        try:
            while True:
                await trio.sleep(FOLD_S)
                self.fold()
        finally:
            self.fold()


def _kind(actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority) -> _Kind:
    identity = actor.identity
    resource_type, resource_id = decision.resource
    return _Kind(
        identity.type_name,
        identity.canonical_id,
        actor.session_id,
        access.operation,
        resource_type or access.resource_type,
        resource_id or access.resource_id,
        access.workspace,
        authority.grant_id,
        decision.allowed,
        decision.level,
        decision.rule_id,
        access.level,
        actor.groups,
    )


def _others(kind: _Kind) -> _Kind:
    """Return the kind of all further decisions of a session with the same outcome."""
    return kind._replace(
        operation="other",
        resource_type="",
        resource_id="*",
        workspace="",
        grant_id=OTHERS if kind.grant_id else "",
        level=AccessLevel.NONE,
        rule_id="",
        required=AccessLevel.NONE,
    )


def decision_event(kind: _Kind, decision: AccessDecision, authority: Authority, now_ms: int) -> AuditEvent:
    """Make the event of a decision."""
    grant = authority.grant
    subject = (kind.actor_type, kind.actor_id) if grant is None else grant.subject
    root = subject if grant is None else grant.root_subject
    return AuditEvent(
        at_ms=now_ms,
        event_type=EventType.AUTHORIZATION,
        operation=kind.operation,
        actor_type=kind.actor_type,
        actor_id=kind.actor_id,
        resource_type=kind.resource_type,
        resource_id=kind.resource_id,
        workspace=kind.workspace,
        session_id=kind.session_id,
        success=kind.allowed,
        error_message="" if kind.allowed else "access denied",
        metadata={
            "decision": "ALLOW" if kind.allowed else "DENY",
            "access_level": int(kind.level),
            "rule_id": kind.rule_id,
            "fallback_applied": decision.is_fallback,
            "required_level": int(kind.required),
            **({"groups": kind.groups} if kind.groups else {}),
            **({} if grant is None else {"subject": f"{subject[0]}:{subject[1]}"}),
            **({} if kind.allowed else {"reason": decision.reason}),
        },
        subject_type=subject[0],
        subject_id=subject[1],
        root_subject_type=root[0],
        root_subject_id=root[1],
        authority_mode="direct" if grant is None else "on_behalf_of",
        authority_grant_id=authority.grant_id,
        root_authority_grant_id="" if grant is None else grant.root_grant_id,
    )


def _of_several(event: AuditEvent) -> AuditEvent:
    """Return the event of decisions in the names of several subjects."""
    return replace(
        event,
        metadata={key: value for key, value in event.metadata.items() if key not in ("subject", "reason")},
        subject_type="",
        subject_id=OTHERS,
        root_subject_type="",
        root_subject_id=OTHERS,
        authority_grant_id=OTHERS,
        root_authority_grant_id="",
    )


def _again(event: AuditEvent, now_ms: int, times: int) -> AuditEvent:
    return replace(event, at_ms=now_ms, metadata={**event.metadata, "repeated": times})
