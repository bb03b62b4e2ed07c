"""Scenarios 56 and 98 to 101: rules, groups, fallbacks, checks, checked messages."""

from __future__ import annotations

import time
import uuid
from typing import Any

import pytest
from scitrera_aether_client.exceptions import AetherError
from scitrera_aether_client.proto import aether_pb2 as pb

from tests.helpers.sdk import World, answered, declined, eventually, in_asyncio

READ, READWRITE, MANAGE = 10, 20, 30
AclOp = pb.ACLOperation


async def acl(admin: Any, op: Any, **fields: Any) -> Any:
    return await admin.client.acl_op(AclOp(op=op, request_id=uuid.uuid4().hex, **fields))


async def sees(world: World, receiver: Any, sender: Any, spec: str, payload: bytes) -> bool:
    """Whether a message arrives; a refused one is told by its error."""
    await sender.client.send_message_to_agent(receiver.topic.split("::")[1], world.impl, spec, payload)
    answered(await sender.client.kv_put("barrier", b"1", scope="workspace"), "barrier")
    if not sender.errors.empty():
        error = sender.errors.get_nowait()
        assert error.code == "ERR_PERMISSION_DENIED", error
        return False
    await receiver.message(payload)
    return True


@in_asyncio
async def test_56_a_keys_shared_by_users_need_a_grant(world: World) -> None:
    admin, one, two = await world.open(world.orchestrator(), world.agent("1"), world.agent("2"))
    for scope in ("user-shared", "user-workspace-shared"):
        place = {"scope": scope, "user_id": world.uid}
        declined(await one.client.kv_put("k", b"v", **place), scope)
        for peer in (one, two):
            answered(await admin.client.acl_grant("agent", peer.topic, "kv_scope", scope, READWRITE, "test"), "grant")
        answered(await one.client.kv_put("k", scope.encode(), **place), "put")
        assert answered(await two.client.kv_get("k", **place), "get").value == scope.encode()


@in_asyncio
async def test_98_a_rule_from_its_grant_to_its_end(world: World) -> None:
    elsewhere = f"{world.ws}-2"
    admin, sender, receiver = await world.open(world.orchestrator(), world.agent("s"), world.agent("r", ws=elsewhere))
    client, rule = admin.client, ("agent", sender.topic, "workspace", elsewhere)
    assert await sees(world, receiver, sender, "r", b"open")
    given = answered(await client.acl_grant(*rule, 0, "not me", reason="by test"), "grant").rule
    assert (given.granted_by, given.reason, given.access_level_name) == (admin.topic, "by test", "NONE")
    assert not await sees(world, receiver, sender, "r", b"denied")
    listed = answered(await client.acl_list_rules(*rule), "list")
    assert ([one.rule_id for one in listed.rules], listed.total_rules) == ([given.rule_id], 1)
    assert answered(await client.acl_get_rule(given.rule_id), "get").rule == given
    answered(await client.acl_revoke(given.rule_id), "revoke")
    assert await sees(world, receiver, sender, "r", b"again")
    declined(await client.acl_get_rule(given.rule_id), "get after revoke")

    answered(await client.acl_grant(*rule, 0, "x"), "grant")
    assert not await sees(world, receiver, sender, "r", b"denied too")
    fields = dict(zip(("principal_type", "principal_id", "resource_type", "resource_id"), rule, strict=True))
    answered(await acl(admin, AclOp.REVOKE, rule_filter=pb.ACLRuleFilter(**fields)), "revoke by filter")
    assert await sees(world, receiver, sender, "r", b"once more")

    answered(await client.acl_grant(*rule, 0, "x", expires_at=int(time.time()) + 3), "grant for three seconds")
    assert not await sees(world, receiver, sender, "r", b"for now")
    await eventually(lambda: sees(world, receiver, sender, "r", b"after all"), bool, "the rule ends at its moment")
    answered(await client.acl_cleanup_expired_rules(), "cleanup")
    assert not answered(await client.acl_list_rules(*rule), "list").rules


@in_asyncio
async def test_99_a_fallbacks_groups_roles_and_explanations(world: World) -> None:
    admin, peer = await world.open(world.orchestrator(), world.agent("1"))
    client = admin.client
    resource = ("service_impl", f"impl-{world.run}")
    found = answered(await client.acl_get_fallback_policy("agent_workspace"), "get").fallback_policy
    assert found.fallback_access_level == READWRITE
    assert await client.acl_check_access("agent", peer.topic, "workspace", world.ws, READWRITE)
    assert not await client.acl_check_access("agent", peer.topic, "workspace", world.ws, MANAGE)
    assert not await client.acl_check_access("agent", peer.topic, *resource, MANAGE)
    category = "bridge_task"
    answered(await client.acl_set_fallback_policy(category, READ, "x"), "set")
    assert answered(await client.acl_get_fallback_policy(category), "get").fallback_policy.updated_by == admin.topic

    outer, inner, role = (f"{name}-{world.run}" for name in ("outer", "inner", "role"))
    for name in (outer, inner):
        answered(await acl(admin, AclOp.CREATE_GROUP, name=name), name)
    answered(await acl(admin, AclOp.CREATE_ROLE, name=role), role)
    answered(await client.acl_grant("role", role, *resource, MANAGE, "x"), "grant")
    for op, name, member in (
        (AclOp.ADD_GROUP_MEMBER, inner, ("agent", peer.topic)),
        (AclOp.ADD_GROUP_MEMBER, outer, ("group", inner)),
    ):
        request = pb.ACLGroupMemberRequest(member_type=member[0], member_id=member[1])
        answered(await acl(admin, op, name=name, member_request=request), name)
    assignment = pb.ACLRoleAssignmentRequest(assignee_type="group", assignee_id=outer)
    answered(await acl(admin, AclOp.ASSIGN_ROLE, name=role, assignment_request=assignment), "assign")

    async def explained() -> Any:
        answer = answered(
            await acl(
                admin,
                AclOp.EXPLAIN_ACCESS,
                principal=pb.PrincipalRef(principal_type="agent", principal_id=peer.topic),
                resource_type=resource[0],
                resource_id=resource[1],
                required_level=MANAGE,
            ),
            "explain",
        )
        return answer.explanation

    why = await explained()
    assert why.allowed
    assert list(why.subjects) == [f"agent:{peer.topic}", f"group:{inner}", f"group:{outer}", f"role:{role}"]
    assert f"via role:{role}" in why.reason
    listed = answered(await client.acl_list_rules("role", role), "list")
    assert [one.rule_id for one in listed.rules] == [
        one.rule_id for one in why.contributions if one.subject == f"role:{role}"
    ]
    answered(await acl(admin, AclOp.DELETE_GROUP, name=outer), "delete")
    assert not (await explained()).allowed


def asked(resource: tuple[str, str], level: int, **fields: Any) -> pb.ResourceAccessRequest:
    return pb.ResourceAccessRequest(
        resource_type=resource[0], resource_id=resource[1], required_access_level=level, operation="test", **fields
    )


@in_asyncio
async def test_100_a_checks_alone_and_in_batches(world: World) -> None:
    (peer,) = await world.open(world.agent("1"))
    own, other = ("workspace", world.ws), ("admin", "admin/acl")
    allowed = await peer.client.check_access(asked(own, READ, correlation_id="c1"))
    assert (allowed.allowed, allowed.effective_access_level, allowed.request.correlation_id) == (True, READWRITE, "c1")
    assert allowed.decision_id
    assert allowed.actor.principal_id == peer.topic
    denied = await peer.client.check_access(asked(other, READ))
    assert (denied.allowed, denied.denial_code) == (False, "ERR_PERMISSION_DENIED")
    batch = [asked(own, READ), asked(other, READ), asked(own, MANAGE), asked(own, READWRITE)] * 25
    decisions = await peer.client.batch_check_access(batch)
    assert [one.allowed for one in decisions] == [True, False, False, True] * 25
    assert len({one.decision_id for one in decisions}) == 100
    with pytest.raises(AetherError):
        await peer.client.batch_check_access([asked(own, READ)] * 101)


@in_asyncio
async def test_101_a_messages_on_condition(world: World) -> None:
    sender, receiver = await world.open(world.agent("s"), world.agent("r"))
    for resource, payload in ((("admin", "admin/acl"), b"denied"), (("workspace", world.ws), b"allowed")):
        await sender.client.send_checked_message(receiver.topic, payload, asked(resource, READ))
    answered(await sender.client.kv_put("barrier", b"1", scope="workspace"), "barrier")
    assert sender.errors.get_nowait().code == "ERR_PERMISSION_DENIED"
    message = await receiver.message(b"allowed")
    receipt = message.access_receipt
    assert (receipt.allowed, receipt.delivery_target) == (True, receiver.topic)
    assert receipt.actor.principal_id == sender.topic
