"""Decides recorded accesses again by other rules, and counts what would change.

A decision that rested on more than rules (a credential, a grant's limits, a participant's exclusive
keys) is not decided again, nor is one whose record does not say which level was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.policy import decided_by, workspace_of

MAX_KINDS: Final = 10_000
"""Kinds of changes that are kept apart; further ones are counted only."""


class ReplayedDecision(NamedTuple):
    """A recorded decision.

    `subject` is the principal in whose name it was made, as "type:id"; "": the actor.
    """

    at_ms: int
    principal_type: str
    principal_id: str
    resource_type: str
    resource_id: str
    operation: str
    workspace: str
    allowed: bool
    required: AccessLevel
    by_rules: bool
    groups: tuple[str, ...] = ()
    subject: str = ""
    times: int = 1


class ChangedKind(NamedTuple):
    """Decisions that would change alike."""

    principal: tuple[str, str]
    resource: tuple[str, str]
    operation: str
    allowed: bool
    """Whether they would be allowed."""


@dataclass(slots=True)
class ChangedDecisions:
    """How many decisions of a kind would change, and the newest: when, and why."""

    times: int = 0
    newest_ms: int = -1
    why: str = ""


@dataclass(slots=True)
class Replayed:
    """What a replay has found so far."""

    total: int = 0
    left: int = 0
    """Decisions that were not decided again."""
    denied: int = 0
    """Allowed decisions that would be denied."""
    allowed: int = 0
    """Denied decisions that would be allowed."""
    kinds: dict[ChangedKind, ChangedDecisions] = field(default_factory=dict)

    def add(self, decision: ReplayedDecision, index: AccessIndex) -> None:
        """Decide a recorded access again, and count it."""
        self.total += decision.times
        if not decision.by_rules or decision.required is AccessLevel.NONE:
            self.left += decision.times
            return
        allowed, why = decide_again(decision, index)
        if allowed is decision.allowed:
            return
        if allowed:
            self.allowed += decision.times
        else:
            self.denied += decision.times
        kind = ChangedKind(_principal(decision), decision[3:5], decision.operation, allowed)
        known = self.kinds.get(kind)
        if known is None:
            if len(self.kinds) >= MAX_KINDS:
                return
            known = self.kinds[kind] = ChangedDecisions()
        known.times += decision.times
        if decision.at_ms > known.newest_ms:
            known.newest_ms, known.why = decision.at_ms, why

    def changed(self) -> Mapping[ChangedKind, ChangedDecisions]:
        """Return what would change: denials first, the most frequent first."""
        order = sorted(self.kinds.items(), key=lambda one: (one[0].allowed, -one[1].times, one[0]))
        return dict(order)


def decide_again(decision: ReplayedDecision, index: AccessIndex) -> tuple[bool, str]:
    """Return whether an access would be allowed when it was asked for, and by what."""
    principal = _principal(decision)
    text = f"us::{principal[1]}::" if principal[0] == "user" else principal[1]
    lock = index.locked(*principal, text, decision.at_ms)
    if lock is not None:
        return False, f"the lock on {lock.pattern}"
    own = workspace_of(*principal)
    verdict = index.decide(
        *principal,
        *decision[3:5],
        decision.at_ms,
        own_workspace=own if own == decision.workspace else "",
        groups=() if decision.subject else decision.groups,
    )
    return verdict.level >= decision.required, decided_by(index, verdict)


def _principal(decision: ReplayedDecision) -> tuple[str, str]:
    if not decision.subject:
        return decision.principal_type, decision.principal_id
    kind, _, name = decision.subject.partition(":")
    return kind, name
