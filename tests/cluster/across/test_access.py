"""A change of access data is in force on every node when it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from aether_trio.model.errors import Status
from aether_trio.services.access import changes as changes_module
from aether_trio.storage.base import StorageUnavailable
from aether_trio.wire.pb import aether_pb2 as pb
from tests.cluster.across.fabric import Fabric, Gateway, Participant, open_fabric, until
from tests.helpers.core import agent, barrier, errors, message_to, orchestrator, payloads, user
from tests.helpers.engines import PostgresEngine
from tests.services.access.acl import READ, READWRITE, Op, done, grant, may, rule, wanted
from tests.services.access.test_policy_service import ask, document

ANN = ("agent", "ag::red::ann::1")
RED, BLUE = ("workspace", "red"), ("workspace", "blue")


@pytest.fixture
async def closed(postgres_engine: PostgresEngine) -> AsyncIterator[Fabric]:
    async with open_fabric(postgres_engine, access={"default": "closed"}) as opened:
        yield opened


async def sent(peer: Participant, payload: bytes) -> bool:
    """Whether a message of this participant to workspace blue is accepted."""
    before = len(errors(peer))
    peer.send(message_to("ag::blue::bob::1", payload))
    await barrier(peer)
    return len(errors(peer)) == before


async def test_grants_and_revocations_on_one_node_are_in_force_on_the_others(closed: Fabric) -> None:
    one, two, three = await closed.start_many(3)
    admin = await one.join(orchestrator("o", "1"))
    ann = await two.join(agent("red", "ann", "1"))
    bob = await three.join(agent("blue", "bob", "1"))
    expected: list[bytes] = []
    for number in range(10):
        assert not await sent(ann, b"refused")
        given = await grant(admin, ANN, BLUE, READWRITE)
        assert await sent(ann, b"%d" % number)
        expected.append(b"%d" % number)
        answer = await done(admin, Op.REVOKE, rule_id=given.rule_id)
        assert answer.message == "the rule is revoked"
        assert not await may(ann, BLUE, READ)
    assert await bob.take(10) == expected


async def test_a_node_that_hears_no_notification_finds_out(closed: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes_module, "LOOK_S", 0.2)
    one, two = await closed.start_many(2)
    admin, ann = await one.join(orchestrator("o", "1")), await two.join(agent("red", "ann", "1"))
    two.lose_notifications()
    await grant(admin, ANN, BLUE, READ)
    assert await may(ann, BLUE, READ)
    await done(admin, Op.REVOKE, rule_filter=wanted(ANN, BLUE))
    assert not await may(ann, BLUE, READ)


async def test_a_live_session_on_another_node_ends(closed: Fabric) -> None:
    one, two = await closed.start_many(2)
    admin, ann = await one.join(orchestrator("o", "1")), await two.join(agent("red", "ann", "1"))
    await grant(admin, ("agent", "ag::red::*"), ("lock", "*"), 0)
    assert ann.ended is not None or (await ann.wait_end()).status is Status.UNAUTHENTICATED
    assert ann.ended is not None
    assert ann.ended.status is Status.UNAUTHENTICATED


async def test_a_node_that_cannot_look_is_named_and_handles_no_input(
    closed: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "STALE_S", 1.0)
    monkeypatch.setattr(changes_module, "LOOK_S", 0.2)
    one, two = await closed.start_many(2)
    admin, ann = await one.join(orchestrator("o", "1")), await two.join(agent("red", "ann", "1"))
    bob = await one.join(agent("blue", "bob", "1"))
    given = await grant(admin, ANN, BLUE, READWRITE)
    assert await sent(ann, b"1")
    working = two.core.changes._database.read_small

    async def broken(program: object) -> object:
        raise StorageUnavailable("cut off")

    two.core.changes._database.read_small = broken  # type: ignore[assignment,method-assign]
    answer = await done(admin, Op.REVOKE, rule_id=given.rule_id)
    assert "not confirmed" in answer.message
    await until(lambda: two.core.sessions._parts.gate.is_closed)
    ann.send(message_to("ag::blue::bob::1", b"2"))
    await trio.sleep(1)
    assert payloads(bob) == [b"1"]
    two.core.changes._database.read_small = working  # type: ignore[method-assign]
    await until(lambda: bool(errors(ann)))
    await barrier(ann)
    assert payloads(bob) == [b"1"]


async def declare_dead(gateway: Gateway, admin_of: Gateway) -> None:
    """Let other nodes take a node for dead that runs, and does not find out."""

    async def believes(connection: object) -> bool:
        return True

    gateway.cluster.lease._probe = believes  # type: ignore[method-assign]
    sql = "UPDATE nodes SET alive = false, ended_ms = aether_now_ms() WHERE node_id = $1"
    await admin_of.cluster.nodes.fetch(sql, gateway.cluster.node_id)


async def test_a_node_that_is_taken_for_dead_is_named_while_it_may_handle_input(
    closed: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "LOOK_S", 600.0)
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.5)
    one, two = await closed.start_many(2)
    admin, ann = await one.join(orchestrator("o", "1")), await two.join(agent("red", "ann", "1"))
    given = await grant(admin, ANN, BLUE, READWRITE)
    two.lose_notifications()
    await declare_dead(two, one)
    assert await may(ann, BLUE, READ)  # writes are fenced, decisions and reads are not
    answer = await done(admin, Op.REVOKE, rule_id=given.rule_id)
    assert f"(node {two.cluster.node_id})" in answer.message


async def test_a_node_that_is_taken_for_dead_stops_input_though_it_reads_all_changes(
    closed: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "STALE_S", 1.0)
    monkeypatch.setattr(changes_module, "LOOK_S", 0.1)
    one, two = await closed.start_many(2)
    admin = await one.join(orchestrator("o", "1"))
    await declare_dead(two, one)
    await grant(admin, ANN, BLUE, READWRITE)
    await until(lambda: two.core.changes.settled_version == one.core.changes.version)
    await until(lambda: two.core.sessions._parts.gate.is_closed)
    assert not two.core.sessions._parts.gate.paused
    await one.cluster.nodes.fetch("UPDATE nodes SET alive = true WHERE node_id = $1", two.cluster.node_id)
    await until(lambda: not two.core.sessions._parts.gate.is_closed)


async def test_a_node_that_has_left_in_peace_is_not_waited_for(closed: Fabric) -> None:
    one, two = await closed.start_many(2)
    admin = await one.join(orchestrator("o", "1"))
    await closed.stop(two)
    answer = await done(admin, Op.GRANT, grant_request=rule(ANN, BLUE, READ))
    assert "not confirmed" not in answer.message


async def test_a_node_that_reads_of_several_changes_at_once_applies_them_in_order(
    closed: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A membership that was given and taken while the node was away is not there."""
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.1)
    one, two = await closed.start_many(2)
    admin, ann = await one.join(orchestrator("o", "1")), await two.join(agent("red", "ann", "1"))
    await done(admin, Op.CREATE_GROUP, name="g", group_request=pb.ACLGroupRequest(name="g"))
    await grant(admin, ("group", "g"), BLUE, READWRITE)
    await until(lambda: two.core.changes.settled_version == one.core.changes.version)
    working = two.core.changes._database.read_small

    async def broken(program: object) -> object:
        raise StorageUnavailable("cut off")

    two.core.changes._database.read_small = broken  # type: ignore[assignment,method-assign]
    member = pb.ACLGroupMemberRequest(member_type=ANN[0], member_id=ANN[1])
    for op in (Op.ADD_GROUP_MEMBER, Op.REMOVE_GROUP_MEMBER):
        await done(admin, op, name="g", member_request=member)
    two.core.changes._database.read_small = working  # type: ignore[method-assign]
    await until(lambda: two.core.changes.settled_version == one.core.changes.version)
    assert not await sent(ann, b"attack")


async def test_a_node_that_joins_later_knows_all(closed: Fabric) -> None:
    one = await closed.start()
    admin = await one.join(orchestrator("o", "1"))
    await grant(admin, ANN, BLUE, READ)
    two = await closed.start()
    ann = await two.join(agent("red", "ann", "1"))
    assert await may(ann, BLUE, READ)
    assert not await may(ann, ("workspace", "green"), READ)


async def test_administrators_on_all_nodes_at_once(closed: Fabric) -> None:
    """Every node sees each change once; no check is made on what is outdated."""
    gateways = await closed.start_many(3)
    admins = [await gateway.join(orchestrator("o", str(number))) for number, gateway in enumerate(gateways)]

    async def work(number: int) -> None:
        for turn in range(6):
            principal = ("user", f"u{number}-{turn}")
            given = await grant(admins[number], principal, BLUE, READ)
            if turn % 2:
                await done(admins[number], Op.REVOKE, rule_id=given.rule_id)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(work, number)
    versions = {gateway.core.changes.version for gateway in gateways}
    assert len(versions) == 1
    rules = [
        {rule.principal_id for rule in gateway.core.authorizer.index.rules() if rule.principal_type == "user"}
        for gateway in gateways
    ]
    assert rules[0] == rules[1] == rules[2] == {f"u{number}-{turn}" for number in range(3) for turn in (0, 2, 4)}


async def test_what_is_gone_already_is_answered_like_what_goes(closed: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    """A revocation is asked for again, as its answer was lost: all nodes count."""
    monkeypatch.setattr(changes_module, "LOOK_S", 600.0)
    monkeypatch.setattr(changes_module, "CONFIRM_S", 0.3)
    one, two = await closed.start_many(2)
    admin = await one.join(user("admin", "w"))
    member = pb.ACLGroupMemberRequest(member_type=ANN[0], member_id=ANN[1])
    policy = document("version: 1\nroles: {deployers: []}", prune=True)
    given = await grant(admin, ANN, BLUE, READWRITE)
    await grant(admin, ANN, RED, READWRITE)
    await done(admin, Op.CREATE_GROUP, name="g")
    await done(admin, Op.ADD_GROUP_MEMBER, name="g", member_request=member)
    await done(admin, Op.CREATE_ROLE, name="deployers")
    await done(admin, Op.ASSIGN_ROLE, name="deployers", assignment_request=assigned(ANN))
    lab = pb.WorkspaceOperation(op=pb.WorkspaceOperation.CREATE, workspace=pb.WorkspaceInfo(workspace_id="lab"))
    await asked(admin, "workspace", workspace_op=lab)
    made = pb.TokenOperation(
        op=pb.TokenOperation.CREATE, create_request=pb.TokenCreateRequest(name="ci", principal_type="agent")
    )
    token = (await asked(admin, "token", token_op=made)).created_token.id
    await until(lambda: two.core.changes.settled_version == one.core.changes.version)
    two.lose_notifications()
    removals: list[tuple[str, dict[str, Any]]] = [
        ("acl", {"acl_op": pb.ACLOperation(op=Op.REVOKE, rule_id=given.rule_id)}),
        ("acl", {"acl_op": pb.ACLOperation(op=Op.REVOKE, rule_filter=wanted(ANN, RED))}),
        ("acl", {"acl_op": pb.ACLOperation(op=Op.REMOVE_GROUP_MEMBER, name="g", member_request=member)}),
        ("acl", {"acl_op": pb.ACLOperation(op=Op.DELETE_GROUP, name="g")}),
        ("acl", {"acl_op": pb.ACLOperation(op=Op.GRANT, grant_request=ask("apply", policy))}),
        ("token", {"token_op": pb.TokenOperation(op=pb.TokenOperation.REVOKE, token_id=token)}),
        ("token", {"token_op": pb.TokenOperation(op=pb.TokenOperation.DELETE, token_id=token)}),
        ("workspace", {"workspace_op": pb.WorkspaceOperation(op=pb.WorkspaceOperation.DELETE, workspace_id="lab")}),
    ]
    for kind, request in removals:
        for _ in range(2):
            answer = await asked(admin, kind, **request)
            assert f"(node {two.cluster.node_id})" in answer.message + answer.error, (request, answer)


def assigned(principal: tuple[str, str]) -> pb.ACLRoleAssignmentRequest:
    return pb.ACLRoleAssignmentRequest(assignee_type=principal[0], assignee_id=principal[1])


async def asked(peer: Participant, kind: str, **request: Any) -> Any:
    """Perform one operation; return its typed answer."""
    peer.send(pb.UpstreamMessage(**request))
    return getattr(await peer.next(kind), kind)
