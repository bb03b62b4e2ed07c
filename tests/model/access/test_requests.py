"""Authority requests: who decides, what an approval leaves, and one decision only."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access.grants import Audience, GrantError, GrantScope, PrincipalKey, ResourcePatterns
from aether_trio.model.access.levels import AccessLevel
from aether_trio.model.access.requests import (
    AS_REQUESTED,
    MAX_DURATION_S,
    PENDING_MS,
    Approval,
    RequestRecord,
    RequestStatus,
    ResolveError,
    Route,
    approve,
    cancel,
    deny,
    expire,
    may_decide,
    may_see,
    new_request,
)

ANN, BOB = PrincipalKey("user", "ann"), PrincipalKey("user", "bob")
AGENT, OTHER = PrincipalKey("agent", "ag::prod::planner::1"), PrincipalKey("agent", "ag::prod::other::1")
NOW = 1_700_000_000_000
TO_ANN = Route(ANN)


def request(**changes: object) -> RequestRecord:
    made = new_request(
        "r1",
        requester=AGENT,
        subject=ANN,
        wish=GrantScope(AccessLevel.MANAGE, ("prod", "test"), operations=("kv_*",)),
        duration_s=600,
        audience=Audience("agent", AGENT.id),
        route=TO_ANN,
        now_ms=NOW,
        reason="to plan",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_a_new_request_waits_for_half_an_hour_and_asks_for_an_hour_at_most() -> None:
    made = new_request(
        "r1",
        requester=AGENT,
        subject=None,
        wish=GrantScope(AccessLevel.READ),
        duration_s=10**9,
        audience=Audience("agent", AGENT.id),
        route=Route(capability="capability/approve/deploy"),
        now_ms=NOW,
    )
    assert (made.status, made.expires_ms, made.duration_s) == (RequestStatus.PENDING, NOW + PENDING_MS, MAX_DURATION_S)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"duration_s": 0}, ResolveError),
        ({"duration_s": -5}, ResolveError),
        ({"route": Route()}, ResolveError),
        ({"route": Route(ANN, "capability/approve/x")}, ResolveError),
        ({"wish": GrantScope(AccessLevel.NONE)}, GrantError),
        ({"audience": Audience("", "")}, GrantError),
    ],
)
def test_a_malformed_request_is_refused(changes: dict[str, object], error: type[Exception]) -> None:
    given_: dict[str, object] = {
        "requester": AGENT,
        "subject": ANN,
        "wish": GrantScope(AccessLevel.READ),
        "duration_s": 60,
        "audience": Audience("agent", AGENT.id),
        "route": TO_ANN,
        "now_ms": NOW,
    }
    with pytest.raises(error):
        new_request("r1", **{**given_, **changes})  # type: ignore[arg-type]


CAPABILITY = Route(capability="capability/approve/deploy")


@pytest.mark.parametrize(
    ("changes", "caller", "may_exchange", "holds_route", "decides"),
    [
        ({}, ANN, False, False, True),
        ({}, AGENT, True, True, False),
        ({}, BOB, True, True, False),
        ({"route": Route(BOB)}, BOB, False, False, False),
        ({"route": Route(BOB)}, BOB, True, False, True),
        ({"route": Route(BOB)}, ANN, False, False, True),
        ({"route": CAPABILITY}, BOB, True, True, True),
        ({"route": CAPABILITY}, BOB, True, False, False),
        ({"route": CAPABILITY}, BOB, False, True, False),
        ({"route": CAPABILITY, "subject": None}, BOB, False, True, True),
        ({"route": CAPABILITY, "subject": None}, BOB, True, False, False),
        ({"route": CAPABILITY, "subject": None}, AGENT, True, True, False),
        ({"route": Route(AGENT), "subject": None}, AGENT, True, True, False),
        ({"subject": AGENT, "route": Route(AGENT)}, AGENT, True, True, False),
    ],
)
def test_the_subject_or_one_who_may_exchange_for_him_decides_and_never_the_requester(
    changes: dict[str, object], caller: PrincipalKey, may_exchange: bool, holds_route: bool, decides: bool
) -> None:
    assert may_decide(request(**changes), caller, may_exchange=may_exchange, holds_route=holds_route) is decides


def test_requester_subject_and_who_was_asked_see_a_request() -> None:
    made = request(route=CAPABILITY)
    assert all(may_see(made, one, holds_route=False) for one in (AGENT, ANN))
    assert not may_see(made, BOB, holds_route=False)
    assert may_see(made, BOB, holds_route=True)
    assert not may_see(request(), BOB, holds_route=True)


def test_an_approval_makes_a_grant_for_the_requester_that_ends_with_its_audience() -> None:
    after, grant = approve(request(), Approval(), approver=ANN, grant_id="g1", now_ms=NOW + 5)
    assert (after.status, after.grant_id, after.resolved_by) == (RequestStatus.APPROVED, "g1", ANN)
    assert (grant.subject, grant.delegate, grant.issued_by) == (ANN, AGENT, ANN)
    assert grant.terms.scope == request().wish
    assert grant.terms.while_active
    assert not grant.may_delegate
    assert grant.terms.expires_ms == grant.terms.renewable_ms == NOW + 5 + 600_000


def test_without_a_subject_the_authority_is_the_approvers() -> None:
    made = request(subject=None, route=Route(BOB))
    assert approve(made, Approval(), approver=BOB, grant_id="g1", now_ms=NOW)[1].subject == BOB


def test_an_approver_narrows_each_part() -> None:
    approval = Approval(
        AccessLevel.READ, GrantScope(AccessLevel.NONE, ("prod", "dev"), operations=("kv_get", "kv_put")), 60
    )
    _, grant = approve(request(), approval, approver=ANN, grant_id="g1", now_ms=NOW)
    assert grant.terms.scope == GrantScope(AccessLevel.READ, ("prod",), operations=("kv_get", "kv_put"))
    assert grant.terms.expires_ms == NOW + 60_000


def test_an_approver_never_widens() -> None:
    approval = Approval(AccessLevel.SUPERADMIN, GrantScope(AccessLevel.NONE, ("*",)), 10**6, hops=1)
    _, grant = approve(request(), approval, approver=ANN, grant_id="g1", now_ms=NOW)
    assert grant.terms.scope == request().wish
    assert grant.terms.expires_ms == NOW + 600_000
    assert grant.may_delegate


def test_narrowing_an_unlimited_wish_narrows_it() -> None:
    scope = GrantScope(AccessLevel.NONE, ("prod",), (ResourcePatterns("kv_key", ("app/*",)),))
    wish = request(wish=GrantScope(AccessLevel.MANAGE))
    _, grant = approve(wish, Approval(scope=scope), approver=ANN, grant_id="g1", now_ms=NOW)
    assert grant.terms.scope == replace(scope, level=AccessLevel.MANAGE)


@pytest.mark.parametrize(
    "approval",
    [
        Approval(scope=GrantScope(AccessLevel.NONE, ("dev",))),
        Approval(scope=GrantScope(AccessLevel.NONE, operations=("send_message",))),
        Approval(level=AccessLevel.NONE),
        Approval(duration_s=-1),
    ],
    ids=["workspace", "operation", "level", "duration"],
)
def test_an_approval_that_leaves_nothing_is_refused(approval: Approval) -> None:
    with pytest.raises(GrantError):
        approve(request(), approval, approver=ANN, grant_id="g1", now_ms=NOW)


def test_only_the_requester_cancels() -> None:
    with pytest.raises(ResolveError, match="not found"):
        cancel(request(), caller=OTHER, reason="", now_ms=NOW)
    assert cancel(request(), caller=AGENT, reason="done", now_ms=NOW).resolution_reason == "done"


def test_a_request_expires_once_its_time_is_over_and_is_not_decided_then() -> None:
    with pytest.raises(ResolveError):
        expire(request(), NOW + PENDING_MS - 1)
    late = NOW + PENDING_MS
    assert expire(request(), late).failure == "authority request expired: it was not decided in time"
    with pytest.raises(ResolveError, match="already resolved"):
        approve(request(), Approval(), approver=ANN, grant_id="g1", now_ms=late)


steps = st.lists(st.sampled_from(["approve", "deny", "cancel", "expire"]), min_size=2, max_size=5)


@given(steps, st.lists(st.integers(0, PENDING_MS), min_size=5, max_size=5))
@settings(max_examples=100)
def test_a_request_is_resolved_once(moves: list[str], pauses: list[int]) -> None:
    current, now_ms, resolved = request(), NOW, 0
    for move, pause in zip(moves, pauses, strict=False):
        now_ms += pause
        try:
            if move == "approve":
                current, grant = approve(current, Approval(), approver=ANN, grant_id="g1", now_ms=now_ms)
                assert grant.terms.expires_ms > now_ms
            elif move == "deny":
                current = deny(current, approver=ANN, reason="no", now_ms=now_ms)
            elif move == "cancel":
                current = cancel(current, caller=AGENT, reason="", now_ms=now_ms)
            else:
                current = expire(current, now_ms)
        except ResolveError:
            continue
        resolved += 1
    assert resolved <= 1
    assert (current.status is RequestStatus.PENDING) == (not resolved)
    assert (current.status is RequestStatus.APPROVED) == bool(current.grant_id)


words = st.lists(st.sampled_from(["*", "prod*", "prod", "t?st", "test", "*d"]), max_size=3).map(tuple)


@given(words, words, st.sampled_from(list(AccessLevel)), st.integers(0, 7200), st.sampled_from(["prod", "test", "dev"]))
@settings(max_examples=200)
def test_an_approval_permits_nothing_that_was_not_wished_or_not_given(
    wished: tuple[str, ...], given_: tuple[str, ...], level: AccessLevel, duration_s: int, workspace: str
) -> None:
    wish = request(wish=GrantScope(AccessLevel.MANAGE, wished))
    approval = Approval(level, GrantScope(AccessLevel.NONE, given_), duration_s)
    try:
        _, grant = approve(wish, approval, approver=ANN, grant_id="g1", now_ms=NOW)
    except GrantError:
        return
    scope = grant.terms.scope
    assert scope.level <= min(level, AccessLevel.MANAGE)
    assert grant.terms.expires_ms <= NOW + 1000 * min(duration_s or 600, 600)
    if scope.problem(AccessLevel.READ, "op", workspace, "", "") is None:
        for part in (wished, given_):
            assert GrantScope(AccessLevel.READ, part).problem(AccessLevel.READ, "op", workspace, "", "") is None


def test_statuses_have_the_protocols_numbers() -> None:
    assert [status.wire for status in RequestStatus] == [1, 2, 3, 4, 5]
    assert RequestStatus.from_wire(2) is RequestStatus.APPROVED
    assert RequestStatus.from_wire(9) is None
    assert AS_REQUESTED.level is AccessLevel.NONE
