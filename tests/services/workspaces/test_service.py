"""workspace_op: what is stored and listed, who may, what goes along, quotas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.audit import AuditEvent
from aether_trio.model.errors import Code, Status
from aether_trio.services.workspaces import service as service_module
from aether_trio.storage.base import Program
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.access import put
from tests.helpers.core import (
    World,
    agent,
    barrier,
    connect,
    errors,
    message_to,
    orchestrator,
    pump,
    service,
    switch_to,
    task,
    user,
)

Op = pb.WorkspaceOperation
_numbers = count(1)


async def ask(peer: MemoryLink, kind: Any, **fields: Any) -> pb.WorkspaceResponse:
    """Ask for an operation; check that a refusal has its ErrorResponse behind it."""
    request_id = f"r{next(_numbers)}"
    peer.send(pb.UpstreamMessage(workspace_op=Op(op=kind, request_id=request_id, **fields)))
    answer = (await peer.next("workspace")).workspace
    assert answer.request_id == request_id
    if not answer.success:
        error = (await peer.next("error")).error
        assert error.request_id == request_id
        assert f"{error.code}: {error.message}" == answer.error
    return answer


def info(name: str, **fields: Any) -> pb.WorkspaceInfo:
    return pb.WorkspaceInfo(workspace_id=name, **fields)


async def done(peer: MemoryLink, kind: Any, **fields: Any) -> pb.WorkspaceResponse:
    answer = await ask(peer, kind, **fields)
    assert answer.success, answer.error
    return answer


async def refused(peer: MemoryLink, code: Code, kind: Any, **fields: Any) -> str:
    answer = await ask(peer, kind, **fields)
    assert not answer.success
    assert answer.error.startswith(f"{code}: ")
    return answer.error


async def test_the_life_of_a_workspace(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        created = await done(
            admin,
            Op.CREATE,
            workspace=info("lab", display_name="Lab", description="a\nb", tenant_id="t", metadata={"k": "v"}),
        )
        found = (await done(admin, Op.GET, workspace_id="lab")).workspace
        assert found == created.workspace
        assert (found.display_name, found.description, found.tenant_id) == ("Lab", "a\nb", "t")
        assert dict(found.metadata) == {"k": "v"}
        assert found.created_at == found.updated_at > 0
        assert "exists already" in await refused(admin, Code.INVALID_ARGUMENT, Op.CREATE, workspace=info("lab"))

        await done(admin, Op.UPDATE, workspace_id="lab", workspace=info("lab", display_name="New"))
        kept = (await done(admin, Op.GET, workspace_id="lab")).workspace
        assert (kept.display_name, kept.description, dict(kept.metadata)) == ("New", "a\nb", {"k": "v"})
        await done(admin, Op.UPDATE, workspace_id="lab", workspace=info("lab", metadata={"l": "w"}))
        assert dict((await done(admin, Op.GET, workspace_id="lab")).workspace.metadata) == {"l": "w"}

        assert "lab is deleted" in (await done(admin, Op.DELETE, workspace_id="lab")).message
        for kind in (Op.GET, Op.UPDATE, Op.DELETE, Op.GET_MESSAGE_FLOW):
            assert "no workspace 'lab'" in await refused(admin, Code.INVALID_ARGUMENT, kind, workspace_id="lab")


async def test_lists_have_pages_tenants_and_honest_totals(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("used", "a", "1")):
        for number in range(5):
            workspace = info(f"w{number}", tenant_id="even" if number % 2 == 0 else "odd")
            await done(admin, Op.CREATE, workspace=workspace)

        async def listed(**wanted: Any) -> tuple[list[str], int]:
            answer = await done(admin, Op.LIST, filter=pb.WorkspaceFilter(**wanted))
            return [one.workspace_id for one in answer.workspaces], answer.total_count

        assert await listed() == (["used", "w0", "w1", "w2", "w3", "w4"], 6)
        assert await listed(limit=2, offset=3) == (["w2", "w3"], 6)
        assert await listed(tenant_id="even", limit=2) == (["w0", "w2"], 3)
        assert await listed(tenant_id="none") == ([], 0)
        assert await listed(offset=100) == ([], 6)
        assert await listed(limit=-1, offset=-1) == (["used", "w0", "w1", "w2", "w3", "w4"], 6)


async def test_a_page_fits_into_a_message(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "MAX_PAGE_BYTES", 2000)
    async with connect(core, orchestrator("o", "1")) as admin:
        for number in range(5):
            await done(admin, Op.CREATE, workspace=info(f"w{number}", description="x" * 800))
        seen: list[str] = []
        while True:
            answer = await done(admin, Op.LIST, filter=pb.WorkspaceFilter(offset=len(seen)))
            seen += [one.workspace_id for one in answer.workspaces]
            assert len(answer.workspaces) <= 2
            if len(seen) == answer.total_count:
                break
        assert seen == [f"w{number}" for number in range(5)]


async def test_counters_and_workspaces_that_exist_by_use(core: Core) -> None:
    async with (
        connect(core, orchestrator("o", "1")) as admin,
        connect(core, agent("w", "a", "1")),
        connect(core, agent("w", "a", "2")),
        connect(core, agent("w2", "a", "1")),
        connect(core, task("w", "t", "1")),
        connect(core, task("w", "t")),
        connect(core, user("u", "1")) as window,
    ):
        window.send(switch_to("w"))
        await barrier(window)
        found = await done(admin, Op.GET, workspace_id="w")
        assert (found.workspace.active_agents, found.workspace.active_tasks, found.workspace.active_users) == (2, 2, 1)
        assert "is not stored" in found.message
        listed = (await done(admin, Op.LIST)).workspaces
        assert {one.workspace_id: one.active_agents for one in listed} == {"w": 2, "w2": 1}
        assert "5 participants" in await refused(admin, Code.INVALID_ARGUMENT, Op.DELETE, workspace_id="w")
        assert "create it first" in await refused(
            admin, Code.INVALID_ARGUMENT, Op.UPDATE, workspace_id="w", workspace=info("w", display_name="x")
        )
        await done(admin, Op.CREATE, workspace=info("w"))
        assert (await done(admin, Op.GET, workspace_id="w")).workspace.active_agents == 2
    async with connect(core, orchestrator("o", "2")) as admin:
        assert [one.workspace_id for one in (await done(admin, Op.LIST)).workspaces] == ["w"]
        await done(admin, Op.DELETE, workspace_id="w")


async def test_a_deleted_workspace_takes_its_rules_and_quotas_along(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        await done(admin, Op.CREATE, workspace=info("w?", metadata={"quota.connections_per_workspace": "1"}))
        for resource in (r"w\?", "w1", "w?"):
            grant = pb.ACLGrantRequest(
                principal_type="agent",
                principal_id="ag::v::a::1",
                resource_type="workspace",
                resource_id=resource,
                access_level=20,
            )
            admin.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(op=pb.ACLOperation.GRANT, grant_request=grant)))
            assert (await admin.next("acl")).acl.success
        assert core.authorizer.index
        answer = await done(admin, Op.DELETE, workspace_id="w?")
        assert "with 1 rules" in answer.message
        mine = [rule.resource_id for rule in core.authorizer.index.rules() if rule.principal_id == "ag::v::a::1"]
        assert sorted(mine) == ["w1", "w?"]
        await done(admin, Op.CREATE, workspace=info("w?"))
        assert not (await done(admin, Op.GET, workspace_id="w?")).workspace.metadata


async def test_who_may(core: Core) -> None:
    everything = (Op.LIST, Op.GET, Op.CREATE, Op.UPDATE, Op.DELETE, Op.GET_MESSAGE_FLOW)
    async with connect(core, agent("w", "a", "1")) as plain, connect(core, service("s", "1")) as other:
        for peer in (plain, other):
            for kind in everything:
                await refused(peer, Code.PERMISSION_DENIED, kind, workspace_id="w", workspace=info("w"))


@pytest.mark.parametrize(
    ("resource_type", "resource_id", "level", "may"),
    [
        ("admin", "admin/workspaces", 10, {"list"}),
        ("admin", "admin/workspaces", 40, {"list", "update"}),
    ],
)
async def test_levels(core: Core, resource_type: str, resource_id: str, level: int, may: set[str]) -> None:
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")) as peer:
        await done(admin, Op.CREATE, workspace=info("v"))
        grant = pb.ACLGrantRequest(
            principal_type="agent",
            principal_id="ag::w::a::1",
            resource_type=resource_type,
            resource_id=resource_id,
            access_level=level,
        )
        admin.send(pb.UpstreamMessage(acl_op=pb.ACLOperation(op=pb.ACLOperation.GRANT, grant_request=grant)))
        assert (await admin.next("acl")).acl.success
        found = {
            "list": (await ask(peer, Op.LIST)).success,
            "update": (await ask(peer, Op.UPDATE, workspace=info("v", display_name="x"))).success,
            "create": (await ask(peer, Op.CREATE, workspace=info("x"))).success,
            "quota": (await ask(peer, Op.UPDATE, workspace=info("v", metadata={"quota.kv_value_bytes": "1"}))).success,
        }
        assert {name for name, allowed in found.items() if allowed} == may


@pytest.mark.parametrize("name", ["", "a b", "a::b", "*", "x" * 129, "\x00", "a\nb", "a:"])
async def test_bad_names(core: Core, name: str) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        await refused(admin, Code.INVALID_IDENTIFIER, Op.CREATE, workspace=info(name))
        assert not (await ask(admin, Op.DELETE, workspace_id=name)).success
        assert (await done(admin, Op.LIST)).total_count == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": "x" * 257},
        {"display_name": "a\x00"},
        {"description": "x" * 4097},
        {"description": "a\x00"},
        {"tenant_id": "t\n"},
        {"tenant_id": "x" * 129},
        {"metadata": {f"k{number}": "" for number in range(65)}},
        {"metadata": {"k": "x" * 4097}},
        {"metadata": {"k\x00": "v"}},
        {"metadata": {"": "v"}},
        {"metadata": {f"k{number}": "x" * 4000 for number in range(5)}},
        {"metadata": {"quota.nothing": "1"}},
        {"metadata": {"quota.kv_value_bytes": "x"}},
        {"metadata": {"quota.kv_value_bytes": "0"}},
        {"metadata": {"quota.": "1"}},
    ],
)
async def test_bad_fields(core: Core, fields: dict[str, Any]) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        await refused(admin, Code.INVALID_ARGUMENT, Op.CREATE, workspace=info("w", **fields))
        await done(admin, Op.CREATE, workspace=info("w"))
        await refused(admin, Code.INVALID_ARGUMENT, Op.UPDATE, workspace=info("w", **fields))


async def test_two_names_and_unknown_operations_are_refused(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        await refused(admin, Code.INVALID_ARGUMENT, Op.CREATE, workspace_id="a", workspace=info("b"))
        await refused(admin, Code.INVALID_ARGUMENT, 77)


async def test_answers_come_in_the_order_of_the_requests(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        await done(admin, Op.CREATE, workspace=info("a"))
        ops = [Op(op=Op.GET, workspace_id="a", request_id="1"), Op(op=Op.LIST, request_id="2")]
        ops += [Op(op=Op.UPDATE, workspace=info("a", display_name="A"), request_id="3")]
        ops += [Op(op=Op.GET, workspace_id="a", request_id="4")]
        admin.send(*(pb.UpstreamMessage(workspace_op=op) for op in ops))
        answers = [(await admin.next("workspace")).workspace for _ in ops]
        assert [one.request_id for one in answers] == ["1", "2", "3", "4"]
        assert [answers[0].workspace.display_name, answers[3].workspace.display_name] == ["", "A"]


async def test_storage_that_fails_is_a_typed_failure(core: Core, world: World) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        world.databases["tasks"].failing = True
        for kind in (Op.LIST, Op.GET, Op.CREATE):
            answer = await ask(admin, kind, workspace_id="w")
            assert not answer.success


async def test_message_flow(core: Core) -> None:
    async with (
        connect(core, orchestrator("o", "1")) as admin,
        connect(core, agent("w", "a", "1")) as a,
        connect(core, agent("w", "b", "1")),
        connect(core, service("s", "1")) as outside,
    ):
        a.send(*(message_to("ag::w::b::1", b"x") for _ in range(3)), message_to("ag::w::gone::1", b"x"))
        outside.send(message_to("ag::w::a::1", b"x"))
        await barrier(a, outside)
        flow = (await done(admin, Op.GET_MESSAGE_FLOW, workspace_id="w")).message_flow
        edges = {(getattr(one, "from"), one.to): one.count for one in flow.edges}
        assert edges == {
            ("ag::w::a::1", "ag::w::b::1"): 3,
            ("ag::w::a::1", "ag::w::gone::1"): 1,
            ("sv::s::1", "ag::w::a::1"): 1,
        }
        status = {one.id: one.status for one in flow.nodes}
        assert status == {"ag::w::a::1": "connected", "ag::w::b::1": "connected", "ag::w::gone::1": "", "sv::s::1": ""}
        assert (await done(admin, Op.GET, workspace_id="w")).workspace.total_messages == 4


async def test_each_change_has_its_audit_row(core: Core) -> None:
    rows: list[AuditEvent] = []

    class Rows:
        def append(self, events: Sequence[AuditEvent], now_ms: int) -> Program[object]:
            rows.extend(events)
            yield from ()
            return None

    core.changes._audit = Rows()
    async with connect(core, orchestrator("o", "1")) as admin:
        await done(admin, Op.CREATE, workspace=info("w", metadata={"quota.kv_value_bytes": "7"}))
        await done(admin, Op.UPDATE, workspace=info("w", metadata={"quota.kv_value_bytes": ""}))
        await done(admin, Op.DELETE, workspace_id="w")
        await refused(admin, Code.INVALID_ARGUMENT, Op.DELETE, workspace_id="w")
    assert [(one.operation, one.resource_id, one.workspace, one.actor_id) for one in rows] == [
        (f"workspace_{word}", "w", "w", "orc::o::1") for word in ("create", "update", "delete")
    ]
    assert [one.metadata.get("quotas") for one in rows] == [{"kv_value_bytes": "7"}, {"kv_value_bytes": ""}, None]


async def test_no_caller_frees_itself_by_deleting_a_workspace(core: Core) -> None:
    """A rule that holds the caller down would go with the workspace."""
    index = core.authorizer.index
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")) as peer:
        await done(admin, Op.CREATE, workspace=info("v"))
        put(index, "agent", "ag::w::a::1", "admin", "admin/workspaces", AccessLevel.ADMIN)
        put(index, "agent", "ag::w::a::1", "workspace", "v", AccessLevel.NONE)
        put(index, "agent", "ag::w::*::1", "workspace", "*", AccessLevel.MANAGE)
        error = await refused(peer, Code.PERMISSION_DENIED, Op.DELETE, workspace_id="v")
        assert "another administrator" in error
        await done(admin, Op.DELETE, workspace_id="v")


# -- quotas ----------------------------------------------------------------------------------------


async def test_quotas_are_set_shown_and_cleared(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin:
        metadata = {"k": "v", "quota.connections_per_workspace": "2", "quota.workspace_rate_per_s": "0.5"}
        created = (await done(admin, Op.CREATE, workspace=info("w", metadata=metadata))).workspace
        assert dict(created.metadata) == metadata
        assert core.registry._connections_of("w") == 2
        update = {"quota.connections_per_workspace": "3", "quota.workspace_rate_per_s": ""}
        await done(admin, Op.UPDATE, workspace=info("w", metadata=update))
        found = (await done(admin, Op.GET, workspace_id="w")).workspace
        assert dict(found.metadata) == {"k": "v", "quota.connections_per_workspace": "3"}
        # What GET has shown may be written back.
        await done(admin, Op.UPDATE, workspace=found)
        again = (await done(admin, Op.GET, workspace_id="w")).workspace
        assert dict(again.metadata) == dict(found.metadata)
        defaults = (await done(admin, Op.GET, workspace_id="*")).workspace
        assert len(defaults.metadata) == 7
        assert defaults.metadata["quota.kv_value_bytes"] == "1048576"
        await refused(
            admin, Code.INVALID_ARGUMENT, Op.UPDATE, workspace=info("*", metadata={"quota.kv_value_bytes": "1"})
        )


async def test_quotas_outlive_the_gateway(world: World) -> None:
    async with world.open() as core, connect(core, orchestrator("o", "1")) as admin:
        await done(admin, Op.CREATE, workspace=info("w", metadata={"quota.identity_rate_per_s": "1"}))
    async with world.open() as core, connect(core, agent("w", "a", "1")) as peer:
        peer.send(message_to("ag::w::b::1", b"x"), message_to("ag::w::b::1", b"x"))
        await barrier(peer)
        assert [(one.code, one.retryable, one.retry_after_ms) for one in errors(peer)] == [(Code.QUOTA, True, 1000)]


async def test_quotas_of_a_workspace_with_any_name(world: World) -> None:
    name = "lab\x1fconnections_per_workspace"
    loose = {"gateway": {"strict_identifier_charset": False}}
    async with world.open(**loose) as core, connect(core, orchestrator("o", "1")) as admin:
        await done(admin, Op.CREATE, workspace=info(name, metadata={"quota.connections_per_workspace": "2"}))
        assert core.registry._connections_of(name) == 2
    async with world.open(**loose) as core, connect(core, orchestrator("o", "1")) as admin:
        assert core.registry._connections_of(name) == 2
        await done(admin, Op.UPDATE, workspace=info(name, metadata={"quota.connections_per_workspace": ""}))
        assert core.registry._connections_of(name) == core.registry._connections_of("other")


async def test_connections_of_a_workspace(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")):
        metadata = {"quota.connections_per_workspace": "2"}
        await done(admin, Op.CREATE, workspace=info("w", metadata=metadata))
        async with connect(core, agent("w", "a", "2")), connect(core, agent("v", "a", "2")):
            pass
        await done(admin, Op.UPDATE, workspace=info("w", metadata={"quota.connections_per_workspace": "1"}))
        async with connect(core, agent("w", "a", "2"), wait_ack=False) as late:
            ended = await late.wait_end()
        assert ended.status is Status.RESOURCE_EXHAUSTED
        assert ended.message.startswith("ERR_QUOTA_001: workspace w has 1 connections")


async def test_the_rate_of_a_workspace(core: Core) -> None:
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")) as peer:
        await done(admin, Op.CREATE, workspace=info("w", metadata={"quota.workspace_rate_per_s": "2"}))
        peer.send(*(message_to("ag::w::b::1", b"x") for _ in range(3)))
        await barrier(peer)
        assert [(one.code, one.retryable) for one in errors(peer)] == [(Code.WORKSPACE_RATE_LIMITED, True)]


async def test_keys_values_and_task_payloads(core: Core) -> None:
    metadata = {"quota.kv_value_bytes": "3", "quota.kv_keys_per_scope": "1", "quota.task_payload_bytes": "4"}
    KV = pb.KVOperation  # noqa: N806  # as elsewhere
    async with connect(core, orchestrator("o", "1")) as admin, connect(core, agent("w", "a", "1")) as peer:
        await done(admin, Op.CREATE, workspace=info("w", metadata=metadata))

        async def put(key: str, value: bytes, scope: Any) -> str:
            peer.send(pb.UpstreamMessage(kv_op=KV(op=KV.PUT, scope=scope, key=key, value=value, request_id="p")))
            while not (answers := [*peer.waiting("kv"), *peer.waiting("error")]):
                await pump()
            answer = await peer.next(str(answers[0].WhichOneof("payload")))
            return "" if answer.HasField("kv") else answer.error.code

        assert await put("k", b"1234", KV.WORKSPACE) == Code.QUOTA
        assert await put("k", b"1234", KV.GLOBAL) == ""
        assert await put("k", b"123", KV.WORKSPACE) == ""
        assert await put("l", b"123", KV.WORKSPACE) == Code.QUOTA
        assert await put("l", b"123", KV.WORKSPACE_EXCLUSIVE) == ""

        def create(payload: bytes) -> pb.UpstreamMessage:
            return pb.UpstreamMessage(
                create_task=pb.CreateTaskRequest(task_type="t", workspace="w", payload=payload, request_id="c")
            )

        peer.send(create(b"12345"))
        assert not (await peer.next("create_task")).create_task.success
        peer.send(create(b"1234"))
        assert (await peer.next("create_task")).create_task.success
