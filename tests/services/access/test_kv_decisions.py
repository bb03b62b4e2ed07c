"""Decisions on keys are remembered for a session, and are what the rules say."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aether_trio.model.access import AccessLevel
from aether_trio.model.access.ladder import AccessIndex
from aether_trio.model.access.rules import Lock, Member, Rule
from aether_trio.model.identity import Identity
from aether_trio.services.access import AccessDecision, AccessQuestion, Actor, Authority, GatewayActor
from aether_trio.services.access.authorizer import DecisionCount, NoDecisions, NoGrants
from aether_trio.services.access.rule_authorizer import RuleAuthorizer
from tests.helpers.access import authorizer
from tests.helpers.clocks import ManualClock

NONE, READ, READWRITE = AccessLevel.NONE, AccessLevel.READ, AccessLevel.READWRITE
AGENT = Identity.agent("w", "i", "1")
LEVELS = st.sampled_from([NONE, READ, READWRITE])
MOMENTS = st.sampled_from([0, 0, 1_000, 5_000])
SUBJECTS = st.sampled_from(
    [
        ("agent", AGENT.canonical_id), ("agent", "ag::w::*"), ("agent", "ag::v::*"), ("group", "g"), ("group", "h"),
        ("wildcard", "_any_agent"), ("user", "*"),
    ]
)  # fmt: skip
RESOURCES = st.sampled_from(
    [
        ("workspace", "w"), ("workspace", "*"), ("kv_scope", "global"), ("kv_scope", "workspace"), ("kv_scope", "*"),
        ("kv_scope", "user-shared/u"), ("kv_key", "k"), ("kv_key", "k*"), ("kv_key", "other"), ("kv_key", "*"),
    ]
)  # fmt: skip
CHANGES = st.one_of(
    st.tuples(st.just("rule"), SUBJECTS, RESOURCES, LEVELS, MOMENTS),
    st.tuples(st.just("no rule"), SUBJECTS, RESOURCES),
    st.tuples(st.just("member"), st.sampled_from(["g", "h"]), MOMENTS),
    st.tuples(st.just("lock"), MOMENTS),
    st.tuples(st.just("fallback"), st.sampled_from(["agent_workspace", "agent_kv_scope", "agent_kv_key"]), LEVELS),
    st.tuples(st.just("later"), st.sampled_from([500, 1_000, 5_000])),
)
PLACES: list[tuple[str, str, str, str, bool]] = [
    *(("global", key, "", "", False) for key in ("k", "key", "other", "")),
    *(("workspace", key, "w", "", False) for key in ("k", "other")),
    ("user-shared", "k", "", "u", False),
    ("workspace-exclusive", "k", "w", "", True),
    ("global-exclusive", "k", "", "", True),
]


class Connected(GatewayActor):
    """An actor with a session, whose decisions are remembered."""

    def __init__(self, session_id: str) -> None:
        super().__init__(AGENT)
        self.session_id = session_id


class Counting(NoDecisions):
    """Counts the decisions that are reported, and those that are remembered."""

    def __init__(self) -> None:
        self.counts: list[DecisionCount] = []

    def decided(
        self, actor: Actor, access: AccessQuestion, decision: AccessDecision, authority: Authority, *, times: int = 1
    ) -> DecisionCount:
        self.counts.append(DecisionCount(times))
        return self.counts[-1]

    @property
    def times(self) -> int:
        return sum(count.times for count in self.counts)


def put(rules: RuleAuthorizer, change: tuple[Any, ...]) -> None:
    """Make a change as AccessChanges does: the index, then no verdict is remembered."""
    index = rules.index
    match change:
        case "rule", subject, resource, level, expires_ms:
            now_ms = rules.now_ms()
            index.put_rule(
                Rule(f"{subject}{resource}", *subject, *resource, level, expires_ms=expires_ms and now_ms + expires_ms)
            )
        case "no rule", subject, resource:
            index.remove_rule(f"{subject}{resource}")
        case "member", group, expires_ms:
            ends_ms = expires_ms and rules.now_ms() + expires_ms
            index.put_membership(Member("group", group, "agent", AGENT.canonical_id, expires_ms=ends_ms))
        case "lock", expires_ms:
            index.put_lock(Lock("lock", AGENT.text, expires_ms=rules.now_ms() + (expires_ms or 1)))
        case "fallback", category, level:
            index.set_fallback(category, level)
    rules.forget_verdicts()


@settings(max_examples=100)
@given(changes=st.lists(CHANGES, max_size=12))
async def test_a_remembered_decision_is_what_the_rules_say(changes: list[tuple[Any, ...]]) -> None:
    clock = ManualClock()
    rules = RuleAuthorizer(AccessIndex(), clock, NoGrants(), NoDecisions())
    rules.index.set_fallback("agent_workspace", READWRITE)
    rules.index.set_fallback("agent_kv_scope", READ)
    for change in [("none",), *changes]:
        if change[0] == "later":
            clock.advance(change[1])
        elif change[0] != "none":
            put(rules, change)
        for scope, key, workspace, user_id, exclusive in PLACES:
            for level in (READ, READWRITE):
                told = [
                    await rules.check_kv(actor, scope, key, workspace, user_id, level, exclusive=exclusive)
                    for actor in (Connected("s"), Connected("s"), GatewayActor(AGENT))
                ]
                assert told[0] == told[1] == told[2], (scope, key)


async def test_rules_about_keys_of_others_cost_a_session_nothing() -> None:
    rules, actor = authorizer(), Connected("s")
    first = await rules.check_kv(actor, "global", "a", "", "", READ)
    assert await rules.check_kv(actor, "global", "b", "", "", READ) is first
    put(rules, ("rule", ("agent", "ag::v::*"), ("kv_key", "b"), NONE, 0))
    first = await rules.check_kv(actor, "global", "a", "", "", READ)
    assert await rules.check_kv(actor, "global", "b", "", "", READ) is first
    put(rules, ("rule", ("agent", "ag::w::*"), ("kv_key", "b"), NONE, 0))
    assert (await rules.check_kv(actor, "global", "a", "", "", READ)).allowed
    assert not (await rules.check_kv(actor, "global", "b", "", "", READ)).allowed


async def test_every_remembered_decision_is_counted() -> None:
    counting, index = Counting(), AccessIndex()
    index.set_fallback("agent_kv_scope", READ)
    rules = RuleAuthorizer(index, ManualClock(), NoGrants(), counting)
    for number in range(1, 6):
        assert (await rules.check_kv(Connected("s"), "global", f"k{number}", "", "", READ)).allowed
        assert counting.times == number
    assert len(counting.counts) == 1
    counting.counts[0].is_open = False
    await rules.check_kv(Connected("s"), "global", "k", "", "", READ)
    assert [count.times for count in counting.counts] == [5, 1]
    await rules.check_kv(Connected("another"), "global", "k", "", "", READ)
    assert [count.times for count in counting.counts] == [5, 1, 1]
