"""Recorded decisions, decided again by other rules."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.replay import ChangedKind, Replayed, ReplayedDecision
from aether_trio.model.access.rules import Lock, Rule
from aether_trio.model.access.seeds import OWN_RULE

NOW_MS = 1_800_000_000_000
ANN = "ag::red::ann::1"


def decision(allowed: bool = True, workspace: str = "blue", **fields: Any) -> ReplayedDecision:
    found = ReplayedDecision(
        NOW_MS, "agent", ANN, "workspace", workspace, "send", workspace, allowed, AccessLevel.READWRITE, True
    )
    return found._replace(**fields)


def index(*rules: tuple[str, str, str, AccessLevel]) -> AccessIndex:
    found = AccessIndex()
    for number, (principal_type, principal_id, workspace, level) in enumerate(rules):
        found.put_rule(Rule(f"r{number}", principal_type, principal_id, "workspace", workspace, level))
    return found


def replayed(by: AccessIndex, *decisions: ReplayedDecision) -> Replayed:
    found = Replayed()
    for one in decisions:
        found.add(one, by)
    return found


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("level", [AccessLevel.READ, AccessLevel.READWRITE, AccessLevel.ADMIN])
def test_what_would_be_decided_otherwise_is_counted(allowed: bool, level: AccessLevel) -> None:
    now_allowed = level >= AccessLevel.READWRITE
    found = replayed(index(("agent", ANN, "blue", level)), decision(allowed, times=3))
    assert found.total == 3
    assert found.denied == (3 if allowed and not now_allowed else 0)
    assert found.allowed == (3 if not allowed and now_allowed else 0)
    assert len(found.changed()) == (allowed is not now_allowed)


def test_the_newest_of_a_kind_is_its_example_and_denials_come_first() -> None:
    by = index(("agent", ANN, "green", AccessLevel.ADMIN))
    older, newer = decision(at_ms=NOW_MS - 5), decision(times=2)
    found = replayed(by, newer, older, decision(False, "green", times=9))
    (denied, how), (allowed, _) = found.changed().items()
    assert denied == ChangedKind(("agent", ANN), ("workspace", "blue"), "send", False)
    assert (how.times, how.newest_ms, how.why) == (3, NOW_MS, "No rule or fallback policy for agent_workspace")
    assert allowed.allowed


def test_what_does_not_rest_on_rules_is_left() -> None:
    found = replayed(index(), decision(by_rules=False), decision(required=AccessLevel.NONE))
    assert (found.total, found.left, found.denied) == (2, 2, 0)


def test_decisions_for_others_ask_for_the_subject_and_groups_of_credentials_count() -> None:
    by = index(("user", "eve", "blue", AccessLevel.READWRITE), ("group", "idp:x:crew", "gold", AccessLevel.ADMIN))
    found = replayed(by, decision(subject="user:eve"), decision(workspace="gold", groups=("idp:x:crew",)))
    assert (found.denied, found.left) == (0, 0)


def test_ones_own_workspace_and_locks_count() -> None:
    by = index(("wildcard", "_own_workspace", "_own", AccessLevel.READWRITE))
    by.remove_rule("r0")
    by.put_rule(Rule(OWN_RULE, "wildcard", "_own_workspace", "workspace", "_own", AccessLevel.READWRITE))
    assert replayed(by, decision(workspace="red")).denied == 0
    assert replayed(by, decision(workspace="blue")).denied == 1
    by.put_lock(Lock("l", "ag::red::*"))
    found = replayed(by, decision(workspace="red"))
    assert [one.why for one in found.changed().values()] == ["the lock on ag::red::*"]
