"""What a delegate or an exchanger tries to get beyond the limits of a grant."""

from __future__ import annotations

from typing import Any

import pytest

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.model.access.rules import Lock
from aether_trio.services.access import records
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import agent, barrier, connect, errors, give_all_rights, service, switch_to, user
from tests.services.authority.people import (
    EXCHANGE,
    GrantOp,
    acting_for,
    allow,
    answer,
    asked,
    decide,
    delegated,
    derive,
    exchange,
    forbid,
    grant_op,
    session_of,
)

PLANNER = ("agent", "ag::prod::planner::1")
HELPER = ("agent", "ag::prod::helper::1")
KEYS_ONLY = [pb.ACLAuthorityGrantResourceScopeEntry(resource_type="kv_key", patterns=["x"])]


def planner() -> pb.UpstreamMessage:
    return agent("prod", "planner", "1")


def helper() -> pb.UpstreamMessage:
    return agent("prod", "helper", "1")


async def send_for_ann(peer: MemoryLink, grant_id: str) -> str:
    """Send a message to the helper in ann's name; the refusal, "" for none."""
    message = pb.SendMessage(target_topic=HELPER[1], payload=b"for ann", authorization=acting_for("ann", grant_id))
    before = len(errors(peer))
    peer.send(pb.UpstreamMessage(send=message))
    await barrier(peer)
    found = errors(peer)
    return found[-1].message if len(found) > before else ""


# -- messages: the sender's own access is not the subject's ----------------------------------------


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"operation_scope": ["kv_*"]}, "operation"),
        ({"workspace_scope": ["test"]}, "workspace"),
        ({"max_access_level": 10}, "gives READ at most"),
        ({"resource_scope": KEYS_ONLY}, "resource"),
    ],
    ids=["operation", "workspace", "level", "resource"],
)
async def test_a_message_to_ones_own_workspace_beyond_the_grant(core: Core, limit: dict[str, Any], text: str) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        root = await exchange(core, ann, may_delegate=True, remaining_hops=1)
        narrow = await derive(ann, root.grant.grant_id, PLANNER, **limit)
        assert text in await send_for_ann(intruder, narrow.grant.grant_id)


async def test_a_message_in_the_name_of_a_locked_subject(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        grant_id = await delegated(core, ann, PLANNER)
        assert await send_for_ann(intruder, grant_id) == ""
        lock = Lock("lock-1", "us::ann::*", "stolen", "user:root", 1, 0)
        await core.changes.commit(lambda draft: records.put_lock(draft, lock))
        assert "is locked (stolen)" in await send_for_ann(intruder, grant_id)


async def test_a_message_in_the_name_of_a_subject_that_has_lost_the_workspace(core: Core) -> None:
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        grant_id = await delegated(core, ann, PLANNER)
        rule_id = await allow(core, "user:ann", "workspace:prod", AccessLevel.NONE)
        assert "needs READWRITE" in await send_for_ann(intruder, grant_id)
        await forbid(core, rule_id)
        assert await send_for_ann(intruder, grant_id) == ""


# -- a grant for one workspace administers none of the others --------------------------------------


async def test_a_grant_for_one_workspace_reads_the_audit_log_of_all(core: Core) -> None:
    give_all_rights(core)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        core.authorizer._fallbacks_changed([("agent_admin", AccessLevel.NONE)], False)
        core.authorizer._fallbacks_changed([("agent_workspace", AccessLevel.READWRITE)], False)
        grant_id = await delegated(core, ann, PLANNER, max_access_level=40, workspace_scope=["prod"])
        for workspace, seen in (("", False), ("other", False), ("prod", True)):
            query = pb.AuditQuery(request_id=f"in {workspace}", workspace=workspace)
            query.authorization.CopyFrom(acting_for("ann", grant_id))
            intruder.send(pb.UpstreamMessage(audit_query=query))
            found = await answer(intruder, "audit_response", f"in {workspace}")
            assert (found.success, found.total_count > 0, len(found.entries) > 0) == (seen, seen, seen), workspace


async def test_a_grant_for_one_workspace_administers_access(core: Core) -> None:
    give_all_rights(core)
    async with connect(core, user("ann", "w1")) as ann, connect(core, planner()) as intruder:
        core.authorizer._fallbacks_changed([("agent_admin", AccessLevel.NONE)], False)
        limited = await delegated(core, ann, PLANNER, max_access_level=40, workspace_scope=["prod"])
        unlimited = await delegated(core, ann, PLANNER, max_access_level=40)
        for grant_id, allowed in ((limited, False), (unlimited, True)):
            op = pb.ACLOperation(op=pb.ACLOperation.LIST_RULES, request_id=grant_id)
            op.authorization.CopyFrom(acting_for("ann", grant_id))
            intruder.send(pb.UpstreamMessage(acl_op=op))
            assert (await answer(intruder, "acl", grant_id)).success is allowed


# -- the narrow capability names its workspace -----------------------------------------------------


async def test_a_narrow_exchange_is_for_the_workspace_that_it_names(core: Core) -> None:
    await allow(core, "service:sv::portal::1", f"capability:{EXCHANGE}/prod/ann")
    async with connect(core, user("ann", "w1")) as ann, connect(core, service("portal", "1")) as intruder:
        ann.send(switch_to("prod"))
        await barrier(ann)
        source = session_of(core, "us::ann::w1")
        for wanted, given in (
            ([], ["prod"]),
            (["prod"], ["prod"]),
            (["_subject_workspaces"], ["prod"]),
            (["secret"], None),
            (["prod", "secret"], None),
            (["*"], None),
        ):
            made = await exchange(core, intruder, source_session_id=source, workspace_scope=wanted)
            assert (list(made.grant.workspace_scope) if made.success else None) == given, wanted
        broad = await allow(core, "service:sv::portal::1", f"capability:{EXCHANGE}")
        made = await exchange(core, intruder, source_session_id=source)
        assert (made.success, list(made.grant.workspace_scope)) == (True, [])
        await forbid(core, broad)


async def test_a_narrow_approval_is_for_the_workspace_that_it_names(core: Core) -> None:
    subject = pb.PrincipalRef(principal_type="agent", principal_id=HELPER[1])
    office = pb.PrincipalRef(principal_type="service", principal_id="sv::office::1")
    await allow(core, "service:sv::office::1", f"capability:{EXCHANGE}/prod/{HELPER[1]}")
    async with connect(core, planner()) as asker, connect(core, service("office", "1")) as intruder:
        route = pb.AuthorityRequestRoutingTarget(principal=office)
        request_id = await asked(asker, target_subject=subject, routing_target=route)
        approved = await decide(intruder, request_id)
        assert approved.success, approved.error
        grant_id = approved.request.granted_grant_id
        made = await grant_op(asker, GrantOp.GET, grant_id=grant_id)
        assert list(made.grant.workspace_scope) == ["prod"]
