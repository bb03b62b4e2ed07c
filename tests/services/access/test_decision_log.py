"""Decisions in the audit: the first at once, repeats and floods as counts."""

from __future__ import annotations

from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import AuditEvent
from aether_trio.model.identity import Identity
from aether_trio.services.access import DIRECT, AccessDecision, AccessQuestion, GatewayActor
from aether_trio.services.access.decision_log import MAX_KINDS, DecisionLog
from tests.helpers.clocks import ManualClock

ANN = GatewayActor(Identity.agent("red", "ann", "1"))
BOB = GatewayActor(Identity.agent("red", "bob", "1"))
BOB.session_id = "bob"


def asked(workspace: str) -> AccessQuestion:
    return AccessQuestion("send_message", "workspace", workspace, workspace, AccessLevel.READ)


def log() -> tuple[DecisionLog, list[AuditEvent]]:
    rows: list[AuditEvent] = []
    return DecisionLog(rows.append, ManualClock(), lambda: "id"), rows


def test_repeats_are_one_row_with_their_number() -> None:
    decisions, rows = log()
    yes, no = AccessDecision(True, level=AccessLevel.READ), AccessDecision(False, "because")
    for _ in range(5):
        decisions.decided(ANN, asked("red"), yes, DIRECT)
        decisions.decided(ANN, asked("red"), no, DIRECT)
    assert [(row.success, row.metadata.get("repeated")) for row in rows] == [(True, None), (False, None)]
    assert rows[1].metadata["reason"] == "because"
    decisions.fold()
    assert [row.metadata["repeated"] for row in rows[2:]] == [4, 4]
    decisions.fold()
    decisions.fold()
    assert len(rows) == 4


def test_a_flood_of_different_decisions_is_bounded_and_none_is_lost() -> None:
    decisions, rows = log()
    for number in range(MAX_KINDS * 3):
        decisions.decided(ANN, asked(f"w{number}"), AccessDecision(False), DIRECT)
    decisions.decided(BOB, asked("red"), AccessDecision(True), DIRECT)
    assert len(rows) == MAX_KINDS + 2
    assert rows[-1].actor_id == "ag::red::bob::1"
    decisions.fold()
    counted = sum(1 + int(str(row.metadata.get("repeated", 0))) for row in rows if row.actor_id == "ag::red::ann::1")
    # The row of the repeats has no decision besides those that it counts.
    assert counted - sum("repeated" in row.metadata for row in rows) == MAX_KINDS * 3
