"""Access administration: rules, groups, roles, fallbacks, locks, explanations."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.errors import Status
from aether_trio.testing.memory import MemoryLink, StreamEnded
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    errors,
    message_to,
    orchestrator,
    payloads,
    service,
    switch_to,
    user,
)
from tests.services.access.acl import (
    ADMIN,
    MANAGE,
    READ,
    READWRITE,
    SUPERADMIN,
    Op,
    acl,
    done,
    grant,
    may,
    refused,
    rule,
    wanted,
)

RED, BLUE = ("workspace", "red"), ("workspace", "blue")
ANN = ("agent", "ag::red::ann::1")


def ann(**init: Any) -> pb.UpstreamMessage:
    return agent("red", "ann", "1", **init)


async def turned_away(core: Core, hello: pb.UpstreamMessage) -> StreamEnded:
    """How the gateway refuses a client."""
    async with connect(core, hello, wait_ack=False) as peer:
        ended = await peer.wait_end()
        assert peer.waiting("connection_ack") == []
        return ended


async def test_a_rule_is_in_force_when_it_is_answered_and_gone_when_it_is_revoked(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        assert not await may(peer, BLUE, READ)
        given = await grant(admin, ANN, BLUE, READWRITE, reason="helps out", granted_by="user:other")
        assert given.granted_by == "orc::o::1"
        assert (given.access_level_name, given.reason) == ("READWRITE", "helps out")
        assert await may(peer, BLUE, READWRITE)
        assert not await may(peer, BLUE, MANAGE)
        listed = await done(admin, Op.LIST_RULES, rule_filter=wanted(ANN, BLUE))
        assert (listed.rules, listed.total_rules) == ([given], 1)
        assert (await done(admin, Op.GET_RULE, rule_id=given.rule_id)).rule == given
        assert (await done(admin, Op.GET_RULE, rule_filter=wanted(ANN, BLUE))).rule == given
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert not await may(peer, BLUE, READ)
        assert "no rule" in await refused(admin, Op.GET_RULE, rule_id=given.rule_id)
        assert "no rule" in await refused(admin, Op.REVOKE, rule_id=given.rule_id)


async def test_a_rule_is_revoked_by_its_names(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        first = await grant(admin, ANN, BLUE, READ)
        again = await grant(admin, ANN, BLUE, MANAGE)
        assert again.rule_id == first.rule_id
        assert await may(peer, BLUE, MANAGE)
        await done(admin, Op.REVOKE, rule_filter=wanted(ANN, BLUE))
        assert not await may(peer, BLUE, READ)


async def test_rules_outlive_the_gateway(world: World) -> None:
    async with world.open(access={"default": "closed"}) as core, connect(core, orchestrator("o", "1")) as admin:
        await grant(admin, ANN, BLUE, READ)
    async with world.open(access={"default": "open"}) as core, connect(core, ann()) as peer:
        assert await may(peer, BLUE, READ)
        assert not await may(peer, ("workspace", "green"), READ)


async def test_sends_follow_the_rules_at_once(closed: Core) -> None:
    async with (
        connect(closed, orchestrator("o", "1")) as admin,
        connect(closed, ann()) as peer,
        connect(closed, agent("blue", "bob", "1")) as bob,
    ):
        peer.send(message_to("ag::blue::bob::1", b"1"))
        await barrier(peer)
        assert [error.code for error in errors(peer)] == ["ERR_PERMISSION_DENIED"]
        given = await grant(admin, ANN, BLUE, READWRITE)
        peer.send(message_to("ag::blue::bob::1", b"2"))
        await barrier(peer, bob)
        await done(admin, Op.REVOKE, rule_id=given.rule_id)
        peer.send(message_to("ag::blue::bob::1", b"3"))
        await barrier(peer, bob)
        assert payloads(bob) == [b"2"]
        assert len(errors(peer)) == 2


async def test_a_live_session_that_loses_its_workspace_ends(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        await grant(admin, ANN, RED, 0)
        ended = await peer.wait_end()
        assert ended.status is Status.PERMISSION_DENIED
        assert (await turned_away(closed, ann())).status is Status.PERMISSION_DENIED


async def test_a_window_of_a_user_leaves_a_workspace_that_it_may_not_read(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("eve", "1")) as window:
        window.send(switch_to("red"))
        await barrier(window)
        assert [error.code for error in errors(window)] == ["ERR_PERMISSION_DENIED"]
        given = await grant(admin, ("user", "eve"), RED, READ)
        window.send(switch_to("red"))
        await barrier(window)
        async with connect(closed, ann()) as peer:
            peer.send(message_to("gu::red", b"1"))
            await barrier(peer, window)
            assert payloads(window) == [b"1"]
            await done(admin, Op.REVOKE, rule_id=given.rule_id)
            peer.send(message_to("gu::red", b"2"))
            await barrier(peer, window)
            assert payloads(window) == [b"1"]
        assert window.ended is None
        assert "left" in errors(window)[-1].message


async def test_rules_of_groups_and_roles_that_nest(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        await done(admin, Op.CREATE_GROUP, name="team", group_request=pb.ACLGroupRequest(description="d"))
        await done(admin, Op.CREATE_ROLE, name="reader")
        await grant(admin, ("role", "reader"), BLUE, READ)
        await done(
            admin,
            Op.ASSIGN_ROLE,
            name="reader",
            assignment_request=pb.ACLRoleAssignmentRequest(assignee_type="group", assignee_id="team"),
        )
        assert not await may(peer, BLUE, READ)
        member = pb.ACLGroupMemberRequest(member_type="agent", member_id=ANN[1])
        await done(admin, Op.ADD_GROUP_MEMBER, name="team", member_request=member)
        assert await may(peer, BLUE, READ)
        explained = (
            await done(
                admin,
                Op.EXPLAIN_ACCESS,
                principal=pb.PrincipalRef(principal_type="agent", principal_id=ANN[1]),
                resource_type="workspace",
                resource_id="blue",
                required_level=READ,
            )
        ).explanation
        assert explained.allowed
        assert list(explained.subjects) == [f"agent:{ANN[1]}", "group:team", "role:reader"]
        assert explained.reason == "Explicit rule: READ (via role:reader)"
        groups = await done(
            admin, Op.LIST_PRINCIPAL_GROUPS, principal=pb.PrincipalRef(principal_type="agent", principal_id=ANN[1])
        )
        assert [one.group_name for one in groups.group_members] == ["team"]
        assert [one.member_id for one in (await done(admin, Op.LIST_GROUP_MEMBERS, name="team")).group_members] == [
            ANN[1]
        ]
        assert [
            one.assignee_id for one in (await done(admin, Op.LIST_ROLE_ASSIGNMENTS, name="reader")).role_assignments
        ] == ["team"]
        await done(admin, Op.REMOVE_GROUP_MEMBER, name="team", member_request=member)
        assert not await may(peer, BLUE, READ)
        assert "not found" in await refused(admin, Op.REMOVE_GROUP_MEMBER, name="team", member_request=member)


async def test_a_group_takes_its_rules_along(closed: Core) -> None:
    """A later group of the name begins without rights."""
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        member = pb.ACLGroupMemberRequest(member_type="agent", member_id=ANN[1])
        await done(admin, Op.CREATE_GROUP, name="team")
        await grant(admin, ("group", "team"), BLUE, READ)
        await done(admin, Op.ADD_GROUP_MEMBER, name="team", member_request=member)
        assert await may(peer, BLUE, READ)
        await done(admin, Op.DELETE_GROUP, name="team")
        await done(admin, Op.CREATE_GROUP, name="team")
        assert not await may(peer, BLUE, READ)
        await done(admin, Op.ADD_GROUP_MEMBER, name="team", member_request=member)
        assert not await may(peer, BLUE, READ)
        assert "exists" in await refused(admin, Op.CREATE_GROUP, name="team")
        assert "not found" in await refused(admin, Op.DELETE_GROUP, name="none")
        assert "not found" in await refused(admin, Op.ADD_GROUP_MEMBER, name="none", member_request=member)


async def test_a_circle_of_groups_is_refused(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        for name in ("a", "b"):
            await done(admin, Op.CREATE_GROUP, name=name)
        inner = pb.ACLGroupMemberRequest(member_type="group", member_id="b")
        outer = pb.ACLGroupMemberRequest(member_type="group", member_id="a")
        await done(admin, Op.ADD_GROUP_MEMBER, name="a", member_request=inner)
        assert "cycle" in await refused(admin, Op.ADD_GROUP_MEMBER, name="b", member_request=outer)


async def test_fallbacks(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        assert "no fallback" in await refused(admin, Op.GET_FALLBACK_POLICY, rule_category="agent_workspace")
        answer = await done(
            admin,
            Op.SET_FALLBACK_POLICY,
            fallback_request=pb.ACLSetFallbackRequest(rule_category="agent_workspace", fallback_access_level=READ),
        )
        assert answer.fallback_policy.updated_by == "orc::o::1"
        assert await may(peer, BLUE, READ)
        found = await done(admin, Op.GET_FALLBACK_POLICY, rule_category="agent_workspace")
        assert found.fallback_policy.fallback_access_level == READ


async def test_a_lock_ends_what_it_matches_and_outvotes_every_rule(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, ann()) as peer:
        await grant(admin, ANN, RED, ADMIN)
        async with connect(closed, agent("blue", "bob", "1")) as bob:
            lock = await grant(admin, ("agent", "ag::red::*"), ("lock", "*"), 0, reason="stop")
            assert (await peer.wait_end()).status is Status.UNAUTHENTICATED
            refusal = await turned_away(closed, ann())
            assert (refusal.status, "locked: stop" in refusal.message) == (Status.UNAUTHENTICATED, True)
            await barrier(bob)
        listed = await done(admin, Op.LIST_RULES, rule_filter=pb.ACLRuleFilter(resource_type="lock"))
        assert [one.principal_id for one in listed.rules] == ["ag::red::*"]
        await done(admin, Op.REVOKE, rule_id=lock.rule_id)
        async with connect(closed, ann()) as again:
            await barrier(again)
        assert "lock you out" in await refused(
            admin, Op.GRANT, grant_request=rule(("orchestrator", "orc::*"), ("lock", "*"), 0)
        )


async def manager(core: Core, admin: MemoryLink) -> None:
    await grant(admin, ("user", "mia"), RED, MANAGE)


async def test_who_manages_a_workspace_gives_readwrite_there_and_no_more(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("mia", "1")) as mia:
        await manager(closed, admin)
        await grant(mia, ("user", "tim"), RED, READWRITE)
        assert (
            await done(mia, Op.LIST_RULES, rule_filter=pb.ACLRuleFilter(resource_type="workspace", resource_id="red"))
        ).rules
        for principal, resource, level in (
            (("user", "tim"), RED, MANAGE),
            (("user", "tim"), BLUE, READ),
            (("user", "mia"), ("workspace", "*"), READ),
            (("user", "mia"), ("admin", "admin/acl"), READ),
        ):
            assert "ERR_PERMISSION_DENIED" in await refused(
                mia, Op.GRANT, grant_request=rule(principal, resource, level)
            )
        for op, fields in (
            (Op.LIST_RULES, {}),
            (Op.CREATE_GROUP, {"name": "g"}),
            (Op.SET_FALLBACK_POLICY, {"rule_category": "user_workspace"}),
            (Op.CLEANUP_EXPIRED, {}),
        ):
            assert "ERR_PERMISSION_DENIED" in await refused(mia, op, **fields)


async def test_an_administrator_of_rules_gives_no_more_than_it_has(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("acl", "1")) as peer:
        await grant(admin, ("user", "acl"), ("admin", "admin/acl"), ADMIN)
        await grant(admin, ("user", "acl"), RED, READWRITE)
        await grant(peer, ("user", "tim"), RED, READWRITE)
        for principal, resource, level in (
            (("user", "acl"), RED, MANAGE),
            (("user", "acl"), BLUE, READ),
            (("user", "acl"), ("workspace", "r*"), READ),
            (("user", "acl"), ("admin", "admin/*"), ADMIN),
            (("user", "acl"), ("admin", "admin/tokens"), READ),
            (("group", "g"), ("capability", "capability/kv_purge_identity"), MANAGE),
        ):
            text = await refused(peer, Op.GRANT, grant_request=rule(principal, resource, level))
            assert "than you have" in text, text
        role = pb.ACLRoleAssignmentRequest(assignee_type="user", assignee_id="acl")
        assert "than you have" in await refused(peer, Op.ASSIGN_ROLE, name="administrators", assignment_request=role)
        text = await refused(
            peer,
            Op.SET_FALLBACK_POLICY,
            fallback_request=pb.ACLSetFallbackRequest(rule_category="user_workspace", fallback_access_level=READ),
        )
        assert "than you have" in text


async def test_a_rule_that_holds_its_remover_down_stays(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin, connect(closed, user("acl", "1")) as peer:
        await grant(admin, ("user", "acl"), ("admin", "admin/acl"), ADMIN)
        await done(admin, Op.CREATE_GROUP, name="g")
        await grant(admin, ("group", "g"), ("workspace", "*"), ADMIN)
        member = pb.ACLGroupMemberRequest(member_type="user", member_id="acl")
        await done(admin, Op.ADD_GROUP_MEMBER, name="g", member_request=member)
        low = await grant(admin, ("user", "acl"), RED, 0)
        assert not await may(peer, RED, READ)
        assert "another administrator" in await refused(peer, Op.REVOKE, rule_id=low.rule_id)
        await done(admin, Op.REVOKE, rule_id=low.rule_id)
        assert await may(peer, RED, ADMIN)


async def test_plain_participants_administer_nothing(closed: Core) -> None:
    async with connect(closed, ann()) as peer, connect(closed, service("s", "1")) as other:
        for link in (peer, other):
            for op in Op.OpType.values():
                answer = await acl(link, op, name="n", rule_category="agent_workspace")
                if op in {Op.LIST_PRINCIPAL_GROUPS, Op.LIST_PRINCIPAL_ROLES}:
                    assert answer.success  # about itself
                else:
                    assert not answer.success, Op.OpType.Name(op)


@pytest.mark.parametrize(
    ("request_fields", "words"),
    [
        ({"principal": ("agnet", "x"), "resource": RED, "level": READ}, "did you mean agent?"),
        ({"principal": ANN, "resource": ("workspce", "red"), "level": READ}, "did you mean workspace?"),
        ({"principal": ANN, "resource": RED, "level": 15}, "invalid access level"),
        ({"principal": ANN, "resource": ("workspace", ""), "level": READ}, "resource_id is empty"),
        ({"principal": ANN, "resource": ("workspace", "a\0b"), "level": READ}, "zero byte"),
        ({"principal": ANN, "resource": ("workspace", "[a"), "level": READ}, "bad pattern"),
        ({"principal": ANN, "resource": ("workspace", "*a" * 20), "level": READ}, "at most 16"),
        ({"principal": ANN, "resource": RED, "level": READ, "expires_at": 1}, "passed already"),
        ({"principal": ANN, "resource": RED, "level": READ, "expires_at": -5}, "expires_at"),
        ({"principal": ANN, "resource": RED, "level": READ, "expires_at": 2**62}, "expires_at"),
        ({"principal": ANN, "resource": RED, "level": READ, "reason": "x" * 2000}, "reason"),
        ({"principal": ("wildcard", "_any_agnet"), "resource": RED, "level": READ}, "did you mean _any_agent?"),
    ],
)
async def test_bad_rules_are_explained(closed: Core, request_fields: dict[str, Any], words: str) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        text = await refused(admin, Op.GRANT, grant_request=rule(**request_fields))
        assert words in text, text


async def test_the_first_administrator_may_give_all(closed: Core) -> None:
    async with connect(closed, user("admin", "1")) as root:
        await grant(root, ("user", "tim"), ("workspace", "*"), SUPERADMIN)
        await grant(root, ("user", "tim"), ("admin", "admin/*"), ADMIN)
        role = pb.ACLRoleAssignmentRequest(assignee_type="user", assignee_id="tim")
        await done(root, Op.ASSIGN_ROLE, name="administrators", assignment_request=role)


async def test_seeds_can_be_removed(closed: Core) -> None:
    async with connect(closed, user("admin", "1")) as root, connect(closed, ann()) as peer:
        assert await may(peer, RED, READWRITE)
        await done(root, Op.REVOKE, rule_id="own")
        assert (await peer.wait_end()).status is Status.PERMISSION_DENIED
        async with connect(closed, orchestrator("o", "1")) as admin:
            assert await may(admin, ("admin", "admin/acl"), ADMIN)
            seeded = await done(
                root,
                Op.LIST_RULES,
                rule_filter=pb.ACLRuleFilter(principal_type="orchestrator", resource_type="admin"),
            )
            for one in seeded.rules:
                await done(root, Op.REVOKE, rule_id=one.rule_id)
            assert not await may(admin, ("admin", "admin/acl"), READ)
            await refused(admin, Op.LIST_RULES)


async def test_the_rule_own_is_listed_for_those_to_whom_it_applies(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        for resource, expected in ((RED, [("own", READWRITE)]), (BLUE, [])):
            listed = await done(admin, Op.LIST_RULES, rule_filter=wanted(ANN, resource))
            assert [(one.rule_id, one.access_level) for one in listed.rules] == expected


async def test_pages_of_rules(closed: Core) -> None:
    async with connect(closed, orchestrator("o", "1")) as admin:
        for number in range(5):
            await grant(admin, ("user", f"u{number}"), RED, READ)
        first = await done(
            admin, Op.LIST_RULES, rule_filter=pb.ACLRuleFilter(resource_type="workspace", resource_id="red", limit=2)
        )
        rest = await done(
            admin,
            Op.LIST_RULES,
            rule_filter=pb.ACLRuleFilter(resource_type="workspace", resource_id="red", limit=9, offset=2),
        )
        assert (len(first.rules), first.total_rules, len(rest.rules)) == (2, 5, 3)


async def test_batches_of_checks(closed: Core) -> None:
    async with connect(closed, ann()) as peer:
        asked = [
            pb.ResourceAccessRequest(
                resource_type="workspace", resource_id=name, required_access_level=READ, correlation_id=name
            )
            for name in ("red", "blue", "red")
        ]
        peer.send(pb.UpstreamMessage(batch_access_check=pb.BatchAccessCheckOperation(request_id="b", access=asked)))
        answer = (await peer.next("batch_access_check_response")).batch_access_check_response
        assert answer.success
        assert [(one.request.correlation_id, one.allowed) for one in answer.decisions] == [
            ("red", True),
            ("blue", False),
            ("red", True),
        ]
        assert answer.decisions[0].actor.principal_id == ANN[1]
        assert answer.decisions[1].denial_code == "ERR_PERMISSION_DENIED"
        for count in (0, 101):
            peer.send(
                pb.UpstreamMessage(
                    batch_access_check=pb.BatchAccessCheckOperation(request_id="c", access=asked[:1] * count)
                )
            )
            refused_answer = (await peer.next("batch_access_check_response")).batch_access_check_response
            assert not refused_answer.success
            assert not refused_answer.decisions


async def test_a_message_on_condition_of_an_access(closed: Core) -> None:
    async with connect(closed, ann()) as peer, connect(closed, agent("red", "bob", "1")) as bob:
        for resource in ("blue", "red"):
            access = pb.ResourceAccessRequest(
                resource_type="workspace", resource_id=resource, required_access_level=READ
            )
            peer.send(
                pb.UpstreamMessage(
                    send=pb.SendMessage(
                        target_topic="ag::red::bob::1", payload=resource.encode(), checked_access=access
                    )
                )
            )
        await barrier(peer, bob)
        assert [error.code for error in errors(peer)] == ["ERR_PERMISSION_DENIED"]
        (delivered,) = (one.msg for one in bob.waiting("msg"))
        assert delivered.payload == b"red"
        receipt = delivered.access_receipt
        assert (receipt.allowed, receipt.effective_access_level) == (True, READWRITE)
        assert receipt.delivery_target == "ag::red::bob::1"
