"""Rows that would name the wrong authority, or hold what a client makes long."""

from __future__ import annotations

import gc
import tracemalloc
from typing import Any, Final, NamedTuple

from google.protobuf.message import Message

from aether_trio.gateway.core import Core
from aether_trio.model.access import AccessLevel
from aether_trio.services.audit.log import AuditFilter, AuditRow, find
from aether_trio.testing.memory import MemoryLink
from aether_trio.wire.pb import aether_pb2 as pb
from tests.helpers.core import World, agent, barrier, connect, errors, give_all_rights, user
from tests.security.intruders import CLOSED, bob
from tests.services.authority.people import (
    Decision,
    acting_for,
    answer,
    asked,
    decide,
    delegated,
    session_of,
)

PLANNER: Final = ("agent", "ag::prod::planner::1")
HELPER: Final = ("agent", "ag::prod::helper::1")


class Said(NamedTuple):
    """What a row says of whose authority it was."""

    actor: str
    subject: str
    mode: str
    grant: str
    success: bool


async def rows(core: Core, **wanted: str) -> list[AuditRow]:
    """The rows that fit, the oldest first, with all that was done before."""
    core.audit.fold_routes(core.router, all_routes=True)
    await core.audit.writer.flush()
    page = await core.tasks.engine.database.read(lambda: find(AuditFilter(list(wanted.items()), limit=500)))
    return list(reversed(page.rows))


async def said(core: Core, **wanted: str) -> list[Said]:
    return [
        Said(row.actor_id, row.subject_id, row.authority_mode, row.authority_grant_id, bool(row.success))
        for row in await rows(core, **wanted)
    ]


def planner() -> pb.UpstreamMessage:
    return agent("prod", "planner", "1")


def ann() -> pb.UpstreamMessage:
    return user("ann", "w1")


def put_key(context: pb.AuthorizationContext | None, **fields: Any) -> pb.UpstreamMessage:
    op = pb.KVOperation(op=pb.KVOperation.PUT, scope=pb.KVOperation.GLOBAL, key="k", value=b"x", **fields)
    if context is not None:
        op.authorization.CopyFrom(context)
    return pb.UpstreamMessage(kv_op=op)


# -- whose authority it was ------------------------------------------------------------------------


async def test_what_is_done_for_a_subject_has_rows_that_say_so(core: Core) -> None:
    give_all_rights(core)
    async with (
        connect(core, ann()) as window,
        connect(core, planner()) as peer,
        connect(core, agent("prod", "helper", "1")),
    ):
        grant_id = await delegated(core, window, PLANNER, max_access_level=40, hops=2)
        context = acting_for("ann", grant_id)
        peer.send(put_key(context))
        peer.send(put_key(None))
        request = pb.CreateTaskRequest(task_type="t", workspace="prod", request_id="c", authorization=context)
        peer.send(pb.UpstreamMessage(create_task=request))
        op = pb.SessionOperation(session_id=session_of(core, HELPER[1]), request_id="end", authorization=context)
        peer.send(pb.UpstreamMessage(session_op=op))
        assert (await answer(peer, "session_response", "end")).success
        acted = Said(PLANNER[1], "ann", "on_behalf_of", grant_id, True)
        own = Said(PLANNER[1], PLANNER[1], "direct", "", True)
        assert await said(core, operation="kv_put") == [acted, own]
        assert await said(core, event_type="task", operation="task_create") == [acted]
        assert await said(core, operation="admin_session_disconnect") == [acted]


async def test_what_is_refused_to_a_delegate_has_rows_of_what_it_claimed(core: Core) -> None:
    async with connect(core, ann()) as window, connect(core, planner()) as peer:
        grant_id = await delegated(core, window, PLANNER)
        context = acting_for("bob", grant_id)
        peer.send(put_key(context))
        message = pb.SendMessage(target_topic=HELPER[1], payload=b"1", authorization=context)
        peer.send(pb.UpstreamMessage(send=message))
        await barrier(peer)
        claimed = Said(PLANNER[1], "bob", "on_behalf_of", grant_id, False)
        assert await said(core, operation="kv_put") == [claimed]
        assert await said(core, operation="message_route_failed") == [claimed]


async def test_claims_that_no_text_can_hold(core: Core) -> None:
    async with connect(core, planner()) as peer:
        for times in (1, 400_000):
            subject = pb.PrincipalRef(principal_type="us\0er", principal_id="a\0b" * times)
            context = pb.AuthorizationContext(authority_mode="on_behalf_of", subject=subject, grant_id="\0g" * times)
            message = pb.SendMessage(target_topic=HELPER[1], authorization=context)
            peer.send(pb.UpstreamMessage(send=message))
            peer.send(put_key(context))
        await barrier(peer)
        found = await said(core, operation="message_route_failed")
        assert [(one.success, one.mode) for one in found] == [(False, "on_behalf_of")] * 2


async def test_a_session_operation_for_a_subject_needs_the_right_of_the_subject(core: Core) -> None:
    give_all_rights(core)
    core.authorizer._fallbacks_changed([("user_admin", AccessLevel.NONE)], False)
    async with connect(core, ann()) as window, connect(core, planner()) as peer:
        grant_id = await delegated(core, window, PLANNER, max_access_level=40)
        session_id = session_of(core, "us::ann::w1")
        for number, context in enumerate((acting_for("ann", grant_id), acting_for("ann", "made-up"))):
            op = pb.SessionOperation(session_id=session_id, request_id=f"end-{number}", authorization=context)
            peer.send(pb.UpstreamMessage(session_op=op))
            assert not (await answer(peer, "session_response", f"end-{number}")).success
        op = pb.SessionOperation(session_id=session_id, request_id="end")
        peer.send(pb.UpstreamMessage(session_op=op))
        assert (await answer(peer, "session_response", "end")).success


async def test_the_subject_of_a_request_for_no_one_is_its_approver(core: Core) -> None:
    async with connect(core, ann()) as window, connect(core, planner()) as peer:
        request_id = await asked(peer, target_subject=None)
        assert (await decide(window, request_id)).success
        (approved,) = await said(core, operation="authority_request_approved")
        assert (approved.actor, approved.subject) == ("ann", "ann")


async def test_a_request_for_a_workspace_out_of_reach_is_no_row_of_it(world: World) -> None:
    async with world.open(**CLOSED) as core, bob(core) as intruder:
        for workspace in ("red", "blue"):
            request_id = await asked(intruder, desired_workspace_scope=[workspace])
            (made,) = await rows(core, operation="authority_request_created", resource_id=request_id)
            assert made.workspace == "blue"


async def test_a_self_approval_leaves_a_row(core: Core) -> None:
    async with connect(core, planner()) as peer:
        request_id = await asked(
            peer,
            target_subject=None,
            routing_target=pb.AuthorityRequestRoutingTarget(
                principal=pb.PrincipalRef(principal_type="agent", principal_id=PLANNER[1])
            ),
        )
        assert not (await decide(peer, request_id)).success
        assert not (await decide(peer, request_id, Decision.DENY)).success
        for operation in ("authority_request_approved", "authority_request_denied"):
            (refused,) = await rows(core, operation=operation)
            assert (refused.actor_id, refused.resource_id, refused.success) == (PLANNER[1], request_id, 0)


async def test_decisions_beyond_the_bound_name_no_subject_for_others(core: Core) -> None:
    give_all_rights(core)
    async with (
        connect(core, ann()) as first,
        connect(core, user("bob", "w1")) as second,
        connect(core, planner()) as peer,
    ):
        grants = [
            acting_for("ann", await delegated(core, first, PLANNER)),
            acting_for("bob", await delegated(core, second, PLANNER)),
        ]
        for number in range(250):
            peer.send(put_key(grants[number % 2], workspace=f"w{number}"))
        for number in range(250):
            query = pb.AuditQuery(request_id="q", workspace=f"w{number}", authorization=grants[number % 2])
            peer.send(pb.UpstreamMessage(audit_query=query))
        await barrier(peer)
        found = await said(core, event_type="authorization", operation="other")
        assert {(one.subject, one.mode, one.grant) for one in found} <= {
            ("*", "on_behalf_of", "*"),
            (PLANNER[1], "direct", ""),
        }
        assert ("*", "on_behalf_of", "*") in {one[1:4] for one in found}


# -- memory ----------------------------------------------------------------------------------------


async def _refused_many(peer: MemoryLink, messages: list[Message]) -> None:
    for number, message in enumerate(messages):
        peer.send(message)
        if number % 10 == 9:
            await barrier(peer)
            for case in ("error", "kv"):
                while peer.waiting(case):
                    await peer.next(case)
    assert not errors(peer)


async def test_refused_requests_with_long_texts_take_no_memory(core: Core) -> None:
    long = "x" * 500_000
    async with connect(core, planner()) as peer:
        await barrier(peer)
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(0, 100, 10):
                await _refused_many(
                    peer,
                    [put_key(None, workspace=f"{number + one}{long}") for one in range(10)]
                    + [put_key(None, user_id=f"{number + one}{long}") for one in range(10)]
                    + [
                        pb.UpstreamMessage(send=pb.SendMessage(target_topic=f"{number + one}{long}"))
                        for one in range(10)
                    ],
                )
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 20_000_000
