"""Policies over the wire: planned, applied in one transaction, refused as a whole."""

from __future__ import annotations

import json
import threading
from typing import Any

import msgspec
import pytest
import trio

from aether_trio.cli.access.policy_file import policy_node
from aether_trio.gateway.core import Core
from aether_trio.model.access.policy_reading import read_policy
from aether_trio.services.access import policy_service
from aether_trio.services.access.changes import AccessChanges
from aether_trio.services.access.policy_service import PolicyAnswer, PolicyOrder
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, connect, kv_get, orchestrator, user
from tests.services.access.acl import ADMIN, MANAGE, READ, READWRITE, SUPERADMIN, Op, acl, done, grant, may, refused

PATIENCE_S = 60.0
ANN, BLUE, RED = ("agent", "ag::red::ann::1"), ("workspace", "blue"), ("workspace", "red")
POLICY = """
version: 1
names: {ann: 'ag::red::ann::1'}
groups: {readers: {description: may read, members: [ann]}, staff: ['group:readers']}
rules:
- group:staff readwrite workspace:blue
fallbacks: {agent_topic: read}
locks: [{pattern: 'ag::prod::*', reason: drill}]
tests:
- ann may readwrite workspace:blue
- ann may not manage workspace:blue
- ag::prod::x::1 may not read workspace:prod
"""


def document(text: str, **order: Any) -> str:
    return msgspec.json.encode(PolicyOrder(1, read_policy(policy_node(text)), **order)).decode()


def ask(action: str, text: str) -> pb.ACLGrantRequest:
    return pb.ACLGrantRequest(resource_type="policy", resource_id=action, reason=text)


async def operate(peer: MemoryLink, action: str, text: str, **order: Any) -> PolicyAnswer:
    answer = await done(peer, Op.GRANT, grant_request=ask(action, document(text, **order)))
    found = msgspec.json.decode(answer.rule.reason, type=PolicyAnswer)
    assert (answer.rule.resource_type, answer.rule.resource_id, answer.rule.rule_id) == ("policy", action, found.digest)
    return found


async def no(peer: MemoryLink, text: str, **order: Any) -> str:
    return await refused(peer, Op.GRANT, grant_request=ask("apply", document(text, **order)))


async def listed(peer: MemoryLink, resource_type: str = "") -> list[pb.ACLRuleInfo]:
    wanted = pb.ACLRuleFilter(resource_type=resource_type, limit=1000)
    return list((await done(peer, Op.LIST_RULES, rule_filter=wanted)).rules)


@pytest.fixture
def commits(closed: Core, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The versions of changes after the start, as they are committed."""
    versions: list[int] = []
    commit = AccessChanges.commit

    async def counted(self: AccessChanges, *arguments: Any) -> Any:
        found = await commit(self, *arguments)
        if found.version:
            versions.append(found.version)
        return found

    monkeypatch.setattr(AccessChanges, "commit", counted)
    return versions


async def test_a_policy_is_planned_then_applied_in_one_change(closed: Core, commits: list[int]) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, agent("red", "ann", "1")) as ann:
        planned = await operate(admin, "plan", POLICY)
        assert [str(one) for one in planned.lines] == [
            "+ group readers: may read",
            "+ group staff",
            "+ member ag::red::ann::1 in group:readers",
            "+ member group:readers in group:staff",
            "+ rule group:staff workspace:blue: readwrite",
            "+ fallback agent_topic: read",
            "+ lock ag::prod::*: (drill)",
        ]
        assert (planned.tests, planned.failures, planned.added, planned.changed, planned.removed) == (3, (), 7, 0, 0)
        assert commits == []
        assert not await may(ann, BLUE, READ)
        assert (await operate(admin, "apply", POLICY, expected=planned.state)).added == 7
        assert len(commits) == 1
        assert await may(ann, BLUE, READWRITE)
        assert [one.resource_id for one in await listed(admin, "member")] == [
            "group:readers",
            "group:staff",
            "role:administrators",
        ]
        [fallback] = await listed(admin, "fallback")
        assert (fallback.rule_id, fallback.access_level, fallback.granted_by) == ("agent_topic", READ, "orc::o::1")
        again = await operate(admin, "apply", POLICY)
        assert (again.lines, len(commits)) == ((), 1)


async def test_prune_takes_away_what_is_not_named(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, agent("red", "ann", "1")) as ann:
        await operate(admin, "apply", POLICY)
        kept = await grant(admin, ANN, ("workspace", "green"), READ)
        less = "version: 1\nrules: ['ag::red::ann::1 read workspace:green']\ngroups: {readers: []}\nlocks: []"
        assert (await operate(admin, "plan", less)).unnamed == 5
        found = await operate(admin, "apply", less, prune=True)
        assert (found.added, found.changed, found.removed) == (0, 0, 5)
        assert not await may(ann, BLUE, READ)
        assert kept in await listed(admin)
        assert await listed(admin, "lock") == []
        assert [one.group_name for one in (await done(admin, Op.LIST_GROUPS)).groups] == ["readers"]
        left = await done(admin, Op.GET_FALLBACK_POLICY, rule_category="agent_topic")
        assert left.fallback_policy.fallback_access_level == READ


async def test_terms_change_in_place(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        await operate(admin, "apply", POLICY)
        before = next(one for one in await listed(admin) if one.principal_id == "staff")
        changed = (
            POLICY.replace("staff readwrite", "staff manage")
            .replace("may not manage workspace", "may manage workspace")
            .replace("topic: read", "topic: none")
            .replace("drill", "over")
            .replace("may read,", "can read,")
        )
        found = await operate(admin, "apply", changed)
        assert (found.added, found.changed, found.removed) == (0, 4, 0)
        after = next(one for one in await listed(admin) if one.principal_id == "staff")
        assert (after.rule_id, after.access_level) == (before.rule_id, MANAGE)
        assert [one.reason for one in await listed(admin, "lock")] == ["over"]
        assert (await done(admin, Op.GET_GROUP, name="readers")).group.description == "can read"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tests: [us::eve may read workspace:red]", "1 of 1 tests fail: line 2: us::eve may read workspace:red (No rule"),
        ("groups: {a: ['group:b'], b: ['group:a']}", "cycle"),
        ("groups: {a: ['group:nowhere']}", "group not found: 'nowhere'"),
        ("rules: [user:eve superadmin workspace:x]", "you cannot give more than you have: the policy gives user:eve SUPERADMIN"),
        ("groups: {a: ['user:eve']}\nroles: {administrators: ['group:a']}", "you cannot give more than you have"),
        ("fallbacks: {agent_workspace: superadmin}", "a fallback cannot give SUPERADMIN"),
        ("locks: ['orc::*']", "would lock you out"),
        ("rules: [orchestrator:orc::o::1 none admin/acl]", "after it you would not have ADMIN on admin/acl any more"),
    ],
)  # fmt: skip
async def test_a_policy_is_refused_as_a_whole(closed: Core, commits: list[int], text: str, expected: str) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        rules = await listed(admin)
        good = "" if "rules:" in text else "\nrules: [user:eve read workspace:x]"
        assert expected in await no(admin, f"version: 1\n{text}{good}")
        assert (await listed(admin), commits) == (rules, [])


async def test_pruning_gives_the_caller_nothing(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        await grant(admin, ("orchestrator", "orc::o::1"), ("workspace", "secret"), 0)
        text = await no(admin, "version: 1\nrules: []", prune=True)
        assert "you would have ADMIN instead of NONE on workspace:secret" in text
        changed = await no(admin, "version: 1\nrules: [orc::o::1 read workspace:secret]")
        assert "cannot give more than you have" in changed


async def test_it_takes_an_administrator(closed: Core) -> None:
    async with connect(closed, agent("red", "ann", "1")) as ann, connect(closed, orchestrator("o", "1")) as admin:
        assert "ERR_PERMISSION_DENIED" in await refused(ann, Op.GRANT, grant_request=ask("plan", document(POLICY)))
        assert "ERR_PERMISSION_DENIED" in await no(ann, POLICY)
        await grant(admin, ANN, ("admin", "admin/acl"), READ)
        await operate(ann, "plan", POLICY)
        assert "ERR_PERMISSION_DENIED" in await no(ann, POLICY)
        await grant(admin, ANN, ("admin", "admin/acl"), ADMIN)
        assert "cannot give more than you have" in await no(ann, "version: 1\nrules: [user:x admin workspace:blue]")
        await operate(ann, "apply", "version: 1\nrules: [user:x readwrite workspace:red]")


async def test_a_plan_of_an_earlier_state_is_not_applied(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        planned = await operate(admin, "plan", POLICY)
        await grant(admin, ANN, BLUE, READ)
        assert "have changed since" in await no(admin, POLICY, expected=planned.state)


async def test_a_change_between_plan_and_commit_has_the_policy_planned_anew(
    closed: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, orchestrator("o", "2")) as other:
        check = policy_service.PolicyService._check_rights
        interfere = [ANN]

        async def slowly(self: Any, *arguments: Any) -> None:
            await check(self, *arguments)
            while interfere:
                await grant(other, interfere.pop(), BLUE, READ)

        monkeypatch.setattr(policy_service.PolicyService, "_check_rights", slowly)
        text = "version: 1\nrules: [ag::red::ann::1 manage workspace:blue]"
        found = await operate(admin, "apply", text)
        assert (found.added, found.changed) == (0, 1)
        await grant(other, ANN, BLUE, READ)
        interfere += [ANN] * 100

        async def always(self: Any, *arguments: Any) -> None:
            await check(self, *arguments)
            await grant(other, interfere.pop(), BLUE, READ, reason=str(len(interfere)))

        monkeypatch.setattr(policy_service.PolicyService, "_check_rights", always)
        answer = await acl(admin, Op.GRANT, grant_request=ask("apply", document(text)))
        assert "try again" in answer.error
        assert (await admin.next("error")).error.retryable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "malformed"),
        ("[]", "malformed"),
        ('{"version":2,"policy":{}}', "unknown version 2"),
        ('{"version":1,"policy":{"base":"x"}}', "unknown base 'x'"),
        ('{"version":1,"policy":{"sections":["x"]}}', "sections"),
        ('{"version":1,"policy":{"rules":[["x","y","workspace","z",10]]}}', "unknown principal type 'x'"),
        ('{"version":1,"policy":{"rules":[["user","y","workspace","z",11]]}}', "malformed"),
        ('{"version":1,"policy":{"groups":[["x","y"]]}}', "unknown kind 'x'"),
        ('{"version":1,"policy":{"members":[["group","y","zz","z"]]}}', "unknown principal type 'zz'"),
        ('{"version":1,"policy":{"fallbacks":[["agent_x",10]]}}', "no category"),
        ('{"version":1,"policy":{"locks":[["[",""]]}}', "bad pattern"),
        ('{"version":1,"policy":{"groups":[["group","a\\u0000"]]}}', "control character"),
    ],
)
async def test_documents_are_checked(closed: Core, text: str, expected: str) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        for action in ("plan", "apply"):
            assert expected in await refused(admin, Op.GRANT, grant_request=ask(action, text))
        assert "a policy is for plan or apply" in await refused(
            admin, Op.GRANT, grant_request=ask("x", document(POLICY))
        )


async def test_a_large_policy_is_one_change(closed: Core, commits: list[int]) -> None:
    rules = [["user", f"u{n}", "workspace", f"w{n % 7}", 10] for n in range(5000)]
    text = json.dumps({"version": 1, "policy": {"rules": rules}})
    async with connect(closed, orchestrator("o", "1")) as admin:
        answer = await done(admin, Op.GRANT, grant_request=ask("apply", text))
        assert msgspec.json.decode(answer.rule.reason, type=PolicyAnswer).added == 5000
        assert len(commits) == 1
        listing = await done(admin, Op.LIST_RULES, rule_filter=pb.ACLRuleFilter(principal_type="user"))
        assert listing.total_rules == 5000


@pytest.mark.parametrize("action", ["plan", "apply"])
async def test_others_are_served_while_a_large_policy_is_planned_and_checked(
    closed: Core, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    """The slow part waits until another session is served, which takes a turn."""
    rules = [["user", f"u{n}", "workspace", f"w{n % 7}", 10] for n in range(2000)]
    text = json.dumps({"version": 1, "policy": {"rules": rules}})
    happened: list[str] = []
    turns = 0
    served = threading.Event()
    make_answer, check = policy_service._answer, policy_service.PolicyService._check_rights

    def answer_at_leisure(*arguments: Any) -> PolicyAnswer:
        happened.append("the plan is made")
        assert served.wait(PATIENCE_S), "no other session was served"
        return make_answer(*arguments)

    async def count_turns(self: Any, *arguments: Any) -> None:
        async def take_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            await trio.lowlevel.checkpoint()
            await check(self, *arguments)
            nursery.cancel_scope.cancel()

    monkeypatch.setattr(policy_service, "_answer", answer_at_leisure)
    monkeypatch.setattr(policy_service.PolicyService, "_check_rights", count_turns)
    async with connect(closed, user("admin", "w")) as admin, connect(closed, agent("red", "ann", "1")) as ann:

        async def use_keys() -> None:
            while not happened:
                await trio.lowlevel.checkpoint()
            ann.send(kv_get("k"))
            await ann.next("kv")
            happened.append("another session is served")
            served.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use_keys)
            answer = await done(admin, Op.GRANT, grant_request=ask(action, text))
            happened.append("the policy is answered")
    assert happened == ["the plan is made", "another session is served", "the policy is answered"]
    assert msgspec.json.decode(answer.rule.reason, type=PolicyAnswer).added == len(rules)
    if action == "apply":
        assert turns >= len(rules) // policy_service.STEPS - 1, "the check is done in slices"


@pytest.mark.parametrize("kind", ["member", "lock", "fallback"])
async def test_what_is_listed_as_rules_comes_in_pages(closed: Core, kind: str) -> None:
    text = """
version: 1
groups: {a: ['user:u1', 'user:u2'], b: ['user:u1', 'group:a']}
locks: [{pattern: 'ag::x::*'}, {pattern: 'ag::y::*'}, {pattern: 'ag::z::*'}]
fallbacks: {agent_topic: read, task_topic: read}
"""
    async with connect(closed, orchestrator("o", "1")) as admin:
        await operate(admin, "apply", text)
        everything = await listed(admin, kind)
        assert len(everything) >= 2
        found: list[pb.ACLRuleInfo] = []
        for offset in range(0, len(everything) + 2, 2):
            wanted = pb.ACLRuleFilter(resource_type=kind, limit=2, offset=offset)
            page = await done(admin, Op.LIST_RULES, rule_filter=wanted)
            assert page.total_rules == len(everything)
            found += page.rules
        assert found == everything


async def test_an_administrator_of_the_role_may_give_all(closed: Core) -> None:
    async with connect(closed, user("admin", "w")) as admin:
        await operate(admin, "apply", "version: 1\nroles: {administrators: ['user:admin', 'user:eve']}")
        found = await operate(admin, "apply", f"version: 1\nrules: [user:bob superadmin workspace:{SUPERADMIN}]")
        assert found.added == 1
