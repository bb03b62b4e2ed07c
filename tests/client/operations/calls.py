"""List one call of every public method of every namespace.

The tests of coverage, of refusals and of the blocking client go through them. A call takes a
namespace and awaits one operation. Methods that are context managers are entered and left;
generators are read to their end.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import pytest

from aether_trio.client.errors import NotImplementedByGateway
from aether_trio.client.operations import NAMESPACES
from aether_trio.client.operations.access_checks import AccessRequest, Continuation
from aether_trio.client.operations.agents import Registration
from aether_trio.client.operations.enums import TunnelEnd, WaitReason
from aether_trio.client.operations.grant_values import Derivation, DeriveForTarget, GrantExchange
from aether_trio.client.operations.principals import AccessLevel, Principal, on_behalf_of
from aether_trio.client.operations.requests import AuthorityRoute, AuthorityWish
from aether_trio.client.operations.task_values import Hibernation, WaitSpec
from aether_trio.client.operations.workflow import ScheduleScope
from aether_trio.client.operations.workspaces import Workspace
from aether_trio.wire.pb import aether_pb2 as pb

Call: TypeAlias = Callable[[Any], Awaitable[Any]]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
AGENT = "ag::prod::planner::1"
ANN = Principal.user("ann")
ACCESS = AccessRequest(resource_type="doc", resource_id="1", operation="read")
EXCHANGE = GrantExchange(
    max_access_level=AccessLevel.READ,
    expires_at=NOW,
    renewable_until=NOW + timedelta(hours=1),
    audience_type="agent",
    audience_id=AGENT,
)
WISH = AuthorityWish(
    target_subject=ANN,
    requested_access_level=AccessLevel.READ,
    requested_duration_s=60,
    route=AuthorityRoute(capability="approver"),
)


def entered(make: Callable[[Any], Any]) -> Call:
    async def call(namespace: Any) -> None:
        async with make(namespace):
            pass

    return call


async def _items(namespace: Any) -> list[tuple[str, bytes]]:
    return [entry async for entry in namespace.items("k", page_size=2)]


def _timed_out(call: Call) -> Call:
    """Make the call whose time limit passes, as the gateway never tells of an end."""

    async def timed_out(namespace: Any) -> None:
        with pytest.raises(TimeoutError):
            await call(namespace)

    return timed_out


async def _not_understood(call: Awaitable[Any]) -> None:
    """Await a call to a gateway that does not know it."""
    with pytest.raises(NotImplementedByGateway):
        await call


CALLS: dict[str, Call] = {
    "access.check": lambda n: n.check(ACCESS, authorization=on_behalf_of(ANN, grant="g")),
    "access.check_all": lambda n: n.check_all([ACCESS, ACCESS]),
    "access.send_checked": lambda n: n.send_checked(AGENT, b"p", ACCESS, continuation=Continuation(binding_id="b")),
    "audit.query": lambda n: n.query(since=NOW, only_failures=True, limit=5),
    "audit.submit": lambda n: n.submit("reviewed", resource_type="doc", metadata={"a": "b"}),
    "authority_requests.approve": lambda n: n.approve(
        "r", access_level=AccessLevel.READ, duration=timedelta(minutes=5)
    ),
    "authority_requests.cancel": lambda n: n.cancel("r"),
    "authority_requests.create": lambda n: n.create(WISH),
    "authority_requests.deny": lambda n: n.deny("r", reason="no"),
    "authority_requests.events": entered(lambda n: n.events()),
    "authority_requests.get": lambda n: n.get("r"),
    "authority_requests.list_pending": lambda n: n.list_pending(workspace="prod"),
    "checkpoints.delete": lambda n: n.delete("c"),
    "checkpoints.list": lambda n: n.list(),
    "checkpoints.load": lambda n: n.load("c"),
    "checkpoints.save": lambda n: n.save(b"state", "c", ttl_s=60),
    "gateway.connection": lambda n: n.connection("s"),
    "gateway.connections": lambda n: n.connections(workspace="prod"),
    "gateway.health": lambda n: n.health(),
    "gateway.info": lambda n: n.info(),
    "gateway.stats": lambda n: n.stats(),
    "grants.batch_exchange": lambda n: n.batch_exchange([EXCHANGE]),
    "grants.cached": entered(lambda n: n.cached()),
    "grants.derive": lambda n: n.derive(
        Derivation(parent_grant_id="g", delegate=Principal.of(AGENT), max_access_level=AccessLevel.READ)
    ),
    "grants.derive_for_target": lambda n: n.derive_for_target(
        DeriveForTarget(parent_grant_id="g", target=Principal.of(AGENT), max_access_level=AccessLevel.READ)
    ),
    "grants.exchange": lambda n: n.exchange(EXCHANGE),
    "grants.get": lambda n: n.get("g"),
    "grants.list_mine": lambda n: n.list_mine(),
    "grants.list_on_me": lambda n: n.list_on_me(include_revoked=True),
    "grants.renew": lambda n: n.renew("g", extend_by=timedelta(minutes=1)),
    "grants.resolve": lambda n: n.resolve("g", actor=AGENT, subject=ANN),
    "grants.revocations": entered(lambda n: n.revocations()),
    "grants.revoke": lambda n: n.revoke("g"),
    "kv.compare_and_delete": lambda n: n.compare_and_delete("k", b"v"),
    "kv.compare_and_set": lambda n: n.compare_and_set("k", b"v", b"w"),
    "kv.decrement": lambda n: n.decrement("n"),
    "kv.decrement_if": lambda n: n.decrement_if("n", floor=0),
    "kv.delete": lambda n: n.delete("k"),
    "kv.get": lambda n: n.get("k"),
    "kv.increment": lambda n: n.increment("n"),
    "kv.increment_if": lambda n: n.increment_if("n", ceiling=9),
    "kv.items": _items,
    "kv.list": lambda n: n.list("k", limit=2),
    "kv.purge_identity": lambda n: n.purge_identity(AGENT),
    "kv.put": lambda n: n.put("k", b"v", ttl_s=60),
    "kv.put_if_absent": lambda n: n.put_if_absent("k", b"v"),
    "kv.set_add": lambda n: n.set_add("s", b"m"),
    "kv.set_size": lambda n: n.set_size("s"),
    "progress.report": lambda n: n.report("t", completion=0.5, summary="half"),
    "proxy.request": lambda n: n.request("sv::billing", "GET", "/v1?x=1"),
    "proxy.serve": entered(lambda n: n.serve()),
    "proxy.stream": entered(lambda n: n.stream("sv::billing", "GET", "/v1")),
    "proxy.tell_head": lambda n: n.tell_head(pb.ProxyHttpResponse(request_id="r", status_code=200)),
    "proxy.tell_piece": lambda n: n.tell_piece(pb.ProxyHttpBodyChunk(request_id="r", fin=True)),
    "registry.delete": lambda n: n.delete("planner"),
    "registry.get": lambda n: n.get("planner"),
    "registry.launch": lambda n: n.launch("planner", "1", workspace="prod"),
    "registry.list": lambda n: n.list(),
    "registry.orchestrators": lambda n: n.orchestrators(),
    "registry.register": lambda n: n.register(Registration(implementation="planner", orchestrator_profile="k8s")),
    "registry.update": lambda n: n.update(Registration(implementation="planner")),
    "rules.add_member": lambda n: n.add_member("g", "user", "ann"),
    "rules.assign_role": lambda n: n.assign_role("r", "user", "ann"),
    "rules.create_group": lambda n: n.create_group("g"),
    "rules.create_role": lambda n: n.create_role("r"),
    "rules.decisions": lambda n: n.decisions(decision="deny"),
    "rules.delete_group": lambda n: n.delete_group("g"),
    "rules.delete_role": lambda n: n.delete_role("r"),
    "rules.explain": lambda n: n.explain(ANN, "workspace", "prod", AccessLevel.READ),
    "rules.fallback": lambda n: n.fallback("user_workspace"),
    "rules.forget_decisions": lambda n: n.forget_decisions(older_than_days=30),
    "rules.forget_expired": lambda n: n.forget_expired(),
    "rules.get": lambda n: n.get("rule"),
    "rules.get_group": lambda n: n.get_group("g"),
    "rules.get_role": lambda n: n.get_role("r"),
    "rules.grant": lambda n: n.grant("user", "ann", "workspace", "prod", AccessLevel.READ),
    "rules.groups_of": lambda n: n.groups_of(ANN),
    "rules.list": lambda n: n.list(),
    "rules.list_groups": lambda n: n.list_groups(),
    "rules.list_roles": lambda n: n.list_roles(),
    "rules.members": lambda n: n.members("g"),
    "rules.remove_member": lambda n: n.remove_member("g", "user", "ann"),
    "rules.revoke": lambda n: n.revoke("rule"),
    "rules.revoke_matching": lambda n: n.revoke_matching("user", "ann", "workspace", "prod"),
    "rules.role_assignments": lambda n: n.role_assignments("r"),
    "rules.roles_of": lambda n: n.roles_of(ANN),
    "rules.set_fallback": lambda n: n.set_fallback("user_workspace", AccessLevel.NONE),
    "rules.unassign_role": lambda n: n.unassign_role("r", "user", "ann"),
    "sessions.connection_status": lambda n: n.connection_status(AGENT),
    "sessions.disconnect": lambda n: n.disconnect("s", reason="bye"),
    "sessions.get": lambda n: n.get("s"),
    "sessions.list": lambda n: n.list(workspace="prod"),
    "tasks.assignments": entered(lambda n: n.assignments()),
    "tasks.cancel": lambda n: n.cancel("t"),
    "tasks.claim": lambda n: n.claim("t"),
    "tasks.complete": lambda n: n.complete("t"),
    "tasks.create": lambda n: n.create("summarize", b"p", pool="summarizer"),
    "tasks.fail": lambda n: n.fail("t", reason="broken"),
    "tasks.follow": entered(lambda n: n.follow("t", recursive=True)),
    "tasks.get": lambda n: n.get("t"),
    "tasks.hibernate": lambda n: n.hibernate("t", Hibernation(checkpoint_key="c"), until=NOW),
    "tasks.hibernations": entered(lambda n: n.hibernations()),
    "tasks.payload": lambda n: n.payload("t"),
    "tasks.pause": lambda n: n.pause("t", WaitSpec(reason=WaitReason.INPUT)),
    "tasks.query": lambda n: n.query(creator=AGENT, subject=ANN),
    "tasks.reject": lambda n: n.reject("t"),
    "tasks.resume": lambda n: n.resume("t"),
    "tasks.retry": lambda n: n.retry("t"),
    "tasks.run": _timed_out(lambda n: n.run("summarize", b"p", pool="summarizer", timeout=0.05)),
    "tasks.saved_result": lambda n: n.saved_result("t"),
    "tasks.subscribe": lambda n: n.subscribe("t"),
    "tasks.unsubscribe": lambda n: n.unsubscribe("sub"),
    "tasks.wait": _timed_out(lambda n: n.wait("t", timeout=0.05)),
    "tasks.wait_for": lambda n: n.wait_for("t", ["u", "v"], any_of_them=True),
    "tokens.create": lambda n: n.create("ci", principal_type="agent", principal_id=AGENT, expires_in_hours=1),
    "tokens.delete": lambda n: n.delete("t"),
    "tokens.get": lambda n: n.get("t"),
    "tokens.list": lambda n: n.list(),
    "tokens.revoke": lambda n: n.revoke("t"),
    "tunnels.accept": entered(lambda n: n.accept(pb.TunnelOpen(tunnel_id="t"))),
    "tunnels.incoming": entered(lambda n: n.incoming()),
    "tunnels.open": entered(lambda n: n.open("sv::db")),
    "tunnels.refuse": lambda n: n.refuse(pb.TunnelOpen(tunnel_id="t"), TunnelEnd.QUOTA),
    "workflow.answer": lambda n: n.answer("e", "review[3]", choice="yes", data={"sum": 7}),
    "workflow.apply": lambda n: n.apply([{"id": "w", "steps": []}], workspace="prod"),
    "workflow.cancel": lambda n: n.cancel("e"),
    "workflow.cancel_execution": lambda n: n.cancel_execution("e"),
    "workflow.cancel_join": lambda n: n.cancel_join("j", "key"),
    "workflow.create_instance": lambda n: n.create_instance("m"),
    "workflow.create_rule": lambda n: n.create_rule(b"{}"),
    "workflow.create_schedule": lambda n: n.create_schedule(
        "s", b"{}", workspace="prod", authority=ScheduleScope(max_access_level=10)
    ),
    "workflow.create_state_machine": lambda n: n.create_state_machine(b"{}"),
    "workflow.create_workflow": lambda n: n.create_workflow(b"{}"),
    "workflow.definition": lambda n: n.definition("w"),
    "workflow.definitions": lambda n: n.definitions("prod"),
    "workflow.delete_rule": lambda n: n.delete_rule("r"),
    "workflow.delete_schedule": lambda n: n.delete_schedule("s", workspace="prod"),
    "workflow.delete_state_machine": lambda n: n.delete_state_machine("m"),
    "workflow.delete_webhook": lambda n: n.delete_webhook("shop"),
    "workflow.delete_workflow": lambda n: n.delete_workflow("w"),
    "workflow.execution": lambda n: n.execution("e", step="fetch[3]"),
    "workflow.executions": lambda n: n.executions(workflow="w", status="failed"),
    "workflow.get_execution": lambda n: n.get_execution("e"),
    "workflow.get_instance": lambda n: n.get_instance("i"),
    "workflow.get_join": lambda n: n.get_join("j", "key"),
    "workflow.get_rule": lambda n: n.get_rule("r"),
    "workflow.get_state_machine": lambda n: n.get_state_machine("m"),
    "workflow.get_workflow": lambda n: n.get_workflow("w"),
    "workflow.history": lambda n: n.history("e", after=500),
    "workflow.list_executions": lambda n: n.list_executions(status="running"),
    "workflow.list_instances": lambda n: n.list_instances("m"),
    "workflow.list_joins": lambda n: n.list_joins(),
    "workflow.list_rules": lambda n: n.list_rules(),
    "workflow.list_schedules": lambda n: n.list_schedules("prod"),
    "workflow.list_state_machines": lambda n: n.list_state_machines(),
    "workflow.list_webhooks": lambda n: n.list_webhooks(),
    "workflow.list_workflows": lambda n: n.list_workflows(),
    "workflow.migrate": lambda n: n.migrate("e"),
    "workflow.pause": lambda n: n.pause("e", "lunch"),
    "workflow.replay": lambda n: n.replay("e", {"name": "w", "steps": []}),
    "workflow.requests": entered(lambda n: n.requests()),
    "workflow.respond": lambda n: n.respond("r", b"{}"),
    "workflow.resume": lambda n: n.resume("e"),
    "workflow.retry": lambda n: n.retry("e"),
    "workflow.rotate_webhook": lambda n: n.rotate_webhook("shop"),
    "workflow.backfill_schedule": lambda n: n.backfill_schedule("s", NOW, NOW, workspace="prod"),
    "workflow.diagram": lambda n: n.diagram("w"),
    "workflow.foretell": lambda n: n.foretell([{"id": "w"}], since=datetime(2026, 1, 1, tzinfo=UTC)),
    "workflow.fork": lambda n: n.fork("e", "fetch"),
    "workflow.pause_schedule": lambda n: n.pause_schedule("s"),
    "workflow.redrive": lambda n: n.redrive(rule="r"),
    "workflow.resume_schedule": lambda n: n.resume_schedule("s"),
    "workflow.run": lambda n: n.run("w", {"topic": "rust"}),
    "workflow.send_event": lambda n: n.send_event("i", "go"),
    "workflow.signal": lambda n: n.signal("e", "go", {"by": "ann"}),
    "workflow.timeline": lambda n: n.timeline("e"),
    "workflow.update_rule": lambda n: n.update_rule("r", b"{}"),
    "workflow.upsert_schedule": lambda n: n.upsert_schedule("s", b"{}", workspace="prod"),
    "workflow.wait": _timed_out(lambda n: n.wait("e", timeout=0.05)),
    "topics.list": lambda n: _not_understood(n.list("prod")),
    "topics.purge": lambda n: _not_understood(n.purge("ag::prod::echo::1", through=7)),
    "topics.show": lambda n: _not_understood(n.show("ag::prod::echo::1")),
    "workspaces.create": lambda n: n.create(Workspace(workspace_id="prod")),
    "workspaces.delete": lambda n: n.delete("prod"),
    "workspaces.get": lambda n: n.get("prod"),
    "workspaces.list": lambda n: n.list(),
    "workspaces.message_flow": lambda n: n.message_flow("prod"),
    "workspaces.switch": lambda n: n.switch("prod"),
    "workspaces.update": lambda n: n.update(Workspace(workspace_id="prod")),
}

PASSIVE = {
    "authority_requests.events",
    "grants.cached",
    "grants.revocations",
    "proxy.serve",
    "tasks.assignments",
    "tasks.hibernations",
    "tunnels.accept",
    "tunnels.incoming",
    "workflow.requests",
}
"""These only listen."""


def public_methods() -> set[str]:
    """Name every public method of every namespace ("kv.get"), except `within`."""
    return {
        f"{name}.{method}"
        for name, kind in NAMESPACES.items()
        for method, found in inspect.getmembers(kind, inspect.isfunction)
        if not method.startswith("_") and method != "within"
    }
